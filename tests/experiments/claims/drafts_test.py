"""The checks `drafts` and `denoising` on tiny runs: what they train, compare and count, by other means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.claims import denoising as flow
from configs.speculation import HEADS_ALONE
from experiments.claims import denoising, drafts
from experiments.sweep import launchers
from experiments.workdir import trained
from models.decoding.verify import denoising as steps
from tests.experiments import tiny
from tests.experiments.claims.claims_test import Here

pytestmark = pytest.mark.usefixtures("one_device")
METHOD = {"effect": 0.5, "looks": (2,), "hours": 1.0, "seeds": (0, 1)}


def test_runs_that_are_taught_begin_as_the_model_and_settings_name_who_writes(tmp_path, monkeypatch):
    """Prompt tokens learn beside a model that is held: its parameters are those of the run that it began with."""
    monkeypatch.setattr(launchers, "make", lambda *_: Here())
    greedy, row = {"temperature": 0.0, "max_tokens": 12}, {"statement": "s", "published": "p"}
    learns = {"objective": "prompt_tokens", "optimizer.freeze": HEADS_ALONE, "train.steps": 2}
    claim = METHOD | {
        "base": tiny.config(tmp_path, model__num_layers=2, train__steps=2, data__length=64, eval__rows=4),
        "taught": {"prompts": learns},
        "settings": {
            "lookup": greedy | {"drafter": "lookup"},
            "ppd": greedy | {"drafter": "ppd", "ppd": {"tree": "2x1x1"}, "of": "prompts"},
        },
        "contrasts": [row | {"better": "ppd", "worse": ""},
                      row | {"better": "prompts", "worse": "model", "bits": True}],
        "control": {"says": "c", "reads": ("tokens_a_call", "lookup"), "least": 0.5},
    }  # fmt: skip
    calls, bits = drafts.run(claim, tmp_path / "claim", jobs=1, quiet=True)
    numbers = calls.numbers
    assert numbers["better"] == numbers["tokens_a_call"]["ppd"] and numbers["worse"] == [1.0, 1.0]
    assert all(1 <= each <= 4 for each in numbers["better"]) and "tokens a call: ppd" in calls.measured
    np.testing.assert_allclose(bits.numbers["differences"], 0, atol=1e-6)  # The model is held.
    assert bits.numbers["bits_per_byte"]["prompts"][0] > 1 and "bits per byte" in bits.measured
    runs = {each.parent for each in (tmp_path / "claim" / "runs").glob("*/config.json")}
    params = {model.config.objective: model.params for model in map(trained.load, runs) if model.config.seed == 0}
    held, learned = params["next_token"], params["prompt_tokens"]
    assert jax.tree.all(jax.tree.map(np.array_equal, held["stack"], learned["stack"]))
    assert learned["heads"]["prompts"]["table"].shape == (3, held["embedding"].shape[1])


def test_images_are_the_digits_and_distances_are_kolmogorov_s():
    images = denoising.digits()
    assert images.shape == (1797, 64) and abs(images.mean()) < 1e-5 and abs(images.std() - 1) < 1e-5
    assert denoising.far(images, images) == 0 and denoising.far(images[:500], images[:500] + 5) > 0.3
    a, b = np.random.default_rng(0).normal(size=(2, 40, 3))
    directions = np.random.default_rng(0).normal(size=(3, denoising.DIRECTIONS))
    found = []
    for direction in directions.T:
        x, y = np.sort(a @ direction), np.sort(b @ direction)
        grid = np.concatenate([x, y])
        found.append(max(abs(np.mean(x <= z) - np.mean(y <= z)) for z in grid))
    np.testing.assert_allclose(denoising.far(a, b), np.mean(found), rtol=1e-12)


def test_a_flow_learns_and_its_chains_are_those_steps(x64):
    """The loss falls below pi / 2: 2 - (2 t - 1)^2 / (t^2 + (1 - t)^2), the least from the deviation of pixels alone,
    over all times."""
    images = jnp.asarray(denoising.digits())
    net = denoising.learned(jax.random.key(0), images, 32, 1, 150)
    key, x = jax.random.key(1), images[:400]
    e, t = jax.random.normal(key, x.shape), jnp.linspace(0.05, 0.95, 400)
    v = denoising.velocity(net, t[:, None] * x + (1 - t[:, None]) * e, t)
    assert float(jnp.mean((v - (x - e)) ** 2)) < np.pi / 2
    times, start = jnp.array([0.0, 0.4, 0.8]), e[:5]
    model = lambda x, t: denoising.velocity(net, x, t)  # noqa: E731
    found, by_hand = denoising.plain(key, start, model, times), start
    for i, (t, s) in enumerate(((0.0, 0.4), (0.4, 0.8))):
        t, s = jnp.full(5, t), jnp.full(5, s)
        noise = jax.random.normal(jax.random.fold_in(key, i), by_hand.shape)
        by_hand = steps.mean(by_hand, model(by_hand, t), t, s) + steps.scale(t, s)[:, None] * noise
    np.testing.assert_allclose(found, by_hand, rtol=0, atol=1e-11)  # Angles up to 64 pi, two steps of width 32.


def test_rows_of_a_flow_are_differences_by_seed(monkeypatch, tmp_path):
    one = {
        "steps_a_call": 2.5, "accepted": 0.7, "chance": 0.69, "distance_drafted": 0.02, "distance_same": 0.015,
        "distance_draft": 0.05, "distance_released": 0.04,
    }  # fmt: skip
    monkeypatch.setattr(denoising, "measured", lambda claim, images, seed: {k: v + seed / 1e4 for k, v in one.items()})
    rows = denoising.run(flow.get_claim() | METHOD, tmp_path, jobs=1, quiet=True)
    means = [row.numbers["mean"] for row in rows]
    np.testing.assert_allclose(means, [1.50005, 0.01, 0.005, 0.025], atol=1e-9)
