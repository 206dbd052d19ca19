"""Attention in a few lines of jnp: the specification that every other implementation is compared with."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from kernels.attention.scoring import Result, Scoring

# Float32 stays float32 on chips that would round it.
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def forward(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring) -> tuple[jax.Array, jax.Array]:
    """q [B, T, N, H], k and v [B, S, K, H] -> out [B, T, N, H] in q's type, lse [B, N, T] in float32 or float64.

    Sums are float32, or float64 when an input is. A row that sees nothing gives 0 and lse -inf. Keys and values that no
    query sees are never read: they may be NaN.
    """
    B, T, N, H = q.shape
    out_dtype = q.dtype
    S, K = k.shape[1:3]
    dtype = jnp.promote_types(jnp.promote_types(q.dtype, jnp.float32), jnp.promote_types(k.dtype, v.dtype))
    seen = scoring.mask.traced(T, S)
    q = jnp.where(seen.any((1, 3))[..., None, None], q, 0).astype(dtype)
    k, v = (jnp.where(seen.any((1, 2))[..., None, None], x, 0).astype(dtype) for x in (k, v))

    score = einsum("btkgh,bskh->bkgts", q.reshape(B, T, K, N // K, H), k).reshape(B, N, T, S) * scoring.scale
    if scoring.bias is not None:
        score = score + scoring.bias
    if (softcap := scoring.softcap) is not None:
        score = softcap * jnp.tanh(score / softcap)
    score = jnp.where(seen, score, -jnp.inf)
    top = score.max(-1, keepdims=True)
    if (sinks := scoring.sinks) is not None:
        top = jnp.maximum(top, sinks.astype(dtype)[:, None, None])
    # The maximum only keeps exp in range and cancels in both results; an empty row has none.
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    weight = jnp.exp(score - top)
    total = weight.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sinks.astype(dtype)[:, None, None] - top)
    some = total > 0
    total = jnp.where(some, total, 1)
    out = einsum("bkgts,bskh->btkgh", (weight / total).reshape(B, K, N // K, T, S), v)
    lse = jnp.where(some, top + jnp.log(total), -jnp.inf)[..., 0]
    return out.reshape(B, T, N, -1).astype(out_dtype), lse


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, result: Result, cotangent: Result
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """Gradients (dq, dk, dv, dbias, dsinks) by JAX's own differentiation of `forward`; `result` is not needed."""

    def of(q, k, v, bias, sinks):
        return forward(q, k, v, dataclasses.replace(scoring, bias=bias, sinks=sinks))

    return jax.vjp(of, q, k, v, scoring.bias, scoring.sinks)[1](tuple(cotangent))
