"""Rows of a decoding state: every leaf has the batch in front, whatever the mixer, so that one map does for all."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def insert(state: Any, row: jax.Array | int, one: Any) -> Any:
    """`state` with the rows of `one` (as a rule a single one) in the places `row`, `row` + 1, ...

    Args:
      state: a pytree of `[B, ...]`.
      row: where the first goes, 0..B-1.
      one: the same pytree of `[n, ...]`, the other sizes as in `state`.
    """
    put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), row, axis=0)  # noqa: E731
    return jax.tree.map(put, state, one)


def repeat(state: Any, n: int) -> Any:
    """Each row n times, side by side: roll-outs and beams of one text. `[B, ...]` -> `[B * n, ...]`."""
    return jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), state)


def take(state: Any, rows: jax.Array) -> Any:
    """The rows `rows [n]`, in that order: `[B, ...]` -> `[n, ...]`."""
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), state)


def fit(state: Any, empty: Any) -> Any:
    """`state` with the sizes of `empty`, another state of as many rows without a token, for longer or shorter texts.

    What grows with a text is filled from the front: it is written to the front of the other, or cut to its size, which
    the text must fit.
    """

    def moved(x: jax.Array, other: jax.Array) -> jax.Array:
        if x.shape == other.shape:
            return x
        kept = x[tuple(slice(0, min(a, b)) for a, b in zip(x.shape, other.shape, strict=True))]
        return jax.lax.dynamic_update_slice(other, kept.astype(other.dtype), (0,) * x.ndim)

    return jax.tree.map(moved, state, empty)


def choose(which: jax.Array, state: Any, other: Any) -> Any:
    """Rows of `state` where `which [B]` holds, else those of `other`."""
    pick = lambda a, b: jnp.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
    return jax.tree.map(pick, state, other)


def single(state: Any) -> tuple[Any, Callable[[Any], Any]]:
    """A state of one row without the row's dimension, and what puts it back; a state of more rows as it is.

    For the carry of a loop: XLA on a CPU copies a cache of one row three times in each turn where the loop carries it
    with that dimension, since the products of attention read it without.
    """
    if jax.tree.leaves(state)[0].shape[0] != 1:
        return state, lambda x: x
    return jax.tree.map(lambda x: x[0], state), lambda carried: jax.tree.map(lambda x: x[None], carried)
