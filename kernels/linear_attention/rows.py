"""What the kernels read: every head of every row by itself, cut into chunks, and back."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Cut(NamedTuple):
    """The static part of a pass over whole chunks, hashable.

    steps: how many chunks.
    size: C, tokens of each.
    length: T of the arrays, of which the chunks are the first steps C tokens.
    group: how many chunks lie between two memories that are kept for the backward pass; 0 keeps none.
    """

    steps: int
    size: int
    length: int
    group: int = 0

    @property
    def kept(self) -> int:
        """How many memories are kept."""
        return -(-self.steps // self.group) if self.group else 0


class Rows(NamedTuple):
    """Arrays of R = B N rows (row b N + n is head n of batch row b).

    q, k: `[R, steps, C, H]`.
    v: `[R, steps, C, P]`.
    rates: `[R, steps, 2 or 3, C]` in the accumulator's type: the running sum of `decay` in the chunk, how many
        documents have begun in it, and beta with the delta rule. Side by side they are one tile of a TPU.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    rates: jax.Array


def to_rows(x: jax.Array, cut: Cut) -> jax.Array:
    """`[B, T, N, ...]` -> `[B N, steps, C, ...]` of the whole chunks."""
    x = jnp.moveaxis(x[:, : cut.steps * cut.size], 2, 1)
    return x.reshape(-1, cut.steps, cut.size, *x.shape[3:])


def from_rows(x: jax.Array, heads: int, length: int) -> jax.Array:
    """The inverse of `to_rows`, with zeros after the last chunk: `[B, T, N, ...]`."""
    x = jnp.moveaxis(x.reshape(-1, heads, x.shape[1] * x.shape[2], *x.shape[3:]), 1, 2)
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)))


def rates(decay: jax.Array, beta: jax.Array | None, begins: jax.Array, cut: Cut, wide: jnp.dtype) -> jax.Array:
    """`Rows.rates` of decay, beta `[B, T, N]` and begins `[B, T]`, of which only the whole chunks are read."""
    total = jnp.cumsum(to_rows(decay.astype(wide), cut), axis=-1)
    every = jnp.broadcast_to(begins[..., None], (*begins.shape, decay.shape[2]))
    run = jnp.cumsum(to_rows(every.astype(wide), cut), axis=-1)
    both = [total, run] if beta is None else [total, run, to_rows(beta.astype(wide), cut)]
    return jnp.stack(both, axis=2)


def rows_of(tokens: tuple, begins: jax.Array, cut: Cut, wide: jnp.dtype) -> Rows:
    """`Rows` of tokens (q, k, v, decay, beta or None), each `[B, T, N, ...]`."""
    q, k, v, decay, beta = tokens
    return Rows(*(to_rows(x, cut) for x in (q, k, v)), rates(decay, beta, begins, cut, wide))


def gradients_of(tokens: tuple, begins: jax.Array, cut: Cut, gradient: Rows) -> tuple:
    """The gradients of tokens from those of their `Rows`; the one of `Rows.rates` is zero at its count of documents."""
    q, k, v, decay, beta = tokens
    _, pull = jax.vjp(lambda *given: rates(*given, begins, cut, gradient.rates.dtype), decay, beta)
    heads, length = q.shape[2], cut.length
    each = [from_rows(d, heads, length).astype(x.dtype) for d, x in zip(gradient[:3], (q, k, v), strict=True)]
    return (*each, *pull(gradient.rates))


def heads_apart(memory: jax.Array) -> jax.Array:
    """`[B, N, H, P]` -> `[B N, H, P]`."""
    return memory.reshape(-1, *memory.shape[2:])


def kept_of(memories: jax.Array, batch: int) -> jax.Array:
    """`[kept, B N, H, P]` -> `[kept, B, N, H, P]`, as `chunk_scan` keeps its carries."""
    return memories.reshape(memories.shape[0], batch, -1, *memories.shape[2:])
