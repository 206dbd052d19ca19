"""Parametrizations: at the base nothing changes, and away from it steps are of one size (or, in standard, are not)."""

import jax
import numpy as np
import pytest

from configs import base, transformer
from experiments import preflight
from experiments.program import build, sharding
from experiments.scaling import coordinates, plots
from experiments.settings.errors import ConfigError
from models.mixers import MIXERS
from models.parametrization import RULES

WIDTHS = (32, 128)


def config(rule, *, mixer="attention", head=0, base_width=32):
    """One layer on random text of 40 symbols; heads of 16 at every width, or (head=8) two that widen."""
    made = transformer.get_config("tiny")
    made.data.update({"source": "random", "vocab_size": 40, "length": 8, "batch_size": 8})
    made.optimizer.update({"schedule": "constant", "warmup": 0.0, "learning_rate": 1e-2})
    made.model.update({"width": 32, "num_heads": 2, "num_layers": 1, "parametrization": rule, "mixer": mixer})
    made.model.mup.update({"base_width": base_width, "base_head_dim": head})
    return made


def program(made):
    return build(made, vocab_size=40, mesh=sharding.make_mesh(made, jax.devices()[:1]))


SIZED = [name for name, part in MIXERS.items() if getattr(part, "sized", False) and name != "attention"]


@pytest.mark.parametrize("mixer", ["attention", *(pytest.param(m, marks=pytest.mark.exhaustive) for m in SIZED)])
def test_steps_are_of_one_size_at_every_width_under_mup_and_grow_in_standard(mixer):
    """Slopes over a factor of 4 in width: hidden activations and logits."""
    mup = coordinates.measure(config("mup", mixer=mixer), WIDTHS, steps=3).slopes()
    standard = coordinates.measure(config("standard", mixer=mixer), WIDTHS, steps=3).slopes()
    assert list(mup) == ["embedding", f"layer 0 {mixer}", "logits"]
    assert max(map(abs, mup.values())) < 0.3, mup
    assert standard[f"layer 0 {mixer}"] > 0.7 and standard["logits"] > 0.4, standard


def test_at_the_base_both_rules_are_one_program():
    """The same numbers at D = base_width, bit for bit; at twice that every multiplier is the rule's."""
    states = []
    for rule in RULES:
        made = program(config(rule))
        state, step = made.init(), made.train_step()
        rows = np.random.default_rng(0).integers(0, 40, (2, 8, 8)).astype(np.int32)
        batch = {"tokens": rows[0], "targets": rows[1], "scored": np.ones((8, 8), bool)}
        states.append(jax.device_get(step(state, batch)[0]["params"]))
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_multipliers_are_those_of_the_table():
    """Twice the width and the head, four times the depth, against the base."""
    made = coordinates.sized(config("mup", head=16), 64)
    made.model.num_layers, made.model.mup.base_layers = 4, 1
    sizes = program(made).spec.sizes
    assert made.model.num_heads == 2 and program(made).spec.H == 32
    assert (sizes.logits, sizes.scores, sizes.branch) == (0.5, 2**-0.5, 0.25)
    assert sizes.init("embed") == sizes.init("hidden") == 2**-0.5 and sizes.init(None) == 1.0
    axes = ("layers", "heads", "embed")
    assert [sizes.rate(role, axes) for role in ("kernel", "embedding", "norm")] == [0.5, 1.0, 1.0]
    assert sizes.rate("kernel", ("layers", None, "embed")) == 1.0  # Few inputs: a map of the noise level.
    more = coordinates.sized(config("mup"), 64)
    assert (more.model.num_heads, program(more).spec.sizes.scores) == (4, 1.0)


def test_adam_moves_kernels_by_their_rate_and_decay_does_not_follow_it():
    """Adam's first step is the learning rate times the sign of a gradient, whatever its size."""
    made = coordinates.sized(config("mup"), 64)
    made.optimizer.update({"weight_decay": 0.0, "clip": 0.0})
    built = program(made)
    params = built.init()["params"]
    updates, _ = built.optimizer.update(jax.tree.map(np.ones_like, params), built.optimizer.init(params), params)
    for update, role in zip(jax.tree.leaves(updates), jax.tree.leaves(built.roles), strict=True):
        np.testing.assert_allclose(update, -1e-2 * (0.5 if role == "kernel" else 1.0), rtol=1e-5)
    made.optimizer.weight_decay = 0.5
    built = program(made)
    zero = jax.tree.map(np.zeros_like, params)
    updates, _ = built.optimizer.update(zero, built.optimizer.init(params), params)
    for update, value, role in zip(*map(jax.tree.leaves, (updates, params, built.roles)), strict=True):
        want = -1e-2 * 0.5 * value if role in ("kernel", "embedding") else 0 * value
        np.testing.assert_allclose(update, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model.projection": "pattention"}, "no rule for model.projection='pattention', whose scores"),
        ({"model.channel": "pattention"}, "no rule for model.channel='pattention'"),
        ({"model.mixer": "ttt_linear"}, "model.mixer='ttt_linear'; use one of attention, linear_attention"),
        ({"optimizer.name": "muon"}, "no rates for optimizer.name='muon'; use one of adamw, lion."),
        ({"model.mlp.hidden": 100}, "model.mlp.hidden=100 does not follow the width.*use model.mlp.hidden=0."),
    ],
)
def test_parts_without_a_rule_are_refused(changes, told):
    made = base.get_config()
    for key, value in changes.items():
        group, _, leaf = key.rpartition(".")
        made[group][leaf] = value
    preflight.check(made, num_devices=1)
    made.model.parametrization = "mup"
    with pytest.raises(ConfigError, match=told):
        preflight.check(made, num_devices=1)


def test_a_coordinate_check_is_drawn_and_told(tmp_path):
    rng = np.random.default_rng(0)
    moved = np.stack([np.outer(np.array(WIDTHS) ** slope, np.ones(2)) for slope in (0.0, 1.0)], axis=-1)
    found = coordinates.Coordinates(WIDTHS, ("embedding", "logits"), rng.random((2, 3, 2)), moved)
    assert found.slopes() == pytest.approx({"embedding": 0.0, "logits": 1.0})
    assert coordinates.table(found).splitlines()[-1].endswith("+1.000")
    (path,) = plots.save(plots.coordinates(found, "two"), tmp_path / "coordinates", ("svg",))
    assert "step 2" in path.read_text() and "logits" in path.read_text()
    with pytest.raises(ValueError, match="use e.g. 64"):
        coordinates.sized(config("mup"), 40)
