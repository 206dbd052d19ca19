"""NeoDiff: exact check 20, against the Poisson law of scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from models.objectives import neodiff

LOSSES = np.array([0.9, 0.1, 2.5, 0.4, 1.3])


def pmf_by_hand(t, K):
    mean, out = 2 * K * t, np.zeros(K + 1)
    for s in range(0, 20 * K + 100):
        tau = np.clip(np.round((s - mean) / np.sqrt(mean) * mean + mean), 0, K) if mean else 0
        out[int(tau)] += scipy.stats.poisson.pmf(s, mean)
    return out


@pytest.mark.parametrize("K", [10, 99])
def test_tau_pmf(K, x64):
    """Check 20, the law of tau."""
    times = np.array([0.0, 0.03, 0.1, 0.5, 0.77, 0.99])
    got = np.asarray(neodiff.tau_pmf(times, K))
    for t, row in zip(times, got, strict=True):
        np.testing.assert_allclose(row, pmf_by_hand(t, K), atol=1e-12)
    np.testing.assert_allclose(got.sum(-1), 1, atol=1e-12)
    assert np.asarray(neodiff.tau_pmf(0.995, K))[K] == 1


def test_tau_is_bimodal_at_the_middle(x64):
    row = np.asarray(neodiff.tau_pmf(0.5, 10))
    assert round(row[0], 2) == 0.13 and round(row[10], 2) == 0.54


@pytest.mark.parametrize("t,expected", [(0.5, [10, 0, 10, 4, 10]), (0.1, [2, 0, 5, 1, 3])])
def test_labels(t, expected, x64):
    """Check 20, the labels."""
    assert neodiff.labels(LOSSES, t, 10).tolist() == expected
    batched = neodiff.labels(np.stack([LOSSES, LOSSES[::-1]]), np.array([t, t]), 10)
    assert batched.tolist() == [expected, expected[::-1]]
    padded = neodiff.labels(np.append(LOSSES, 9.0), t, 10, valid=np.array([1, 1, 1, 1, 1, 0], bool))
    assert padded.tolist() == [*expected, 0]


def test_poisson_quantiles(x64):
    q = np.array([0.1, 0.5, 0.9, 0.999])
    for mean in (0.3, 2.0, 11.0, 19.8):
        np.testing.assert_array_equal(neodiff.poisson_ppf(q, mean, 10), scipy.stats.poisson.ppf(q, mean))


def test_draws_of_tau_follow_the_pmf():
    draw = jax.jit(lambda k: neodiff.sample_tau(k, jnp.full(400, 0.3), 100, 10))
    tau = np.asarray(draw(jax.random.key(0)))
    law = np.asarray(pmf_by_hand(0.3, 10))
    keep = law * tau.size >= 5
    counts = np.bincount(tau.ravel(), minlength=11)
    assert not counts[law == 0].any()
    statistic = ((counts - law * tau.size)[keep] ** 2 / (law * tau.size)[keep]).sum()
    assert statistic < scipy.stats.chi2.ppf(1 - 1e-4, keep.sum() - 1)
    assert "while" not in str(draw.trace(jax.random.key(0)).jaxpr)  # Rejection would be a loop over all devices.


def test_corrupt_has_the_promised_signal(x64):
    x = jnp.full((50, 400, 2), 3.0)
    frozen = jnp.zeros((50, 400), bool).at[:, 0].set(True)
    noised = neodiff.corrupt(jax.random.key(0), x, jnp.full(50, 0.2), 10, noise_factor=2.0, frozen=frozen)
    z, tau = np.asarray(noised.z), np.asarray(noised.tau)
    assert (z[:, 0] == 3).all() and (tau[:, 0] == 0).all()
    for value in np.unique(tau):
        rows = z[:, 1:][tau[:, 1:] == value].ravel()
        keep = max(1 - np.sqrt(value / 10 + 1e-4), 0)
        assert abs(rows.mean() - 3 * np.sqrt(keep)) < 5 * rows.std() / len(rows) ** 0.5
        assert abs(rows.std() / (2 * np.sqrt(1 - keep)) - 1) < 5 / (2 * len(rows)) ** 0.5
    assert float(neodiff.signal(10, 10)) == 0.0


def test_losses_by_hand(x64):
    rng = np.random.default_rng(0)
    predicted, x, logits = rng.normal(size=(1, 3, 4)), rng.normal(size=(1, 3, 4)), rng.normal(size=(1, 3, 5))
    tokens = np.array([[1, 4, 0]])
    error, anchor = neodiff.token_loss(jnp.asarray(predicted), x, jnp.asarray(logits), jnp.asarray(tokens))
    np.testing.assert_allclose(error, ((predicted - x) ** 2).mean(-1))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = 0.9 * np.eye(5)[tokens] + 0.02
    np.testing.assert_allclose(anchor, -(target * log_p).sum(-1))
    np.testing.assert_allclose(
        neodiff.time_loss(jnp.asarray(logits), jnp.asarray(tokens)),
        -np.take_along_axis(log_p, tokens[..., None], -1)[..., 0],
    )
