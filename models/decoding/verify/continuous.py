"""Speculative sampling of vectors: densities in place of tables (Wang et al. 2024, arXiv:2411.11925).

A draft x of density q is accepted with chance min(1, p(x) / q(x)). Otherwise max(0, p - q) is sampled by proposals y of
p, accepted with chance max(0, 1 - q(y) / p(y)). The output has density p. With A = integral of min(p, q), a draft is
accepted with chance A, and a rejected one costs 1 / (1 - A) proposals on average.

The authors' released rule (names with `released`) is another one and is not lossless: see `released_chance`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

Array = jax.Array
INNER_TEMPERATURE, MOST_TRIES = 42.0, 100  # Of the released code.


class Drawn(NamedTuple):
    """value `[D]`; accepted: whether the draft stayed; tries: proposals made; exhausted: none of them was accepted."""

    value: Array
    accepted: Array
    tries: Array
    exhausted: Array


def log_normal(x: Array, mean: Array, scale: Array) -> Array:
    """Log-density of independent Gaussians: x, mean, scale `[..., D]` -> `[...]`."""
    return jnp.sum(norm.logpdf(x, mean, scale), axis=-1)


def accept_chance(log_p: Array, log_q: Array) -> Array:
    """min(1, p(x) / q(x)) of a draft x drawn from q."""
    return jnp.exp(jnp.minimum(0, log_p - log_q))


def residual_chance(log_p: Array, log_q: Array) -> Array:
    """max(0, 1 - q(y) / p(y)), with which a proposal y drawn from p is kept after a rejection."""
    return -jnp.expm1(jnp.minimum(0, log_q - log_p))


def overlap(mean_p: Array, mean_q: Array, scale: Array) -> Array:
    """A = 2 Phi(-d / 2) for Gaussians of one scale, means d scales apart: means `[..., D]`, scale `[..., D]` or a
    number."""
    distance = jnp.sqrt(jnp.sum(((jnp.asarray(mean_p) - mean_q) / scale) ** 2, axis=-1))
    return 2 * norm.cdf(-distance / 2)


def expected_proposals(overlap: Array) -> Array:
    """1 / (1 - A), proposals after a rejection."""
    return 1 / (1 - overlap)


def trajectory_log_ratio(log_p_last: Array, log_q_last: Array, scales_p: Array, scales_q: Array) -> Array:
    """log p / q of a denoised vector whose trajectories share their noise: last Gaussians and scales `[..., steps, D]`.

    The vector's density is that of its last step; with the same noise in all earlier steps these contribute a factor
    prod sigma_q / sigma_p each, of any sign of the mean. [equation 8 of the paper, for shared noise]
    """
    return log_p_last - log_q_last + jnp.sum(jnp.log(scales_q) - jnp.log(scales_p), axis=(-2, -1))


def speculative(
    key: Array,
    x: Array,
    log_p: Callable[[Array], Array],
    log_q: Callable[[Array], Array],
    propose: Callable[[Array], Array],
    tries: int = 1000,
) -> Drawn:
    """x if it is accepted, else a sample of max(0, p - q): densities of one vector `[D]`, propose(key) draws from p.

    After `tries` proposals without success the last one is given and `exhausted` says so.
    """
    first, loop = jax.random.split(key)
    accepted = jax.random.uniform(first, (), x.dtype) < accept_chance(log_p(x), log_q(x))

    def more(state: tuple) -> Array:
        count, _, kept = state
        return ~accepted & ~kept & (count < tries)

    def propose_one(state: tuple) -> tuple:
        count, _, _ = state
        coin, drawn = jax.random.split(jax.random.fold_in(loop, count))
        y = propose(drawn)
        kept = jax.random.uniform(coin, (), x.dtype) < residual_chance(log_p(y), log_q(y))
        return count + 1, y, kept

    count, y, kept = jax.lax.while_loop(more, propose_one, (jnp.zeros((), jnp.int32), x, jnp.zeros((), bool)))
    return Drawn(jnp.where(accepted, x, y), accepted, count, ~accepted & ~kept)


def released_factor(log_var_p: Array, log_var_q: Array) -> Array:
    """exp(sum over D of the difference of summed log-variances), as the released code forms it: `[..., D]` ->
    `[...]`."""
    return jnp.exp(jnp.sum(log_var_p - log_var_q, axis=-1))


def released_chance(
    x: Array,
    mean_p: Array,
    scale_p: Array,
    mean_q: Array,
    scale_q: Array,
    factor: Array | float = 1.0,
    temperature: float = INNER_TEMPERATURE,
) -> Array:
    """The released acceptance, not lossless: factor prod(s_q / s_p) exp((z_q^2 - z_p^2) / (2 temperature^2)), not cut
    at 1.

    z = (x - mean) / scale. At temperature 1 and factor 1 it is p / q. At 42 the exponents are nearly flat, so that
    almost every draft is accepted and the output has the DRAFT's density. Arrays `[..., D]` -> `[...]`.
    """
    z_p, z_q = (x - mean_p) / scale_p, (x - mean_q) / scale_q
    flat = jnp.exp(jnp.sum(z_q**2 - z_p**2, axis=-1) / (2 * temperature**2))
    return factor * jnp.prod(jnp.asarray(scale_q) / scale_p, axis=-1) * flat


def released_residual(log_p: Array, log_q: Array, factor: Array | float = 1.0) -> Array:
    """max(0, p - q / factor) / p, the chance of a proposal in the released code, which gives zeros after 100 tries."""
    return jnp.maximum(0, 1 - jnp.exp(log_q - log_p) / factor)
