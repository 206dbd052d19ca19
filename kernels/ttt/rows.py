"""Arrays as the kernels of TTT want them: one row for each head of each batch row, cut into mini-batches."""

from typing import Any

import jax
import jax.numpy as jnp

from kernels.lact.chunk_scan import Walk


def rows_of(x: jax.Array, walk: Walk) -> jax.Array:
    """`[B, T, N, ...]` -> `[B N, steps, K, ...]` of the whole mini-batches."""
    x = jnp.moveaxis(x[:, : walk.steps * walk.sizes[0]], 2, 1)
    return x.reshape(-1, walk.steps, walk.sizes[0], *x.shape[3:])


def tokens_of(x: jax.Array, heads: int, length: int) -> jax.Array:
    """The inverse of `rows_of`, with zeros behind the last mini-batch."""
    x = jnp.moveaxis(x.reshape(-1, heads, x.shape[1] * x.shape[2], *x.shape[3:]), 1, 2)
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)))


def flat(layers: Any) -> list[jax.Array]:
    """Each map's w and b as `[R, a, b]`, in turn."""
    return [x.reshape(-1, *(x.shape[2:] if x.ndim == 4 else (1, x.shape[2]))) for x in jax.tree.leaves(layers)]


def pairs(values: Any) -> tuple:
    """[w, b, w, b] as ((w, b), (w, b))."""
    return tuple(zip(values[::2], values[1::2], strict=True))
