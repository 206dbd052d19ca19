"""Ulysses: neighbours exchange heads for tokens, so that each has all tokens of the group for some of the heads.

Source: Jacobs et al. 2023, "DeepSpeed Ulysses", section 3.1; inside a ring, Fang and Zhao 2024, "USP", section 3.
"""

import math

import jax
import jax.numpy as jnp

from kernels.context_attention.task import Task


def check_heads(N: int, K: int, schedule: str, u: int) -> None:
    """Refuses query heads that cannot be dealt out evenly; key/value heads are repeated where they are too few."""
    if N % u:
        raise ValueError(
            f"q has {N} heads, which schedule={schedule!r} cannot deal to {u} ranks; "
            f"use {-(-N // u) * u} heads, or schedule='zigzag'."
        )


def to_heads(task: Task, x: jax.Array, tokens: int = 1, heads: int = 2) -> jax.Array:
    """[.., C tokens, N heads, ..] -> [.., u C tokens, N / u heads, ..] on each rank of a group of u."""
    return _exchange(task, x, heads, tokens)


def to_tokens(task: Task, x: jax.Array, tokens: int = 1, heads: int = 2) -> jax.Array:
    """The inverse of `to_heads`."""
    return _exchange(task, x, tokens, heads)


def copies(K: int, u: int) -> int:
    """How often each key/value head is repeated, so that u divides their number."""
    return math.lcm(K, u) // K


def keys_to_heads(task: Task, x: jax.Array) -> jax.Array:
    """Keys or values [B, C, K, H] dealt out as `to_heads` does, each head repeated `copies` times first."""
    return to_heads(task, jnp.repeat(x, copies(x.shape[2], task.exchange.ulysses), 2))


def keys_to_tokens(task: Task, d: jax.Array, K: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Gradients of `keys_to_heads`: sent home in `dtype`, then the copies of a head are added in the type of d."""
    home = to_tokens(task, d.astype(dtype)).astype(d.dtype)
    return home.reshape(*home.shape[:2], K, -1, home.shape[3]).sum(3)


def _exchange(task: Task, x: jax.Array, split: int, join: int) -> jax.Array:
    u = task.exchange.ulysses
    if u == 1:
        return x
    groups = None if task.size == 1 else [[g * u + i for i in range(u)] for g in range(task.size)]
    with jax.named_scope("heads"):
        return jax.lax.all_to_all(x, task.axis, split, join, axis_index_groups=groups, tiled=True)
