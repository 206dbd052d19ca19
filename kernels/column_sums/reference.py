"""Column sums in a few lines of jnp, with all T x S scores: what the other implementations are compared with."""

import jax
import jax.numpy as jnp

from kernels.attention.reference import einsum
from kernels.attention.scoring import Scoring
from kernels.column_sums.noisy import Noise, noisy


def columns(
    q: jax.Array, k: jax.Array, lse: jax.Array, weights: jax.Array, scoring: Scoring, noise: Noise | None
) -> jax.Array:
    """`[B, K, S]` of q [B, T, N, H], k [B, S, K, H], and finite lse and weights [B, N, T]."""
    B, N, T = lse.shape
    score = _scores(q, k, scoring, noise)
    p = jnp.exp(score - lse[..., None]) * weights[..., None]
    return p.reshape(B, k.shape[2], -1, k.shape[1]).sum(2)


def rows(q: jax.Array, k: jax.Array, scoring: Scoring, noise: Noise | None) -> jax.Array:
    """lse [B, N, T]."""
    return jax.scipy.special.logsumexp(_scores(q, k, scoring, noise), axis=-1)


def _scores(q: jax.Array, k: jax.Array, scoring: Scoring, noise: Noise | None) -> jax.Array:
    """[B, N, T, S], -inf where a key is not seen."""
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    dtype = jnp.promote_types(jnp.promote_types(q.dtype, jnp.float32), k.dtype)
    seen = scoring.mask.traced(T, S)
    k = jnp.where(seen.any((1, 2))[..., None, None], k, 0).astype(dtype)
    q = jnp.where(seen.any((1, 3))[..., None, None], q, 0).astype(dtype)
    score = einsum("btkgh,bskh->bkgts", q.reshape(B, T, K, N // K, H), k).reshape(B, N, T, S) * scoring.scale
    if scoring.softcap is not None:
        score = scoring.softcap * jnp.tanh(score / scoring.softcap)
    at = jnp.arange(N)[:, None, None], S - T + jnp.arange(T)[:, None], jnp.arange(S)
    return jnp.where(seen, noisy(noise, score, *at), -jnp.inf)
