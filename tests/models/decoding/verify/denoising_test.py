"""Drafted denoising: steps are posteriors of a flow, and chains have the target's law whatever the draft says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from models.decoding.verify import denoising


def test_a_step_is_the_posterior_of_the_flow(x64):
    """x_s given x_t and x_1 by joint Gaussians, x_t being t / s of x_s and more noise, so that both have their law."""
    rng = np.random.default_rng(0)
    for t, s in ((0.0, 0.3), (0.2, 0.5), (0.7, 0.9), (0.5, 1.0)):
        x, v = rng.normal(size=3), rng.normal(size=3)
        data, noise = x + (1 - t) * v, x - t * v
        np.testing.assert_allclose(t * data + (1 - t) * noise, x, atol=1e-14)
        # Var x_s = (1 - s)^2 and x_t = (t / s) x_s + more noise, given x_1: Cov(x_s, x_t) = (t / s) (1 - s)^2.
        cov = t / s * (1 - s) ** 2
        variance = (1 - s) ** 2 - cov**2 / (1 - t) ** 2
        centre = s * data + cov / (1 - t) ** 2 * (x - t * data)
        got = float(denoising.scale(jnp.float64(t), jnp.float64(s)))
        np.testing.assert_allclose(got, np.sqrt(variance), atol=1e-14)
        found = denoising.mean(jnp.asarray(x), jnp.asarray(v), jnp.float64(t), jnp.float64(s))
        np.testing.assert_allclose(found, centre, atol=1e-13)


TIMES = jnp.array([0.0, 0.2, 0.45, 0.7, 0.9])


def exact(x, t):
    """The velocity of the flow to N(1, 0.5^2): x_1 - e on average, given x_t."""
    t = t[:, None]
    variance = (0.5 * t) ** 2 + (1 - t) ** 2
    far = (x - t) / variance
    return (1 + 0.25 * t * far) - (1 - t) * far


def wrong(x, t):
    """Another flow: to the other side."""
    return exact(x, t) - 0.8


def alone(key, x, times, velocity):
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        t, s = jnp.full(len(x), t), jnp.full(len(x), s)
        noise = jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
        x = denoising.mean(x, velocity(x, t), t, s) + denoising.scale(t, s)[:, None] * noise
    return x


N = 20_000


@pytest.mark.parametrize("g", [1, 3])
def test_drafted_chains_have_the_target_s_law_and_the_chances_of_the_closed_form(g, x64):
    """Kolmogorov-Smirnov at 1e-4 of 20,000 chains against the Gaussian of the target's own steps, which is exact; the
    draft's own chains lie far off. Accepted drafts: their chances' sum, within five deviations."""
    x = jax.random.normal(jax.random.key(1), (N, 1))
    out, sums, calls = jax.jit(lambda k: denoising.chains(k, x, exact, wrong, TIMES, g))(jax.random.key(2))
    # Every step is linear in x: the law is a Gaussian, whose moments follow from the steps at two points.
    centre, spread = 0.0, 1.0
    for t, s in zip(TIMES, TIMES[1:], strict=False):
        t, s = t[None], s[None]
        a, b = (float(denoising.mean(jnp.array([[z]]), exact(jnp.array([[z]]), t), t, s)[0, 0]) for z in (0.0, 1.0))
        centre, spread = a + (b - a) * centre, np.hypot((b - a) * spread, float(denoising.scale(t, s)[0]))
    law = stats.norm(centre, spread)
    values = np.asarray(out)[:, 0]
    assert stats.kstest(values, law.cdf).pvalue > 1e-4
    drafts = np.asarray(alone(jax.random.key(3), x, TIMES, wrong))[:, 0]
    assert stats.kstest(drafts, law.cdf).pvalue < 1e-4
    assert not np.any(sums.exhausted) and (np.asarray(sums.count) == 4).all()
    looked, accepted, chance = (float(np.sum(each)) for each in (sums.looked, sums.accepted, sums.chance))
    assert abs(accepted - chance) < 5 * np.sqrt(looked) / 2 and 0.2 < accepted / looked < 0.9
    assert N < int(calls.sum()) < 4 * N


def test_a_draft_that_is_the_target_is_always_accepted():
    x = jax.random.normal(jax.random.key(1), (50, 1))
    _, sums, calls = denoising.chains(jax.random.key(2), x, exact, exact, TIMES, 3)
    assert (np.asarray(calls) == 1).all() and np.array_equal(sums.looked, sums.accepted)  # Three drafts, one own step.
    _, sums, calls = denoising.chains(jax.random.key(2), x, exact, exact, TIMES, 2)
    assert (np.asarray(calls) == 2).all() and sums.looked.sum(axis=1).tolist() == [3.0] * 50  # And none behind the end.
