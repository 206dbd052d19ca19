"""The work of one device between two hops: its blocks of a step, added to its partial result; and the hops themselves.

Everything here runs inside `shard_map` on local parts: q [B, C, N, H], k and v [B, C, K, H], lse [B, N, C].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels.attention import merge
from kernels.attention.chunked import accumulator
from kernels.context_attention import blocks
from kernels.context_attention.layouts import Exchange
from kernels.context_attention.placement import piece
from kernels.context_attention.plan import Slot, Step
from kernels.masks import Full, Mask

Partial = tuple[jax.Array, jax.Array]  # out [B, C, N, H] and lse [B, N, C], both in the accumulator's type


class Task(NamedTuple):
    """One call: the schedule's parts, the mask as `placement.whole` gives it, T tokens in all, the mesh axis."""

    exchange: Exchange
    mask: Mask
    T: int
    scale: float
    axis: str

    @property
    def size(self) -> int:
        """Places of the ring."""
        return self.exchange.layout.size

    def place(self) -> jax.Array:
        """This device's place in the ring: one place is a group of `ulysses` neighbouring ranks."""
        return jax.lax.axis_index(self.axis) // self.exchange.ulysses


def hop(task: Task, tree: Any, shift: int, scope: str = "forth") -> Any:
    """Sends every array to the device `shift` places further and returns what arrives."""
    u, R = task.exchange.ulysses, task.size
    pairs = [(g * u + i, (g + shift) % R * u + i) for g in range(R) for i in range(u)]
    with jax.named_scope(scope):
        return jax.tree.map(lambda x: jax.lax.ppermute(x, task.axis, pairs), tree)


def nothing(q: jax.Array, k: jax.Array) -> Partial:
    """The partial result before any key was seen."""
    dtype, (B, C, N, _) = accumulator(q, k), q.shape
    return jnp.zeros(q.shape, dtype), jnp.full((B, N, C), -jnp.inf, dtype)


def attend(task: Task, step: Step, have: Partial | None, q: jax.Array, k: jax.Array, v: jax.Array, at: Any) -> Partial:
    """Adds the blocks of a step to `have` (None: nothing yet). at: places in the ring of the owners of q and of k."""
    for slot in step.slots:
        mask = mask_of(task, slot, at)
        if slot.q is None:
            out, lse = blocks.forward(q, k, v, mask, task.scale)
            out = out.astype(lse.dtype)
            have = (out, lse) if have is None else merge(*have, out, lse)
            continue
        have = nothing(q, k) if have is None else have
        i, j = _own(task, slot)
        out, lse = blocks.forward(*(_cut(task, x, 1, p) for x, p in ((q, i), (k, j), (v, j))), mask, task.scale)
        old = _cut(task, have[0], 1, i), _cut(task, have[1], 2, i)
        new = merge(*old, out.astype(lse.dtype), lse)
        have = _put(task, have[0], new[0], 1, i), _put(task, have[1], new[1], 2, i)
    return nothing(q, k) if have is None else have


def gradients(task: Task, step: Step, rows: tuple, k: jax.Array, v: jax.Array, at: Any) -> tuple:
    """dq, dk, dv of the blocks of a step, in the accumulator's type. rows: q, d_out, and lse and delta [2, B, N, C]."""
    q, d_out, terms = rows
    dtype = accumulator(q, k, v)
    d = tuple(jnp.zeros(x.shape, dtype) for x in (q, k, v))
    for slot in step.slots:
        mask = mask_of(task, slot, at)
        if slot.q is None:
            return blocks.backward(q, k, v, d_out, terms[0], terms[1], mask, task.scale)
        i, j = _own(task, slot)
        lse, delta = _cut(task, terms, 3, i)
        some_q, some_d = (_cut(task, x, 1, i) for x in (q, d_out))
        some_k, some_v = (_cut(task, x, 1, j) for x in (k, v))
        part = blocks.backward(some_q, some_k, some_v, some_d, lse, delta, mask, task.scale)
        d = tuple(_put(task, x, _cut(task, x, 1, p) + new, 1, p) for x, new, p in zip(d, part, (i, j, j), strict=True))
    return d


def mask_of(task: Task, slot: Slot, at: Any) -> Mask:
    """The mask of a slot on this device."""
    if slot.full:
        return Full()
    layout = task.exchange.layout
    held = [(p,) if p is not None else range(layout.held) for p in _own(task, slot)]
    q, k = ([layout.chunk(owner, p) for p in places] for owner, places in zip(at, held, strict=True))
    return piece(task.mask, layout, task.T, q, k)


def _own(task: Task, slot: Slot) -> tuple:
    """This rank's chunk of queries and of keys in a slot: a number where all ranks agree; None for all chunks."""

    def pick(options: Any) -> Any:
        if options is None or len(set(options)) == 1:
            return options and options[0]
        return jnp.asarray(options, jnp.int32)[task.place()]

    return pick(slot.q), pick(slot.k)


def _cut(task: Task, x: jax.Array, axis: int, place: Any) -> jax.Array:
    """The chunk at `place` of those that lie along `axis`."""
    c = x.shape[axis] // task.exchange.layout.held
    return jax.lax.dynamic_slice_in_dim(x, place * c, c, axis)


def _put(task: Task, x: jax.Array, chunk: jax.Array, axis: int, place: Any) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, chunk, place * chunk.shape[axis], axis)
