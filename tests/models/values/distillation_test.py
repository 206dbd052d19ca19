"""Distillation and multi-token prediction, whole steps: loss, means and gradient of a batch, written out in numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models import objectives
from models.objectives import distillation
from tests.experiments.program.step_values_test import drawn, numpy
from tests.plain import layers, tiny

pytestmark = pytest.mark.usefixtures("x64")
W, S, Z = 0.3, 1.7, 0.01


def told(b, row):
    return {"segments": b["segment_ids"][row], "positions": b["positions"][row]}


def distilled(p, q, b):
    """Sums over the scored tokens of the loss, of nll and of the divergence at temperature S."""
    sums = np.zeros(3)
    for row in range(len(b["tokens"])):
        z, u = (layers.logits(x, tiny.features(x, b["tokens"][row], **told(b, row))) for x in (p, q))
        for t in np.flatnonzero(b["scored"][row]):
            log_z = np.log(np.exp(z[t]).sum())  # Over all rows of the head, those of no token too.
            nll = log_z - z[t, b["targets"][row, t]]
            soft, hard = np.exp(u[t, : tiny.V] / S), np.exp(z[t, : tiny.V] / S)
            soft, hard = soft / soft.sum(), hard / hard.sum()
            kl = (soft * np.log(soft / hard)).sum()
            sums += [(1 - W) * nll + W * S * S * kl + Z * log_z**2, nll, kl]
    return sums


def ahead(p, b, n):
    """Sums over tokens of nll of the next n tokens, each by its own head, and their squared log-partitions."""
    nll, squares = np.zeros(n), 0.0
    T = tiny.T
    for row in range(len(b["tokens"])):
        f = tiny.features(p, b["tokens"][row], **told(b, row))
        for i in range(1, n + 1):
            h = f if i == 1 else f @ p["heads"][f"ahead_{i}"]["kernel"]
            z = layers.logits(p, h)
            for t in range(T - i + 1):
                at = t + i - 1
                if b["scored"][row, at] and b["segment_ids"][row, at] == b["segment_ids"][row, t]:
                    log_z = np.log(np.exp(z[t]).sum())
                    nll[i - 1] += log_z - z[t, b["targets"][row, at]]
                    squares += log_z**2
    return nll, squares


def descended(made, params, batch, *companions):
    """(metrics, gradient): plain descent at rate 1 gives the gradient away."""
    made = dataclasses.replace(made, optimizer=optax.sgd(1.0))
    state = {"step": jnp.int32(0), "rng": jax.random.key_data(jax.random.key(0)), "params": params}
    state["optimizer"] = made.optimizer.init(params)
    new, metrics = jax.jit(made.step)(state, batch, *companions)
    return metrics, jax.tree.map(lambda old, new: np.asarray(old - new), params, new["params"])


def assert_slope(value, p, gradient):
    """Along two directions the gradient is a difference quotient of `value`."""
    rng, h = np.random.default_rng(1), 1e-5
    for _ in range(2):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), p)
        ends = [value(jax.tree.map(lambda x, d, s=s: x + s * h * d, p, direction)) for s in (1, -1)]
        dot = sum((a * b).sum() for a, b in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
        # Weights are float32, and so is what the losses of one device sum to.
        np.testing.assert_allclose(dot, (ends[0] - ends[1]) / (2 * h), rtol=1e-6)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_step_of_distillation(chunked, monkeypatch):
    """The teacher's head has rows more than the student's; in chunks of a few tokens it is the same."""
    if chunked:
        monkeypatch.setattr(distillation, "MAX_LOGITS", 5 * (tiny.V + 12))
    options = {"distillation__weight": W, "distillation__temperature": S, "loss__z_loss": Z}
    made = tiny.program(tiny.config("distillation", train__accumulation=2 if chunked else 1, **options))
    teacher = tiny.program(tiny.config(model__vocab_multiple=12, model__tied=False))
    made = dataclasses.replace(made, companions={"teacher": teacher})
    batch, params, taught = tiny.batch(), drawn(made), jax.tree.map(lambda x: 1.1 * x, drawn(teacher))
    metrics, gradient = descended(made, params, batch, {"teacher": taught})
    p, q, count = numpy(params), numpy(taught), batch["scored"].sum()
    assert len(q["head"]) == 12 > len(p["embedding"]) == tiny.V
    names = ("train/loss", "train/nll", "train/kl")
    np.testing.assert_allclose([float(metrics[name]) for name in names], distilled(p, q, batch) / count, rtol=1e-6)
    assert_slope(lambda p: distilled(p, q, batch)[0] / count, p, gradient)


def test_a_step_of_several_tokens():
    n = 3
    made = tiny.program(tiny.config("multi_token", multi_token__tokens=n, loss__z_loss=Z))
    batch, params = tiny.batch(), drawn(made)
    assert set(params["heads"]) == {"ahead_2", "ahead_3"} and made.roles["heads"]["ahead_2"]["kernel"] == "kernel"
    metrics, gradient = descended(made, params, batch)
    p, count = numpy(params), batch["scored"].sum()
    nll, squares = ahead(p, batch, n)
    assert (nll > 0).all()
    found = [float(metrics[name]) for name in ("train/nll", "train/nll_2", "train/nll_3")]
    np.testing.assert_allclose(found, nll / count, rtol=1e-6)

    def value(p):
        nll, squares = ahead(p, batch, n)
        return (nll.sum() + Z * squares) / count

    np.testing.assert_allclose(float(metrics["train/loss"]), value(p), rtol=1e-6)
    assert_slope(value, p, gradient)


@pytest.mark.parametrize("objective", ["distillation", "multi_token"])
def test_evaluation_is_that_of_the_next_token(objective):
    """Nats of the student, and of the model without its heads."""
    made = tiny.program(tiny.config(objective))
    params, batch = drawn(made), tiny.batch()
    nats = jax.jit(lambda p: made.objective.row_nll(made.merge(p), batch, None))(params)
    p = numpy(params)
    for row in range(4):
        log_p = tiny.log_probs(p, tiny.features(p, batch["tokens"][row], **told(batch, row)))
        want = -log_p[np.arange(tiny.T), batch["targets"][row]][batch["scored"][row]].sum()
        np.testing.assert_allclose(nats[row], want, rtol=1e-6)


def test_heads_are_built_last_and_one_token_has_none():
    """What a model without heads starts with stays as it was."""
    plain, one, more = (
        tiny.program(tiny.config(**options)).init()["params"]
        for options in (
            {},
            {"objective": "multi_token", "multi_token__tokens": 1},
            {"objective": "multi_token", "multi_token__tokens": 2},
        )
    )
    assert set(more) - set(plain) == {"heads"} and set(one) == set(plain)
    for name in plain:
        for a, b, c in zip(*(jax.tree.leaves(x[name]) for x in (plain, one, more)), strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)
    assert objectives.heads(objectives.OBJECTIVES["next_token"], None) == {}
