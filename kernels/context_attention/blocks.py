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

from kernels.attention.chunked import accumulator
from kernels.masks import Mask

KERNELS = {"cpu": "chunked", "tpu": "tpu", "cuda": "gpu"}


@functools.partial(jax.jit, static_argnames="scale")
def forward(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, scale: float) -> tuple[jax.Array, jax.Array]:
    """q [B, T, N, H], k and v [B, S, K, H] -> out [B, T, N, H] in q's type, lse [B, N, T] in float32 or float64."""

    def by(module: Any, q, k, v, mask):
        out, lse = module.forward(q, k, v, mask, scale)
        return out.astype(q.dtype), lse.astype(accumulator(q, k, v))

    return _on_platform(by, q, k, v, mask)


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
    """What these keys add to dq, and these queries to dk and dv, in float32 or float64.

    lse, delta [B, N, T]: of the whole row, -inf and 0 where it sees nothing. Each block's gradients have been rounded
    once to the type of its input, as its kernel gives them.
    """
    dtype = accumulator(q, k, v)

    def by(module: Any, q, k, v, d_out, lse, delta, mask):
        # A kernel computes delta from out, d_out and d_lse; with out = 0 it is -d_lse: already known, it is passed there.
        nothing = jnp.zeros((), q.dtype) * d_out
        grads = module.backward(q, k, v, mask, scale, None, None, None, jnp.zeros_like(nothing), lse, d_out, -delta)
        return tuple(g.astype(dtype) for g in grads[:3])

    return _on_platform(by, q, k, v, d_out, lse, delta, mask)


def row_terms(out: jax.Array, lse: jax.Array, d_out: jax.Array, d_lse: jax.Array | None) -> jax.Array:
    """delta = out . d_out - d_lse of each query, [B, N, T] in the type of lse; 0 where nothing is seen."""
    # Not an einsum: a TPU would round its float32 operands to bfloat16.
    delta = (out.astype(lse.dtype) * d_out.astype(lse.dtype)).sum(-1).swapaxes(1, 2)
    delta = delta if d_lse is None else delta - d_lse.astype(lse.dtype)
    return jnp.where(lse > -jnp.inf, delta, 0)


def _on_platform(by: Any, *args: Any) -> Any:
    """by(module, *args) with the module of the platform that the program is lowered for."""

    def on(name: str) -> Any:
        def run(*args):
            try:
                return by(importlib.import_module(f"kernels.attention.{name}"), *args)
            except (NotImplementedError, ImportError):  # a type that the kernel does not know, such as float64
                return by(importlib.import_module("kernels.attention.chunked"), *args)

        return run

    return jax.lax.platform_dependent(
        *args, default=on("chunked"), **{platform: on(name) for platform, name in KERNELS.items()}
    )
