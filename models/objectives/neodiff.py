"""NeoDiff: diffusion of embeddings with a global time t and an intrinsic time tau in {0..K} of each token.

tau comes from s ~ Poisson(lambda), lambda = 2 K t, stretched about its mean by sqrt(lambda) and clipped:
tau = clip(round((s - lambda) sqrt(lambda) + lambda), 0, K). It is strongly bimodal at middle times.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
FULL_NOISE_ABOVE = 0.99


class Noised(NamedTuple):
    """Noised embeddings z [B, T, D], global times t [B], intrinsic times tau [B, T] in 0..K."""

    z: Array
    t: Array
    tau: Array


def stretch(s: Array, mean: Array, K: int) -> Array:
    """tau of a Poisson draw s of the given mean: clip(round((s - mean) sqrt(mean) + mean), 0, K); elementwise.

    The release divides by the standard deviation and multiplies by the variance: a factor sqrt(mean) in all. Mean 0
    gives 0.
    """
    return jnp.clip(jnp.round((s - mean) * jnp.sqrt(mean) + mean), 0, K)


def tau_pmf(t: Array | float, K: int) -> Array:
    """Law of a token's intrinsic time at global time t: [..., K+1] for t [...]; sums to 1.

    For t > 0.99 all mass is at K, full noise. (The release puts tau = 1 there, K only if tau were normalised.)
    """
    t = _float(t)
    mean = 2 * K * t
    s = _support(K, t.dtype)
    mass = jnp.exp(_log_poisson(s, mean[..., None]))
    tau = stretch(s, mean[..., None], K)
    pmf = (mass[..., None] * (tau[..., None] == jnp.arange(K + 1))).sum(-2)
    return jnp.where(_late(t)[..., None], jnp.arange(K + 1) == K, pmf)


def sample_tau(key: Array, t: Array, length: int, K: int) -> Array:
    """Independent intrinsic times for `length` tokens at global times t [B]: int [B, T]."""
    mean = jnp.broadcast_to(2 * K * _float(t)[:, None], (t.shape[0], length))
    tau = stretch(jax.random.poisson(key, mean).astype(mean.dtype), mean, K).astype(int)
    return jnp.where(_late(t)[:, None], K, tau)


def poisson_ppf(q: Array, mean: Array, K: int) -> Array:
    """Smallest s with P(S <= s) >= q for S ~ Poisson(mean), mean <= 2K; elementwise on broadcast q and mean."""
    q, mean = jnp.broadcast_arrays(_float(q), _float(mean))
    cdf = jnp.cumsum(jnp.exp(_log_poisson(_support(K, mean.dtype), mean[..., None])), -1)
    return (cdf < q[..., None]).sum(-1)


def labels(losses: Array, t: Array | float, K: int, valid: Array | None = None) -> Array:
    """Labels of the time predictor: the intrinsic time that suits each token's loss: int [..., T].

    Tokens are ranked by loss; rank r of n gets tau of the Poisson quantile (r + 1/2) / n, so that hard tokens keep more
    noise. losses [..., T]; t scalar or [...]; valid: bool [..., T], tokens that count (others get label 0).
    """
    losses, t = jnp.asarray(losses), _float(t)
    valid = jnp.ones(losses.shape, bool) if valid is None else jnp.asarray(valid)
    ranked = jnp.where(valid, losses, jnp.inf)
    rank = jnp.argsort(jnp.argsort(ranked, -1, stable=True), -1)
    count = jnp.maximum(valid.sum(-1, keepdims=True), 1)
    mean = 2 * K * t[..., None]
    quantile = jnp.minimum((rank + 0.5) / count, 1 - 1e-6).astype(t.dtype)
    tau = stretch(poisson_ppf(quantile, mean, K).astype(mean.dtype), mean, K)
    tau = jnp.where(_late(t)[..., None], K, tau)
    return jnp.where(valid, tau, 0).astype(int)


def signal(tau: Array, K: int) -> Array:
    """Share of signal abar = 1 - sqrt(tau/K + 1e-4), at least 0 ("sqrt" schedule); elementwise."""
    return jnp.maximum(1 - jnp.sqrt(_float(tau) / K + 1e-4), 0.0)


def corrupt(key: Array, x: Array, t: Array, K: int, noise_factor: float = 1.0, frozen: Array | None = None) -> Noised:
    """z = sqrt(abar) x + sqrt(1 - abar) noise_factor eps with abar of each token's own tau.

    x: clean embeddings [B, T, D]; t: [B]; frozen: bool [B, T], tokens that stay clean (tau = 0, no noise).
    """
    tau_key, noise_key = jax.random.split(key)
    tau = sample_tau(tau_key, t, x.shape[1], K)
    keep = signal(tau, K).astype(x.dtype)[..., None]
    z = jnp.sqrt(keep) * x + jnp.sqrt(1 - keep) * noise_factor * jax.random.normal(noise_key, x.shape, x.dtype)
    if frozen is not None:
        z, tau = jnp.where(frozen[..., None], x, z), jnp.where(frozen, 0, tau)
    return Noised(z, t, tau)


def token_loss(predicted: Array, x: Array, logits: Array, tokens: Array, smoothing: float = 0.1) -> tuple[Array, Array]:
    """Squared error of predicted embeddings and anchor cross-entropy, per token: [B, T], [B, T].

    predicted, x: [B, T, D]; logits [B, T, V] of the predicted embeddings; tokens [B, T]. The anchor is smoothed: the
    target is 1 - smoothing at the token plus smoothing / V everywhere. The release sums both.
    """
    error = jnp.square(predicted - x).mean(-1)
    log_p = jax.nn.log_softmax(logits, -1)
    chosen = jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
    return error, -(1 - smoothing) * chosen - smoothing * log_p.mean(-1)


def time_loss(logits: Array, label: Array) -> Array:
    """Cross-entropy of the time predictor per token: [B, T] from logits [B, T, K+1] and labels [B, T]."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits, -1), label[..., None], -1)[..., 0]


def _float(t: Array | float) -> Array:
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(jnp.result_type(float))


def _late(t: Array) -> Array:
    return _float(t) > FULL_NOISE_ABOVE


def _support(K: int, dtype) -> Array:
    # Beyond the largest mean 2K by 12 standard deviations and 40 the Poisson tail is below 1e-30.
    return jnp.arange(int(2 * K + 12 * (2 * K) ** 0.5 + 40), dtype=dtype)


def _log_poisson(s: Array, mean: Array) -> Array:
    zero = mean == 0
    value = s * jnp.log(jnp.where(zero, 1.0, mean)) - mean - jax.lax.lgamma(s + 1)
    return jnp.where(zero, jnp.where(s == 0, 0.0, -jnp.inf), value)
