"""What is evaluated is a number of rows, the same ones for any batch size, accumulation and devices."""

import jax
import numpy as np
import pytest

from configs import base
from experiments import workdir as files
from experiments.program import inputs
from experiments.settings import history, keys, overrides
from experiments.sweep import trials
from experiments.training import evaluate
from experiments.workdir import saved
from tests.experiments import tiny
from tests.experiments.program.program_test import build, make_mesh


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("budget")


def scored(folder, parts=1, **changes):
    """The targets of every row that is scored, in their order."""
    config = tiny.config(folder, **changes)
    corpus = inputs.load(config)
    found = {}
    for part in range(parts):
        for step, batch in enumerate(inputs.eval_batches(config, corpus, (part, parts))):
            for row, (targets, mask) in enumerate(zip(batch["targets"], batch["scored"], strict=True)):
                if mask.any():
                    found[step, part, row] = targets[mask].tobytes()
    return [found[place] for place in sorted(found)]


def test_the_same_rows_in_any_batch_on_any_devices(folder):
    wanted = scored(folder, eval__rows=11, eval__batch_size=1)
    assert len(wanted) == 11
    for size, parts in ((2, 1), (3, 1), (8, 1), (16, 1), (4, 4), (8, 2), (12, 4)):
        assert scored(folder, parts, eval__rows=11, eval__batch_size=size) == wanted, (size, parts)
    for accumulation in (1, 2, 4):  # The batch follows it, the rows do not.
        changes = {"eval__batch_size": 0, "data__batch_size": 8, "train__accumulation": accumulation}
        assert scored(folder, eval__rows=11, **changes) == wanted


def test_no_more_rows_than_there_are_and_all_of_them_for_0(folder):
    whole = scored(folder, eval__rows=0, eval__batch_size=8)
    assert whole == scored(folder, eval__rows=10**6, eval__batch_size=5)
    assert whole[:11] == scored(folder, eval__rows=11, eval__batch_size=8)


def test_every_objective_leaves_out_the_rows_beyond(folder):
    for objective in ("masked_diffusion", "any_subset"):
        one, many = (scored(folder, objective=objective, eval__rows=5, eval__batch_size=size) for size in (1, 4))
        assert one == many and len(one) == 5


def test_one_model_has_one_loss(folder):
    """Nats a token over 11 rows, in batches of 1, 4 and 16: the same sum in another order."""
    found = []
    for size in (1, 4, 16):
        config = tiny.config(folder, eval__rows=11, eval__batch_size=size)
        corpus = inputs.load(config)
        made = build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=make_mesh(config, jax.devices()[:1]))
        step, params = evaluate.make_step(made), made.init()["params"]
        batches = inputs.eval_batches(config, corpus, made.rows)
        found.append(evaluate.evaluate(made, step, params, batches, corpus.tokenizer.token_bytes))
    assert {f["eval/tokens"] for f in found} == {found[0]["eval/tokens"]}
    losses = [f["eval/loss"] for f in found]
    # Of some 350 tokens of 5.6 nats in float32: each row's sum is off by at most 32 units in the last place.
    np.testing.assert_allclose(losses, losses[0], rtol=32 * 2**-23)


STOCHASTIC = {
    "masked_diffusion": {}, "block_diffusion": {"block_diffusion__block": 4}, "insertion": {"data__isolate": False},
    "score_entropy": {"score_entropy__graph": "uniform"}, "score_entropy of masks": {"model__time_features": 8},
    "neodiff": {"model__time_features": 8, "neodiff__levels": 9},
}  # fmt: skip


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_model_whose_loss_is_drawn_has_one_loss(folder, name):
    """The noise of a row is its own: 11 rows in batches of 4 and of 7, and of 8 on eight devices, are one sum."""
    objective, found = name.split()[0], []
    for size, devices in ((4, 1), (7, 1), (8, 8)):
        changes = {"objective": objective, "model__num_layers": 1, f"{objective}__draws": 2, "eval__rows": 11}
        changes |= {"eval__batch_size": size, "mesh__data": devices, "data__batch_size": 8}
        config = tiny.config(folder, **changes, **STOCHASTIC[name])
        corpus = inputs.load(config)
        made = build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=make_mesh(config, jax.devices()[:devices]))
        rng = np.random.default_rng(5)  # Drawn, so that features of mixers that start at 0 count.
        draw = lambda x, rng=rng: (0.3 * rng.normal(size=x.shape) + (x.ndim == 1)).astype(x.dtype)  # noqa: E731
        params = jax.device_put(jax.tree.map(draw, made.abstract["params"]), made.shardings["params"])
        batches = inputs.eval_batches(config, corpus, made.rows)
        step = evaluate.make_step(made)
        found.append(evaluate.evaluate(made, step, params, batches, corpus.tokenizer.token_bytes))
    assert {f["eval/tokens"] for f in found} == {found[0]["eval/tokens"]}
    for measure in ("eval/loss", "eval/bits_per_byte_se"):
        # Sums of T weighted terms in float32 in another order: each off by at most T / 2 units in the last place.
        rtol = config.data.length / 2 * 2**-23
        np.testing.assert_allclose([f[measure] for f in found], found[0][measure], rtol=rtol)


