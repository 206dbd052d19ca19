"""Causal sliding-window attention. The decoding state holds the tokens of one window, however long the text is."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels import masks
from kernels.attention import attention
from kernels.attention.cached import attend_cache
from kernels.context_attention import context_attention
from models.mixers.context import Context
from models.partition import Partition


class WindowState(NamedTuple):
    """The last W tokens; the token of position p lies in slot p mod W.

    cache: rotated keys, and values, `[B, W, 2, N, H]`.
    position: `[B, W]` int32, -1 = an empty slot.
    """

    cache: jax.Array
    position: jax.Array


def init_state(batch: int, size: int, heads: int, width: int, dtype: jnp.dtype) -> WindowState:
    """The empty state of `size` slots."""
    return WindowState(jnp.zeros((batch, size, 2, heads, width), dtype), jnp.full((batch, size), -1, jnp.int32))


def attend_window(
    partition: Partition,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    context: Context,
    window: int,
    state: WindowState | None,
) -> tuple[jax.Array, WindowState | None]:
    """Softmax attention of every token to itself and the `window - 1` before it in its document.

    q, k and v are `[B, T, N, H]`, q and k already rotated. Positions of a row count up by one over all calls with a
    state; a negative position is padding, which is not kept. Returns (out `[B, T, N, H]`, state).
    """
    mask = context.mask & masks.Window(window - 1, window - 1)
    if state is None:
        if context.segment_ids is not None:
            mask = mask & masks.Segments(context.segment_ids, context.segment_ids)
        return attend(partition, attention, q, k, v, mask), None
    positions = jnp.broadcast_to(context.positions, q.shape[:2])
    new = jnp.stack([k, v], axis=2)
    after = _keep(state, new, positions)
    cache, held = after
    if q.shape[1] > 1:  # Tokens that the last new one no longer sees are still seen by the first.
        cache = jnp.concatenate([state.cache, new.astype(state.cache.dtype)], axis=1)
        held = jnp.concatenate([state.position, positions], axis=1)
    rule = masks.Positions(positions, held, rule=mask)
    return attend(partition, attend_cache, q, cache[:, :, 0], cache[:, :, 1], rule), after


def _keep(state: WindowState, new: jax.Array, positions: jax.Array) -> WindowState:
    """The state with those of T new tokens `[B, T, 2, N, H]` that lie in the window of the last one."""
    size = state.position.shape[1]
    kept = (positions >= 0) & (positions > jnp.max(positions, axis=1, keepdims=True) - size)
    place = (jnp.arange(positions.shape[0])[:, None], jnp.where(kept, positions % size, size))  # `size` is no slot
    write = lambda old, new: old.at[place].set(new.astype(old.dtype), mode="drop")  # noqa: E731
    return WindowState(write(state.cache, new), write(state.position, positions))


def attend(partition: Partition, op: Callable, q: jax.Array, k: jax.Array, v: jax.Array, mask: masks.Mask) -> jax.Array:
    """`op(q, k, v, mask=mask)` on every device's own rows and heads; array masks are cut with the rows they belong to.

    Where devices share a sequence, `kernels.context_attention` takes the place of `op`. The mask then reads places in
    the sequence, whatever the order of the tokens. q is `[B, T, N, H]`, k and v are `[B, S, K, H]`, the result is
    `[B, T, N, H]`.
    """
    if partition.schedule:
        (axis,) = partition.mesh_axes("sequence")
        where = {"mesh": partition.mesh, "axis": axis, "schedule": partition.schedule, "layout": "schedule"}
        return context_attention(q, k, v, mask=mask, **where)
    rows = lambda leaf: ("batch" if leaf.shape[0] == q.shape[0] else None, *(None,) * (leaf.ndim - 1))  # noqa: E731
    heads = ("batch", None, "heads", None)
    run = lambda q, k, v, mask: op(q, k, v, mask=mask)  # noqa: E731
    return partition.run(run, (q, k, v, mask), (heads, heads, heads, jax.tree.map(rows, mask)), heads)
