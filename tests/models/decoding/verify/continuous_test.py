"""Speculative sampling of Gaussians: acceptance, proposals and output by closed forms, and what the released rule
gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from models.decoding.verify import continuous
from tests.plain import verify as plain


@pytest.mark.parametrize("distance", [0.0, 0.5, 1.0, 3.0])
def test_the_overlap_is_the_integral_of_the_smaller_density(distance, x64):
    found = float(continuous.overlap(jnp.array([0.0]), jnp.array([distance]), 1.0))
    # Trapezoid rule, 6e-5 apart: error at most (24 + d) h^2 / 12 max|f''| = 1e-8.
    assert abs(found - plain.gaussian_overlap(distance)) < 1e-8
    scaled = float(continuous.overlap(jnp.array([1.0]), jnp.array([1 + 0.3 * distance]), 0.3))
    assert abs(found - scaled) < 1e-13


def test_densities_and_chances(x64):
    x, mean, scale = np.array([0.3, -1.2]), np.array([0.1, 0.4]), np.array([0.7, 1.3])
    log_p = float(continuous.log_normal(x, mean, scale))
    wanted = sum(
        -0.5 * ((a - b) / s) ** 2 - np.log(s) - 0.5 * np.log(2 * np.pi) for a, b, s in zip(x, mean, scale, strict=True)
    )
    assert abs(log_p - wanted) < 1e-14
    for lp, lq in ((-1.0, -2.0), (-2.0, -1.0), (-1.5, -1.5)):
        assert abs(float(continuous.accept_chance(lp, lq)) - min(1, np.exp(lp - lq))) < 1e-15
        assert abs(float(continuous.residual_chance(lp, lq)) - max(0, 1 - np.exp(lq - lp))) < 1e-15
    assert float(continuous.expected_proposals(0.75)) == 4


def test_the_ratio_of_a_trajectory_counts_every_scale(x64):
    rng = np.random.default_rng(0)
    p, q = rng.uniform(0.5, 2, (2, 5, 3))
    found = float(continuous.trajectory_log_ratio(-1.0, -3.0, jnp.asarray(p), jnp.asarray(q)))
    wanted = 2.0 + sum(np.log(q[t, d] / p[t, d]) for t in range(5) for d in range(3))
    assert abs(found - wanted) < 1e-13


def drawn(distance, n=20_000):
    """n outputs for unit Gaussians, means `distance` apart."""

    def one(key):
        first, rest = jax.random.split(key)
        x = distance + jax.random.normal(first, (1,))
        log = lambda mean: lambda x: continuous.log_normal(x, jnp.full(1, mean), jnp.ones(1))  # noqa: E731
        return continuous.speculative(rest, x, log(0.0), log(distance), lambda key: jax.random.normal(key, (1,)))

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), n))


def test_outputs_follow_the_target_and_cost_what_they_should(x64):
    """d = 1: A = 0.6171, 2.61 proposals after a rejection; Kolmogorov-Smirnov at 1e-4, counts within five errors."""
    found, n = drawn(1.0), 20_000
    A = 2 * stats.norm.cdf(-0.5)
    assert stats.kstest(np.asarray(found.value)[:, 0], "norm").pvalue > 1e-4
    assert stats.kstest(np.asarray(found.value)[:, 0] + 0.05, "norm").pvalue < 1e-4  # The test can fail.
    assert abs(np.mean(found.accepted) - A) < 5 * np.sqrt(A * (1 - A) / n)
    tries = np.asarray(found.tries)[~np.asarray(found.accepted)]
    spread = np.sqrt(A) / (1 - A)  # Standard deviation of a geometric count of success 1 - A.
    assert abs(tries.mean() - 1 / (1 - A)) < 5 * spread / np.sqrt(len(tries))
    assert not np.any(found.exhausted) and np.all(np.asarray(found.tries)[np.asarray(found.accepted)] == 0)


def test_exhaustion_is_said(x64):
    log = lambda x: jnp.sum(x) * 0  # noqa: E731
    found = continuous.speculative(
        jax.random.key(0), jnp.zeros(1), lambda x: log(x) - 50.0, log, lambda key: jnp.ones(1), tries=7
    )
    assert bool(found.exhausted) and int(found.tries) == 7 and not bool(found.accepted)


def test_the_released_rule_is_its_formula_and_gives_the_draft_law(x64):
    x, mp, mq = np.array([0.4, -0.2]), np.array([0.0, 0.1]), np.array([0.5, -0.3])
    sp, sq = np.array([1.1, 0.8]), np.array([0.9, 1.2])
    exact = float(continuous.released_chance(x, mp, sp, mq, sq, temperature=1.0))
    ratio = np.exp(stats.norm.logpdf(x, mp, sp).sum() - stats.norm.logpdf(x, mq, sq).sum())
    assert abs(exact - ratio) < 1e-13
    zp, zq = (x - mp) / sp, (x - mq) / sq
    flat = np.exp(-0.5 * ((zp / 42) ** 2).sum()) / np.exp(-0.5 * ((zq / 42) ** 2).sum())
    factor = np.exp((np.log(sp) - np.log(sq)).sum())
    assert abs(float(continuous.released_factor(np.log(sp), np.log(sq))) - factor) < 1e-14
    found = float(continuous.released_chance(x, mp, sp, mq, sq, factor))
    assert abs(found - factor * flat * sq.prod() / sp.prod()) < 1e-13
    lp, lq = -1.3, -1.1
    assert abs(float(continuous.released_residual(lp, lq, 2.0)) - max(0, 1 - np.exp(lq - lp) / 2)) < 1e-15
    # Means half a scale apart: on average over the draft it accepts all but one in a hundred thousand.
    draws = 0.5 + np.random.default_rng(0).normal(size=(100_000, 1))
    chance = np.asarray(continuous.released_chance(draws, np.zeros(1), np.ones(1), np.full(1, 0.5), np.ones(1)))
    assert np.minimum(chance, 1).mean() > 0.9998
