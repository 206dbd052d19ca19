"""One step of training by hand: its loss, its gradient, what it averages; and the whole evaluation with its error."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.training import evaluate
from tests.plain import tiny

pytestmark = pytest.mark.usefixtures("x64")
Z = 0.01


def nats(p, batch, z_loss=0.0):
    """-log p(target) of each row's valid targets [B], with the squared log-partition beside it."""
    rows = []
    for b in range(len(batch["tokens"])):
        told = {"segments": batch["segment_ids"][b], "positions": batch["positions"][b]}
        log_p = tiny.log_probs(p, f := tiny.features(p, batch["tokens"][b], **told))
        raw = f @ p["embedding"].T
        log_z = np.log(np.exp(raw).sum(-1))
        each = -log_p[np.arange(tiny.T), batch["targets"][b]] + z_loss * log_z**2
        rows.append(each[batch["scored"][b]].sum())
    return np.array(rows)


def numpy(tree):
    return jax.tree.map(lambda x: np.asarray(x), tree)


def drawn(program):
    """Parameters that are not zero or one anywhere, on the program's structure."""
    rng = np.random.default_rng(7)
    draw = lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape) + (x.ndim < 3), jnp.float64)  # noqa: E731
    return jax.tree.map(draw, program.abstract["params"])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_gradient_of_a_step_is_that_of_the_mean_over_valid_targets(accumulation):
    """Plain descent at rate 1 gives the gradient away; along two directions it is a difference quotient of the mean."""
    made = tiny.program(tiny.config(loss__z_loss=Z, train__accumulation=accumulation))
    made = dataclasses.replace(made, optimizer=optax.sgd(1.0))
    batch, params = tiny.batch(), drawn(made)
    state = {"step": jnp.int32(0), "rng": jax.random.key_data(jax.random.key(0)), "params": params}
    state["optimizer"] = made.optimizer.init(params)
    new, metrics = jax.jit(made.step)(state, batch)
    count, p = batch["scored"].sum(), numpy(params)
    np.testing.assert_allclose(float(metrics["train/loss"]), nats(p, batch, Z).sum() / count, rtol=1e-6)
    np.testing.assert_allclose(float(metrics["train/nll"]), nats(p, batch).sum() / count, rtol=1e-6)
    gradient = jax.tree.map(lambda old, new: np.asarray(old - new), params, new["params"])
    norm = math.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(float(metrics["train/grad_norm"]), norm, rtol=1e-6)
    rng, h = np.random.default_rng(1), 1e-5
    for _ in range(2):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), p)
        ends = [jax.tree.map(lambda x, d, s=s: x + s * h * d, p, direction) for s in (1, -1)]
        slope = np.subtract(*(nats(q, batch, Z).sum() / count for q in ends)) / (2 * h)
        dot = sum((a * b).sum() for a, b in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
        # Weights are float32, and so is what the losses of one device sum to.
        np.testing.assert_allclose(dot, slope, rtol=1e-6)
    assert new["step"] == 1


@pytest.mark.parametrize(("debias", "shares"), [(False, (0.81, 0.09, 0.1)), (True, (0.0, 0.09 / 0.19, 0.1 / 0.19))])
def test_the_average_is_of_the_parameters_after_each_step(debias, shares):
    """Two steps at 0.9, from what stood before the first (0.81) or, without it, of what stood after each."""
    options = {"ema": 0.9, "warmup": 0.0, "learning_rate": 0.1, "name": "adamw", "ema_debias": debias}
    made = tiny.program(tiny.config(optimizer=options))
    first = made.begin(drawn(made))
    step = jax.jit(made.step)
    second, metrics = step(first, tiny.batch())
    third, _ = step(second, tiny.batch(seed=1))
    for *p, e in zip(*(jax.tree.leaves(s["params"]) for s in (first, second, third)),
                     jax.tree.leaves(third["ema"]), strict=True):  # fmt: skip
        np.testing.assert_allclose(e, sum(share * x for share, x in zip(shares, p, strict=True)), rtol=1e-6, atol=1e-6)
        assert np.abs(p[1] - p[0]).max() > 0.05 < np.abs(p[2] - p[1]).max()
    for a, b in zip(*map(jax.tree.leaves, (made.evaluation_params(third), third["ema"])), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(metrics["train/learning_rate"]) == pytest.approx(0.1)


def test_an_evaluation_by_hand():
    """Mean nats a token, bits a byte and their error over all rows of three batches, one row without a target."""
    made = tiny.program(tiny.config())
    params = drawn(made)
    batches = [tiny.batch(seed=s) for s in range(3)]
    batches[1]["scored"][2] = False
    sizes = np.array([0, 1, 1, 2, 3, 1, 1, 4, 1])
    found = evaluate.evaluate(made, evaluate.make_step(made), params, batches, sizes)
    p = numpy(params)
    rows = np.concatenate([nats(p, batch) for batch in batches])
    tokens = np.concatenate([b["scored"].sum(-1) for b in batches])
    text = np.concatenate([np.where(b["scored"], sizes[b["targets"]], 0).sum(-1) for b in batches])
    kept = tokens > 0
    assert kept.sum() == len(kept) - 1
    bits = rows[kept] / math.log(2)
    mean = bits.sum() / text.sum()
    error = math.sqrt(sum((y - mean * s) ** 2 for y, s in zip(bits, text[kept], strict=True)) * 11 / 10) / text.sum()
    assert found["eval/tokens"] == tokens.sum() and found["eval/kind"] == "="
    np.testing.assert_allclose(found["eval/loss"], rows.sum() / tokens.sum(), rtol=1e-6)
    np.testing.assert_allclose(found["eval/bits_per_byte"], mean, rtol=1e-6)
    np.testing.assert_allclose(found["eval/bits_per_byte_se"], error, rtol=1e-5)


def test_an_evaluation_draws_the_noise_of_each_row_from_its_number():
    made, seen = tiny.program(tiny.config()), []
    noted = SimpleNamespace(row_nll=lambda model, batch, keys: jax.random.key_data(keys)[:, 0].astype(float))
    step = evaluate.make_step(dataclasses.replace(made, objective=noted))
    keep = lambda *args: seen.append(np.asarray(step(*args))[:, 0]) or np.ones((4, 3))  # noqa: E731
    evaluate.evaluate(made, keep, made.init()["params"], [tiny.batch(), tiny.batch()], np.ones(tiny.V))
    want = [float(jax.random.key_data(jax.random.fold_in(jax.random.key(0), row))[0]) for row in range(8)]
    np.testing.assert_array_equal(np.concatenate(seen), want)


def test_the_error_of_a_mean_over_rows():
    """Rows (2, 1), (3, 2), (7, 3): ratio 2, residuals 0, -1, 1, so sqrt(3 / 2 * 2) / 6; twice the rows, other n."""
    y, x = np.array([2.0, 3.0, 7.0]), np.array([1.0, 2.0, 3.0])
    assert evaluate.ratio_standard_error(y, x) == pytest.approx(math.sqrt(3) / 6)
    assert evaluate.ratio_standard_error(np.tile(y, 2), np.tile(x, 2)) == pytest.approx(math.sqrt(6 / 5 * 4) / 12)
    assert math.isnan(evaluate.ratio_standard_error(y[:1], x[:1]))


def test_the_error_of_a_mean_is_the_spread_of_means():
    """Forty rows drawn anew 3000 times: the mean of the errors is the spread of the ratios, within 6 %."""
    rng = np.random.default_rng(0)
    x = rng.integers(5, 40, (3000, 40)).astype(float)
    y = 1.5 * x + rng.normal(size=x.shape) * np.sqrt(x)
    spread = (y.sum(1) / x.sum(1)).std()
    # The spread of 3000 ratios is known to 1.3 %, and linearising leaves out terms of 1 / 40.
    errors = [evaluate.ratio_standard_error(a, b) for a, b in zip(y, x, strict=True)]
    assert np.mean(errors) == pytest.approx(spread, rel=0.06)
