"""Growth of a run: the start, the optimizer's choice, exact resume, every mesh, text, and one-sentence refusals."""

import jax
import numpy as np
import pytest

from configs import knobs
from experiments import preflight
from experiments.generation.text import Generator
from experiments.training import train
from experiments.workdir import grown, trained
from experiments.workdir.checkpoints import Checkpoints
from experiments.workdir.trained import Trained
from tests.experiments import tiny
from tests.experiments.program import program_test
from tests.experiments.training.train_test import assert_same_bits, final_state

PARTS = {
    "model__projection": "pattention", "model__channel": "pattention", "model__pattention__tokens": 8,
    "model__vocab_multiple": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The workdir of a trained small model, beside its corpus."""
    folder = tmp_path_factory.mktemp("small")
    train(tiny.config(folder, **PARTS, train__steps=3), folder / "run", quiet=True)
    return folder / "run"


def larger(small, **overrides):
    changes = {**PARTS, "model__pattention__tokens": 12, "init__grow_from": str(small), **overrides}
    return tiny.config(small.parent, **changes)


def test_a_grown_run_starts_where_the_small_one_ended_and_resumes_bit_for_bit(small, tmp_path):
    whole = larger(small, train__steps=4, checkpoint__every=2, train__log_every=1)
    train(whole, tmp_path / "whole", quiet=True)
    train(whole, tmp_path / "again", quiet=True)
    saves = Checkpoints(tmp_path / "again")
    saves.forget_after(2)  # as if killed before the last save
    assert saves.steps() == [2]
    small.rename(small.with_name("moved"))  # What it grew from need not be there any more.
    try:
        train(whole, tmp_path / "again", quiet=True)
    finally:
        small.with_name("moved").rename(small)
    assert_same_bits(tmp_path / "whole", tmp_path / "again")
    step, state = final_state(tmp_path / "whole")
    assert step == 4 and state["params"]["stack"]["period"]["0_attention"]["mixer"]["q"]["keys"].shape[1] == 12
    _, old = final_state(small)
    for was, now in zip(*(find(s["params"], "tau") for s in (old, state)), strict=True):
        np.testing.assert_array_equal(was, now)
    assert all(np.all(np.any(k[:, 8:], axis=-1)) for k in find(state["params"], "q")), "new keys have learnt"


def find(params, name):
    """Leaves of this name; of a map, its keys."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = lambda path: [getattr(entry, "key", None) for entry in path]  # noqa: E731
    return [x for path, x in leaves if names(path)[-1] == name or names(path)[-2:] == [name, "keys"]]


def build(small, **overrides):
    corpus = trained.load(small).corpus
    config = larger(small, **overrides)
    made = program_test.build(
        config, vocab_size=corpus.tokenizer.vocab_size, mesh=program_test.make_mesh(config, jax.devices()[:1])
    )
    return made, corpus.tokenizer.vocab_size


def test_the_optimizer_is_reset_or_carried(small):
    _, old = final_state(small)
    for choice in knobs.KNOBS["init.grow_optimizer"].choices:
        made, vocab = build(small, init__grow_optimizer=choice)
        state = jax.device_get(grown.state(made, small, vocab_size=vocab))
        assert state["step"] == 0
        moments = state["optimizer"][1][0]
        for moment, was in ((moments.mu, old["optimizer"][1][0]["mu"]), (moments.nu, old["optimizer"][1][0]["nu"])):
            for new, before in zip(jax.tree.leaves(moment), jax.tree.leaves(was), strict=True):
                kept = new[tuple(slice(n) for n in before.shape)]
                np.testing.assert_array_equal(kept, before if choice == "carry" else 0 * before)
                assert np.sum(new != 0) == np.sum(kept != 0), "nothing is known of new rows"
        assert moments.count == (3 if choice == "carry" else 0)
        assert [s.count for s in jax.tree.leaves(state["optimizer"], is_leaf=is_schedule) if is_schedule(s)] == [0]


def is_schedule(node):
    return type(node).__name__ == "ScaleByScheduleState"


def test_a_carried_average_grows_too(small, tmp_path):
    config = tiny.config(small.parent, **PARTS, train__steps=3, optimizer__ema=0.5)
    train(config, tmp_path / "run", quiet=True)
    _, old = final_state(tmp_path / "run")
    overrides = {"init__grow_from": str(tmp_path / "run"), "init__grow_optimizer": "carry", "optimizer__ema": 0.5}
    made, vocab = build(small, **overrides)
    state = jax.device_get(grown.state(made, tmp_path / "run", vocab_size=vocab))
    for group in ("params", "ema"):
        for new, before in zip(find(state[group], "q"), find(old[group], "q"), strict=True):
            np.testing.assert_array_equal(new[:, :8], before)


def test_a_notebook_grows_a_workdir_and_the_text_stays(small):
    before, after = trained.load(small), grown.grow(small, tokens=16)
    assert isinstance(after, Trained) and after.config.model.pattention.tokens == 16
    options = {**before.config.generate.to_dict(), "max_tokens": 12, "temperature": 0.0}
    prompts = ["ab", "c", "de", "f", "a", "b", "g", "h"]
    texts = [Generator(t.program, t.corpus.tokenizer)(t.params, prompts, options) for t in (before, after)]
    assert texts[0] == texts[1] and any(texts[0])


def five_steps(small, **mesh):
    """From 8 tokens to 12, then five steps, on this mesh."""
    changes = {**PARTS, "model__pattention__tokens": 12, "optimizer__eps": 1e-3, "init__grow_from": str(small)}
    config = program_test.config(**changes, **{f"mesh__{axis}": size for axis, size in ({"data": 1} | mesh).items()})
    devices = jax.devices()[: int(np.prod(list(mesh.values()), dtype=int))]
    vocab = trained.load(small).corpus.tokenizer.vocab_size
    made = program_test.build(config, vocab_size=vocab, mesh=program_test.make_mesh(config, devices))
    start = grown.state(made, small, vocab_size=vocab)
    keys, placed = (find(tree["params"], "q")[0] for tree in (start, made.shardings))
    assert keys.sharding == placed
    assert keys.addressable_shards[0].data.size * made.mesh.shape["tensor"] * made.mesh.shape["fsdp"] == keys.size
    return program_test.run(_started(made, start), 5)


@pytest.fixture(scope="module")
def alone(small):
    return five_steps(small)


@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4}], ids=str)
def test_a_grown_run_on_a_mesh_equals_one_device(mesh, small, alone):
    state, metrics = five_steps(small, **mesh)
    program_test.assert_close(alone[0], state, 1e-5)
    for a, b in zip(alone[1], metrics, strict=True):
        np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=1e-5)


