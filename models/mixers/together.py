"""Rows of several decoding states whose new tokens are read in one pass: side by side in one row `[1, n, ...]`.

What reads each token by itself (products, norms, channels) reads all of them at once, so that weights are read once.
What mixes tokens finds the passes that they belong to in `context.parts`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.mixers.context import Asked, Context


class Rows(NamedTuple):
    """New tokens of the rows of one decoding state, as of `LM.__call__`."""

    tokens: jax.Array  # [B, T] ids, or vectors [B, T, D] in place of embedded ones
    positions: jax.Array  # [B, T], -1 = padding at a row's end
    state: Any
    parents: jax.Array | None = None
    asked: Asked | None = None


def joined(arrays: Sequence[jax.Array]) -> jax.Array:
    """Arrays `[B, T, ...]` of any B and T side by side, `[1, n, ...]`, n the sum of B * T."""
    return jnp.concatenate([x.reshape(1, -1, *x.shape[2:]) for x in arrays], axis=1)


def cut(x: jax.Array, parts: Sequence[Context]) -> list[jax.Array]:
    """`[1, n, ...]` as the arrays `[B, T, ...]` that were joined, by the positions of each part."""
    made, start = [], 0
    for part in parts:
        size = part.positions.size
        made.append(x[:, start : start + size].reshape(*part.positions.shape, *x.shape[2:]))
        start += size
    return made


def apart(mixer: Callable[..., tuple[jax.Array, Any]], x: jax.Array, context: Context, state: Any) -> tuple[Any, Any]:
    """`mixer(x [1, n, D], context, state)` of one that reads each part by itself; `state` is a tuple, by part."""
    cuts = zip(cut(x, context.parts), context.parts, state, strict=True)
    made = [mixer(own, part, held) for own, part, held in cuts]
    return joined([y for y, _ in made]), tuple(held for _, held in made)
