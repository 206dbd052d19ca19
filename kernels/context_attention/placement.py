"""The mask of a piece: any mask of the whole [T, T] square, read for some chunks of queries and some of keys."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kernels.context_attention.layouts import STRIPED, Layout
from kernels.masks import EMPTY, FULL, PARTIAL, And, AnyOrder, Causal, Full, Mask, Not, Or, Positions, Segments


@dataclasses.dataclass(frozen=True, eq=False)
class Read(Mask):
    """`rule`, whose arrays are taken out of it, read on given positions and given parts of those arrays.

    The first vectors are the positions, int [T] and [S]; the others are what `rule.operands` gave for those tokens:
    vectors [B|1, T] and [B|1, S], tiles [B|1, N|1, T, S]. For masks that have no form of their own for a piece.
    """

    arity: ClassVar = None
    rule: Mask
    q_vectors: tuple
    k_vectors: tuple
    arrays: tuple

    def counts(self):
        return len(self.q_vectors), len(self.k_vectors), len(self.arrays)

    def operands(self, T, S):
        q, k = (tuple(jnp.atleast_2d(x) for x in xs) for xs in (self.q_vectors, self.k_vectors))
        return q, k, self.arrays

    def evaluate(self, q_index, k_index, q_vectors, k_vectors, tiles, T, S):
        return self.rule.evaluate(q_vectors[0], k_vectors[0], q_vectors[1:], k_vectors[1:], tiles, 0, 0)

    def bounds(self, T, S, block_q, block_k):
        some = jnp.ones((1, 1, -(-T // block_q), -(-S // block_k)), bool)
        return some, ~some


def whole(mask: Mask, T: int, restore: Any) -> Mask:
    """The mask with every array in one known form and in sequence order: vectors [B|1, T], tiles [B|1, N|1, T, T].

    restore(x, axis) puts an axis of the given arrays into sequence order.
    """
    if mask.is_static:
        mask.check(T, T)
        return mask
    if isinstance(mask, And | Or):
        return type(mask)(whole(mask.left, T, restore), whole(mask.right, T, restore))
    if isinstance(mask, Not):
        return Not(whole(mask.inner, T, restore))
    q, k, tiles = mask.operands(T, T)
    q, k = (tuple(restore(x, 1) for x in xs) for xs in (q, k))
    if isinstance(mask, Segments):
        return Segments(q[0], k[0])
    if isinstance(mask, Positions):
        return Positions(q[0], k[0], mask.rule)
    if isinstance(
        mask, AnyOrder
    ):  # an order is a causal mask on ranks; none may be negative, which means an empty slot
        rank = q[0] - jnp.minimum(q[0].min(), 0)
        return Positions(rank, rank, Causal(-1 if mask.strict else 0))
    rule = jax.tree.map(lambda _: None, mask)
    return Read(rule, q, k, tuple(restore(restore(x, 2), 3) for x in tiles))


def piece(mask: Mask, layout: Layout, T: int, q_chunks: Any, k_chunks: Any) -> Mask:
    """What `whole` gave, for the queries of some chunks against the keys of some.

    q_chunks, k_chunks: lists of chunk numbers, which may be traced, or None for all tokens in sequence order.
    """
    if layout.size == 1:
        q_chunks = k_chunks = None
    if mask.is_static and (layout.size == 1 or isinstance(mask, Full)):
        return mask
    if mask.is_static:
        return Positions(_positions(layout, T, q_chunks), _positions(layout, T, k_chunks), mask)
    if isinstance(mask, And | Or):
        left, right = (piece(m, layout, T, q_chunks, k_chunks) for m in (mask.left, mask.right))
        return left & right if isinstance(mask, And) else left | right
    if isinstance(mask, Not):
        return Not(piece(mask.inner, layout, T, q_chunks, k_chunks))

    def rows(x, axis=1):
        return _take(x, axis, layout, q_chunks)

    def columns(x, axis=1):
        return _take(x, axis, layout, k_chunks)

    if isinstance(mask, Segments):
        return Segments(rows(mask.q_ids), columns(mask.kv_ids))
    if isinstance(mask, Positions):
        return Positions(rows(mask.q_pos), columns(mask.kv_pos), mask.rule)
    q = (_positions(layout, T, q_chunks)[None], *map(rows, mask.q_vectors))
    k = (_positions(layout, T, k_chunks)[None], *map(columns, mask.k_vectors))
    return Read(mask.rule, q, k, tuple(columns(rows(x, 2), 3) for x in mask.arrays))


def classes(mask: Mask, layout: Layout, T: int) -> np.ndarray:
    """Which chunks of queries see which chunks of keys: int8 [chunks, chunks], EMPTY, PARTIAL or FULL.

    Known when the program is traced: a pair of chunks whose entries depend on arrays is PARTIAL, unless the rest of the
    mask decides it.
    """
    n, c = layout.chunks, T // layout.chunks
    if mask.is_static:
        if layout.kind != STRIPED:
            return np.asarray(mask.tiles(T, T, c, c))
        low = np.arange(n)
        high = low + n * (c - 1)
        some, every = mask.interval(low[:, None], high[:, None], low, high, T, T)
        some, every = (np.broadcast_to(np.asarray(x, bool), (n, n)) for x in (some, every))
        return np.where(some & every, FULL, np.where(some, PARTIAL, EMPTY)).astype(np.int8)
    if isinstance(mask, And | Or):
        left, right = (classes(m, layout, T) for m in (mask.left, mask.right))
        return (np.minimum if isinstance(mask, And) else np.maximum)(left, right)
    if isinstance(mask, Not):
        return FULL - classes(mask.inner, layout, T)
    return np.full((n, n), PARTIAL, np.int8)


def _positions(layout: Layout, T: int, chunks: Any) -> jax.Array:
    """The places in the sequence of the tokens of some chunks: int32 [tokens]."""
    if chunks is None:
        return jnp.arange(T, dtype=jnp.int32)
    c = T // layout.chunks
    within = jnp.arange(c, dtype=jnp.int32)
    each = [g + layout.chunks * within if layout.kind == STRIPED else g * c + within for g in chunks]
    return jnp.concatenate([jnp.asarray(p, jnp.int32) for p in each])


def _take(x: jax.Array, axis: int, layout: Layout, chunks: Any) -> jax.Array:
    """Those tokens of an axis of x that lie in some chunks."""
    if chunks is None:
        return x
    n, c = layout.chunks, x.shape[axis] // layout.chunks
    shape = (c, n) if layout.kind == STRIPED else (n, c)
    cut = x.reshape(*x.shape[:axis], *shape, *x.shape[axis + 1 :])
    at = axis + (layout.kind == STRIPED)
    return jnp.concatenate([jax.lax.dynamic_index_in_dim(cut, g, at, keepdims=False) for g in chunks], axis)