@pytest.mark.parametrize(
    ("own", "batch", "accumulation", "batches", "rows"),
    [(0, 16, 1, 20, 320), (0, 16, 4, 20, 80), (8, 16, 4, 2, 16), (0, 512, 1, 20, 10_240), (64, 32, 1, 0, 0)],
)
def test_a_budget_of_batches_was_so_many_rows(own, batch, accumulation, batches, rows):
    flat = {
        "eval.batch_size": own, "data.batch_size": batch, "train.accumulation": accumulation, "eval.batches": batches,
    }  # fmt: skip
    assert history.rows_of(batches, flat) == rows
    assert history.changed(flat)["eval.rows"] == rows
    typed = [(key, str(value)) for key, value in flat.items()]
    assert overrides.apply(base.get_config(), typed).eval.rows == batches * (own or batch)  # Accumulation is no part.


def test_typed_batches_are_the_same_rows_whatever_is_accumulated_and_in_every_trial():
    config = base.get_config()
    config.data.batch_size = 8
    for accumulation in (1, 2, 4):
        config.train.accumulation = accumulation
        typed = [("eval.batches", "3")]
        assert overrides.apply(config.copy_and_resolve_references(), typed).eval.rows == 24
        assert overrides.apply(config.copy_and_resolve_references(), [*typed, ("eval.batch_size", "2")]).eval.rows == 6
        chosen = [{"train.accumulation": 1}, {"train.accumulation": 4}, {"data.batch_size": 16}]
        assert [trial.config.eval.rows for trial in trials.resolve(config, chosen, typed)] == [24] * 3


@pytest.mark.parametrize(
    ("typed", "rows"),
    [
        ([], 24), ([("data.batch_size", "4")], 24), ([("train.accumulation", "4")], 24), ([("eval.batches", "0")], 0),
        ([("eval.batches", "2")], 16), ([("eval.rows", "5")], 5),
    ],
)  # fmt: skip
def test_a_config_file_of_an_older_house_that_sets_batches_is_read(tmp_path, typed, rows):
    """A batch of 8 rows; what the command line says of batches leaves the rows alone."""
    for last in ("config", "config.lock()"):
        (tmp_path / "c.py").write_text(
            "from configs import base\ndef get_config():\n    config = base.get_config()\n"
            f"    config.data.batch_size = 8; config.eval.batches = 3\n    return {last}\n"
        )
        config = overrides.apply(overrides.load(tmp_path / "c.py"), typed)
        assert config.eval.rows == rows and "batches" not in config.eval
        keys.check_keys(config)
    today = tiny.config(tmp_path)
    assert overrides.renamed(today.copy_and_resolve_references()) == today


def test_a_sweep_of_an_older_house_that_sets_batches_measures_the_same_rows_in_each_trial():
    config = base.get_config()
    config.data.batch_size = 8
    config.eval.batches = 3
    made = trials.resolve(config, [{"train.accumulation": 1}, {"train.accumulation": 4}, {"data.batch_size": 16}])
    assert [trial.config.eval.rows for trial in made] == [24] * 3
    assert config.eval.batches == 3  # What was handed over is left alone.


def test_a_config_that_was_saved_with_batches_is_read(folder, tmp_path):
    config = tiny.config(folder, data__batch_size=8, eval__batch_size=0).to_dict()
    del config["eval"]["rows"]
    config["eval"]["batches"] = 3
    files.write_config(tmp_path, config, "")
    assert saved.saved_config(tmp_path).eval.rows == 24
    config["data"]["batch_size"] = "x"
    files.write_config(tmp_path, config, "")
    with pytest.raises(ValueError, match="of another version"):
        saved.saved_config(tmp_path)
