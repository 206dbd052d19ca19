"""Rows that are to be filled in, and the loop that fills them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.decoding import keys as key_scheme

Array = jax.Array


class Canvas(NamedTuple):
    """What every sampler of this room begins with.

    Args:
      tokens: [B, T] ids, `mask_id` where a token is wanted.
      keys: [B], one a row: a row's draws depend on no other row.
      vocab_size: V, ids that are drawn.
      mask_id: id of the mask token.
    """

    tokens: Array
    keys: Array
    vocab_size: int
    mask_id: int

    @property
    def masked(self) -> Array:
        """Bool [B, T], where tokens are wanted."""
        return self.tokens == self.mask_id


def begin(
    key: Array,
    shape: tuple[int, int],
    vocab_size: int,
    mask_id: int | None = None,
    init: Array | None = None,
    requests: Array | None = None,
) -> Canvas:
    """The canvas of a request.

    Args:
      key: of the whole batch; each row folds its request number into it.
      shape: (B, T).
      vocab_size: V.
      mask_id: None is V.
      init: [T] or [B, T] ids; all masks if None.
      requests: [B] request numbers; by default the row's index.
    """
    mask_id = vocab_size if mask_id is None else mask_id
    tokens = jnp.full(shape[1:], mask_id) if init is None else jnp.asarray(init)
    if tokens.shape[-1] != shape[1]:
        raise ValueError(f"init has {tokens.shape[-1]} positions; give it length={shape[1]}")
    tokens = jnp.broadcast_to(tokens, shape)
    return Canvas(tokens, key_scheme.row_keys(key, shape[0], requests), vocab_size, mask_id)


def fill(canvas: Canvas, step: Callable, own: Any, unfinished: Callable | None = None) -> tuple[Array, Array]:
    """Repeats `step` until no row is unfinished: tokens [B, T] and calls [B].

    Args:
      canvas: what the first step sees.
      step: (i, tokens [B, T], own) -> tokens, calls of the model that each row made in it, own.
      own: what the sampler carries from step to step.
      unfinished: (i, tokens) -> whether another step follows; by default while there are masks.
    """
    unfinished = unfinished or (lambda i, z: (z == canvas.mask_id).any())

    def body(state):
        i, z, calls, own = state
        z, spent, own = step(i, z, own)
        return i + 1, z, calls + spent, own

    start = (0, canvas.tokens, jnp.zeros(canvas.tokens.shape[0], int), own)
    _, z, calls, _ = jax.lax.while_loop(lambda state: unfinished(*state[:2]), body, start)
    return z, calls
