"""Running parameters: renewed once a step, the same however the step is cut, and resumed with the run."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.training
from experiments.program import counting, global_batch
from experiments.train import train
from models import reports, running
from models.channels import CHANNELS
from tests.experiments import tiny
from tests.experiments.program import program_test
from tests.experiments.training import train_test
from tests.models.toy_channels import Telling

STEPS, L = 3, 4
CUT = {"mesh__data": 2, "mesh__tensor": 2, "sharding__stream": ("tensor",)}
CHANGES = {
    "model__channel": "telling", "model__mixer": "attention,linear_attention", "model__num_layers": L,
    "optimizer__ema": 0.9, "optimizer__weight_decay": 0.5, "optimizer__decay_roles": ("kernel", "running"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def telling(monkeypatch):
    monkeypatch.setitem(CHANNELS, "telling", Telling)


def seen(params):
    """The count of each layer, [L]."""
    period = params["stack"]["period"]
    return np.stack([period[name]["channel"]["seen"] for name in sorted(period)], 1).reshape(-1)


def test_a_count_is_exact_for_any_accumulation_and_mesh():
    """What an independent count says of each layer, and then: no decay, no average, no gradient touches it."""
    first = sum(int(np.sum(batch["segment_ids"] == 1)) for batch in program_test.batches(STEPS))
    states = {}
    for name, devices, changes in (
        ("alone", 1, {}),
        ("accumulation", 1, {"train__accumulation": 2}),
        ("mesh", 4, {**CUT, "train__accumulation": 2}),
    ):
        states[name], metrics = program_test.run(program_test.program(devices, **CHANGES, **changes), STEPS)
        np.testing.assert_array_equal(seen(states[name]["params"]), first * np.arange(1, L + 1))
        np.testing.assert_array_equal(seen(states[name]["ema"]), seen(states[name]["params"]))
    program_test.assert_close(states["alone"]["params"], states["accumulation"]["params"], 1e-4)
    program_test.assert_close(states["alone"]["params"], states["mesh"]["params"], 1e-4)


def test_a_block_finds_its_own_part_of_a_report():
    """Two blocks, two repeats, in order of depth: what all report, and what only the second one does."""
    silent, telling = (types.SimpleNamespace(channel=channel) for channel in (object(), Telling.__new__(Telling)))
    period = types.SimpleNamespace(blocks={"0_a": silent, "1_b": telling})
    model = types.SimpleNamespace(stack=types.SimpleNamespace(period=period, repeats=2))
    report = {"all": jnp.arange(4.0), "first": reports.Mean(jnp.array([10.0, 20.0]), jnp.array([1.0, 2.0]))}
    found = jax.tree.map(lambda x: x.tolist(), dict(running.by_block(model, report)))
    assert found["0_a"] == {"all": [0, 2]}
    assert found["1_b"] == {"all": [1, 3], "first": reports.Mean([10, 20], [1, 2])}


def test_layers_that_differ_renew_their_own():
    """Layers 1 and 3 tell, 0 and 2 have two maps: the first that tells counts 1, the next one 2."""
    first = sum(int(np.sum(batch["segment_ids"] == 1)) for batch in program_test.batches(STEPS))
    changes = CHANGES | {"model__channel": "mlp,telling"}
    state, metrics = program_test.run(program_test.program(1, **changes), STEPS)
    period = state["params"]["stack"]["period"]
    assert set(period["0_attention"]["channel"]) == {"up", "down"}
    np.testing.assert_array_equal(period["1_linear_attention"]["channel"]["seen"], first * np.arange(1, 3))
    assert all(each["train/report/ones"] == 1 for each in metrics)


def test_metrics_show_the_report_and_the_loss_has_its_losses():
    made = program_test.program(**CHANGES)
    batch = next(program_test.batches(1))
    _, metrics = made.train_step()(made.init(), global_batch(batch, made))
    scored, (B, T) = int(batch["scored"].sum()), batch["tokens"].shape
    assert set(metrics) >= {f"train/report/{name}" for name in ("loss", "ones", "first")}
    assert "train/report/wide" not in metrics and metrics["train/report/ones"] == 1
    np.testing.assert_allclose(metrics["train/report/loss"], L * B * T / 4 / scored, rtol=1e-6)
    np.testing.assert_allclose(metrics["train/loss"] - metrics["train/nll"], L * B * T / 4 / scored, rtol=1e-6)
    share = np.sum(batch["segment_ids"] == 1) * np.mean(np.arange(1, L + 1)) / (B * T)
    np.testing.assert_allclose(metrics["train/report/first"], share, rtol=1e-6)


def test_a_running_parameter_has_no_gradient_and_is_not_counted():
    made = program_test.program(**CHANGES)
    params, batch = made.init()["params"], next(program_test.batches(1))

    def loss(params, hold):
        model = made.merge(hold(params))
        return made.objective.loss(model, batch, jax.random.key(0)).total

    held, free = (
        jax.jit(jax.grad(lambda p, h=h: loss(p, h)))(params)
        for h in (lambda p: running.held(made.roles, p), lambda p: p)
    )
    assert not np.any(seen(held)) and np.all(seen(free))
    trained = sum(x.size for x in jax.tree.leaves(params)) - L
    assert counting.parameters(made)["total"] == trained


def test_what_advance_gives_must_have_the_shapes_that_it_got(monkeypatch):
    monkeypatch.setattr(Telling, "advance", lambda self, old, report: {"seen": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"Telling.advance gives \{'seen': \(3,\)\}; it must give \{'seen': \(2,\)\}"):
        made = program_test.program(**CHANGES)
        jax.eval_shape(made.step, made.abstract, next(program_test.batches(1)))


@pytest.mark.usefixtures("one_device")
def test_a_run_that_was_cut_off_counts_on(tmp_path, monkeypatch):
    """The count is in the checkpoint and moves the loss: with another one the bits would differ."""
    config = tiny.config(
        tmp_path, model__channel="telling", train__steps=6, train__log_every=1, checkpoint__every=2, eval__every=0
    )
    train(config, tmp_path / "alone", quiet=True)

    def falling(batch, program, left=[5]):  # noqa: B006 (counts the calls)
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return global_batch(batch, program)

    with monkeypatch.context() as patch:
        patch.setattr(experiments.training, "global_batch", falling)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "cut", quiet=True)
    assert train_test.final_state(tmp_path / "cut")[0] == 4
    train(config, tmp_path / "cut", quiet=True)
    train_test.assert_same_bits(tmp_path / "alone", tmp_path / "cut")
    counted = [seen(train_test.final_state(tmp_path / name)[1]["params"]) for name in ("alone", "cut")]
    assert np.all(counted[0] > 0) and np.array_equal(*counted)
