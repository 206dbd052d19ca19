"""Attention of some queries over some keys, and its gradient under the lse of ALL keys, by the platform's kernel.

The gradient of attention over many keys is a sum over pieces of them once the lse of the whole row and
delta = out . d_out - d_lse are known (Dao 2023, "FlashAttention-2", algorithm 2), so no piece is ever attended twice
for its normaliser and nothing is differentiated automatically.
"""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from kernels.attention import reference
from kernels.attention.chunked import accumulator
from kernels.attention.scoring import Result, Scoring
from kernels.lowering import by_platform
from kernels.masks import Mask

# Up to this many scores per head all of them are computed at once: tiles have nothing to save, and compile for long.
SHORT = {"cpu": 128 * 128, "tpu": 512 * 512, "cuda": 512 * 512}
KERNELS = {"cpu": "chunked", "tpu": "tpu", "cuda": "gpu"}


@functools.partial(jax.jit, static_argnames="scale")
def forward(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, scale: float) -> tuple[jax.Array, jax.Array]:
    """q [B, T, N, H], k and v [B, S, K, H] -> out [B, T, N, H] in q's type, lse [B, N, T] in float32 or float64."""

    def by(module: Any, q, k, v, mask):
        out, lse = module.forward(q, k, v, Scoring(mask, scale))
        return out.astype(q.dtype), lse.astype(accumulator(q, k, v))

    return _on_platform(by, functools.partial(by, reference), q, k, v, mask)


@functools.partial(jax.jit, static_argnames="scale")
def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    d_out: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
    mask: Mask,
    scale: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The addition of these keys to dq, and of these queries to dk and dv, in float32 or float64.

    lse and delta [B, N, T] are those of the whole row, -inf and 0 where it sees nothing. Gradients of a block that come
    from a kernel have been rounded once to the type of its input.
    """
    dtype = accumulator(q, k, v)

    def by(module: Any, q, k, v, d_out, lse, delta, mask):
        # A kernel computes delta from out, d_out and d_lse. It is known already: as d_lse it passes with an out of 0.
        result, cotangent = Result(jnp.zeros_like(d_out), lse), Result(d_out, -delta)
        grads = module.backward(q, k, v, Scoring(mask, scale), result, cotangent)
        return tuple(g.astype(dtype) for g in grads[:3])

    return _on_platform(by, functools.partial(_at_once, scale), q, k, v, d_out, lse, delta, mask)


def _at_once(scale: float, q, k, v, d_out, lse, delta, mask) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`backward` with all scores in memory."""
    dtype, (B, T, N, H), (S, K) = accumulator(q, k, v), q.shape, k.shape[1:3]
    seen = mask.traced(T, S)
    q = jnp.where(seen.any((1, 3))[..., None, None], q, 0).astype(dtype).reshape(B, T, K, N // K, H)
    k, v = (jnp.where(seen.any((1, 2))[..., None, None], x, 0).astype(dtype) for x in (k, v))
    d_out = d_out.astype(dtype).reshape(q.shape)
    lse = jnp.where(lse > -jnp.inf, lse, 0)[..., None]

    score = reference.einsum("btkgh,bskh->bkgts", q, k).reshape(B, N, T, S) * scale
    weight = jnp.exp(jnp.where(seen, score - lse, -jnp.inf))
    d_weight = reference.einsum("btkgh,bskh->bkgts", d_out, v).reshape(B, N, T, S)
    d_score = (weight * (d_weight - delta[..., None]) * scale).reshape(B, K, N // K, T, S)
    dv = reference.einsum("bkgts,btkgh->bskh", weight.reshape(d_score.shape), d_out)
    dq = reference.einsum("bkgts,bskh->btkgh", d_score, k).reshape(B, T, N, H)
    return dq, reference.einsum("bkgts,btkgh->bskh", d_score, q), dv


def _on_platform(by: Any, at_once: Any, q: jax.Array, k: jax.Array, *args: Any) -> Any:
    """at_once(*args) where the scores are few, else by(module, *args), for the platform that is lowered for."""
    scores = q.shape[1] * k.shape[1]

    def on(platform: str) -> Any:
        def run(*args):
            if scores <= SHORT[platform]:
                return at_once(*args)
            try:
                return by(importlib.import_module(f"kernels.attention.{KERNELS[platform]}"), *args)
            except (NotImplementedError, ImportError):  # a type that the kernel does not know, such as float64
                return by(importlib.import_module("kernels.attention.chunked"), *args)

        return run

    if scores <= min(SHORT.values()):
        return at_once(q, k, *args)
    return by_platform(q, k, *args, default=on("cpu"), **{platform: on(platform) for platform in KERNELS})