def _started(program, state):
    """A program whose `init` is this state."""

    class Started:
        config, mesh, spec, rows = program.config, program.mesh, program.spec, program.rows
        init, train_step = staticmethod(lambda: state), program.train_step

    return Started


def test_the_preflight_names_what_does_not_fit(small, tmp_path):
    def said(**overrides):
        with pytest.raises(preflight.ConfigError) as error:
            preflight.check(larger(small, **overrides), num_devices=8)
        return str(error.value)

    assert "model.width=64 was 32" in said(model__width=64) and "model.num_layers=4 was 2" in said(model__num_layers=4)
    assert "model.pattention.tokens=4 is fewer than the 8 there are; use e.g. 16" in said(model__pattention__tokens=4)
    assert "holds no finished checkpoint" in said(init__grow_from=str(tmp_path))
    assert "use init.warm_start=''" in said(init__warm_start=str(small))
    assert "did you mean 'carry'" in said(init__grow_optimizer="carri")
    assert "use init.grow_optimizer='reset'" in said(init__grow_optimizer="carry", optimizer__name="adafactor")
    assert "cannot carry the state of 'adamw'" in said(init__grow_optimizer="carry", optimizer__name="lion")
    assert "model.pattention.top_r=13 is more than the 12" in said(model__pattention__top_r=13)
    told = said(model__pattention__tokens=10, mesh__tensor=4, mesh__data=2)
    assert "model.pattention.tokens=10 does not divide over 4 devices" in told
    preflight.check(larger(small), num_devices=1)
