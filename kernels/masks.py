"""Which query sees which key: small immutable masks that combine with `&`, `|`, `~`, and the strings that name them.

    masks.parse("causal & (window(1024) | sinks(4))")
    masks.Causal() & masks.Segments(segment_ids)

This is the public module. Masks that are arithmetic on indices live in `kernels.mask_rules`, those that read arrays
here; the interface that kernels use (`operands`, `evaluate`, `tiles`) is described in `kernels.mask_algebra`.
"""

import dataclasses
import operator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from kernels.mask_algebra import BIG, EMPTY, FULL, PARTIAL, And, Full, Mask, Not, Or, block_ranges, shape_of, spread
from kernels.mask_rules import BlockCausal, BlockDiffusion, Causal, Prefix, Sinks, Window, parse

__all__ = [
    "EMPTY", "FULL", "PARTIAL", "And", "AnyOrder", "BlockCausal", "BlockDiffusion", "Causal", "Dense", "Full", "Mask",
    "Not", "Or", "Positions", "Prefix", "Segments", "Sinks", "Tree", "Window", "parse",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Segments(Mask):
    """Tokens of one segment see one another: q_ids int [B|1, T] or [T], kv_ids [B|1, S] or [S] (q_ids when not given).

    Id 0 is padding: it sees nothing, not even other padding, and nothing sees it.
    """

    arity: ClassVar = (1, 1, 0)
    q_ids: Any
    kv_ids: Any = None

    def operands(self, T, S):
        kv_ids = self.q_ids if self.kv_ids is None else self.kv_ids
        return (_vector(self.q_ids, T, "q_ids"),), (_vector(kv_ids, S, "kv_ids"),), ()

    def evaluate(self, q_index, k_index, q_vectors, k_vectors, tiles, T, S):
        return (q_vectors[0] == k_vectors[0]) & (spread(k_vectors[0], q_vectors[0]) != 0)

    def bounds(self, T, S, block_q, block_k):
        (q,), (k,), _ = self.operands(T, S)
        (q_low, q_high), (k_low, k_high) = block_ranges(q, block_q, q != 0), block_ranges(k, block_k, k != 0)
        some = (_rows(q_low) <= _columns(k_high)) & (_columns(k_low) <= _rows(q_high))
        (q_low, q_high), (k_low, k_high) = block_ranges(q, block_q), block_ranges(k, block_k)
        one = (_rows(q_low) == _columns(k_high)) & (_columns(k_low) == _rows(q_high))
        return some, one & some

    def __str__(self) -> str:
        return f"segments({shape_of(self.q_ids)})"


@dataclasses.dataclass(frozen=True, eq=False)
class Positions(Mask):
    """`rule`, a mask without arrays (or its string), read on positions instead of indices.

    q_pos is int [B|1, T] or [T], kv_pos int [B|1, S] or [S]. A negative position is an empty slot: an empty key is
    never seen and an empty query sees nothing. Used for permuted or sharded layouts and for caches whose slots have no
    order.
    """

    arity: ClassVar = (1, 1, 0)
    q_pos: Any
    kv_pos: Any
    rule: Mask | str = Causal()

    def __post_init__(self):
        if isinstance(self.rule, str):
            object.__setattr__(self, "rule", parse(self.rule))
        if not self.rule.is_static:
            raise ValueError(f"rule={self.rule} holds arrays; a rule is a mask without arrays such as 'causal'.")

    def operands(self, T, S):
        return (_vector(self.q_pos, T, "q_pos"),), (_vector(self.kv_pos, S, "kv_pos"),), ()

    def evaluate(self, q_index, k_index, q_vectors, k_vectors, tiles, T, S):
        q, k = q_vectors[0], k_vectors[0]
        seen = self.rule.evaluate(q, k, (), (), (), 0, 0)
        return seen & (spread(k, q) >= 0) & (spread(q, k) >= 0)

    def bounds(self, T, S, block_q, block_k):
        (q,), (k,), _ = self.operands(T, S)
        (q_low, q_high), (k_low, k_high) = block_ranges(q, block_q, q >= 0), block_ranges(k, block_k, k >= 0)
        # A tile without any filled slot has no range: read the rule on zeros there and discard the answer.
        q_any, k_any = q_high >= 0, k_high >= 0
        ranges = [jnp.where(a, r, 0) for a, r in ((q_any, q_low), (q_any, q_high), (k_any, k_low), (k_any, k_high))]
        some, every = self.rule.interval(*map(_rows, ranges[:2]), *map(_columns, ranges[2:]), 0, 0)
        filled = (_rows(block_ranges(q, block_q)[0]) >= 0) & (_columns(block_ranges(k, block_k)[0]) >= 0)
        return some & _rows(q_any) & _columns(k_any), every & filled

    def __str__(self) -> str:
        return f"positions({shape_of(self.q_pos)}, {shape_of(self.kv_pos)}, {self.rule})"


@dataclasses.dataclass(frozen=True, eq=False)
class AnyOrder(Mask):
    """A query sees the keys that come before it in an order: rank int [B|1, S] or [S], the queries being the last T.

    strict=False: rank_k <= rank_q (content stream, sees itself); strict=True: rank_k < rank_q (query stream).
    Source: XLNet two-stream attention, Yang et al. 2019, section 2.3.
    """

    arity: ClassVar = (1, 1, 0)
    rank: Any
    strict: bool = False

    def operands(self, T, S):
        rank = _vector(self.rank, S, "rank")
        if T > S:
            raise ValueError(f"T={T} queries have no rank among S={S} keys; use T <= {S}.")
        return (rank[:, S - T :],), (rank,), ()

    def evaluate(self, q_index, k_index, q_vectors, k_vectors, tiles, T, S):
        return k_vectors[0] < q_vectors[0] if self.strict else k_vectors[0] <= q_vectors[0]

    def bounds(self, T, S, block_q, block_k):
        (q,), (k,), _ = self.operands(T, S)
        (q_low, q_high), (k_low, k_high) = block_ranges(q, block_q), block_ranges(k, block_k)
        before = operator.lt if self.strict else operator.le
        return before(_columns(k_low), _rows(q_high)), before(_columns(k_high), _rows(q_low))

    def __str__(self) -> str:
        return f"anyorder({shape_of(self.rank)}, strict={self.strict})"


@dataclasses.dataclass(frozen=True, eq=False)
class Tree(Mask):
    """Drafts in a tree: a node sees itself, its ancestors, and every key before the tree (the committed context).

    parents int [B|1, T] or [T]: index of the parent node, -1 for a child of the context; a parent stands before its
    children. The T queries are the nodes and also the last T of the S keys. A depth-first tour numbers the nodes so
    that the descendants of a node are an interval: "is an ancestor of" is then a comparison of three integers.
    """

    arity: ClassVar = (1, 2, 0)
    parents: Any

    def operands(self, T, S):
        parents = _vector(self.parents, T, "parents")
        if T > S:
            raise ValueError(f"T={T} nodes of the tree are among S={S} keys; use S >= {T}.")
        enter, leave = jax.vmap(_tour)(parents)
        context = ((0, 0), (S - T, 0))
        return (enter,), (jnp.pad(enter, context), jnp.pad(leave, context, constant_values=BIG)), ()

    def evaluate(self, q_index, k_index, q_vectors, k_vectors, tiles, T, S):
        return (k_vectors[0] <= q_vectors[0]) & (q_vectors[0] < k_vectors[1])

    def bounds(self, T, S, block_q, block_k):
        (q,), (enter, leave), _ = self.operands(T, S)
        q_low, q_high = map(_rows, block_ranges(q, block_q))
        enter_low, enter_high = map(_columns, block_ranges(enter, block_k))
        leave_low, leave_high = map(_columns, block_ranges(leave, block_k))
        return (enter_low <= q_high) & (q_low < leave_high), (enter_high <= q_low) & (q_high < leave_low)

    def __str__(self) -> str:
        return f"tree({shape_of(self.parents)})"


@dataclasses.dataclass(frozen=True, eq=False)
class Dense(Mask):
    """Any mask at all, as an array: bool [T, S], [B|1, T, S] or [B|1, N|1, T, S]; costs T * S bytes of memory."""

    arity: ClassVar = (0, 0, 1)
    array: Any

    def operands(self, T, S):
        array = jnp.asarray(self.array)
        if array.ndim not in (2, 3, 4) or array.shape[-2:] != (T, S):
            raise ValueError(
                f"array has shape {array.shape}; Dense takes [.., T, S] = [.., {T}, {S}] with 2 to 4 axes."
            )
        array = array[:, None] if array.ndim == 3 else array
        return (), (), ((array != 0).astype(jnp.int8).reshape(*(1,) * (4 - array.ndim), *array.shape),)

    def evaluate(self, q_index, k_index, q_vectors, k_vectors, tiles, T, S):
        return tiles[0] != 0

    def bounds(self, T, S, block_q, block_k):
        (tile,) = self.operands(T, S)[2]
        pad = ((0, 0), (0, 0), (0, -T % block_q), (0, -S % block_k))

        def blocks(fill: int) -> jax.Array:
            padded = jnp.pad(tile, pad, constant_values=fill)
            shape = (*tile.shape[:2], padded.shape[2] // block_q, block_q, padded.shape[3] // block_k, block_k)
            return padded.reshape(shape)

        return blocks(0).max((3, 5)) != 0, blocks(1).min((3, 5)) != 0

    def __str__(self) -> str:
        return f"dense({shape_of(self.array)})"


def _vector(value: Any, length: int, name: str) -> jax.Array:
    vector = jnp.asarray(value, jnp.int32)
    if vector.ndim not in (1, 2) or vector.shape[-1] != length:
        raise ValueError(f"{name} has shape {vector.shape}; it must be [{length}] or [B, {length}].")
    return vector.reshape(-1, length)


def _rows(per_tile: jax.Array) -> jax.Array:
    return per_tile[:, None, :, None]


def _columns(per_tile: jax.Array) -> jax.Array:
    return per_tile[:, None, None, :]


def _tour(parents: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Depth-first number of each node of [n] and one past the number of its last descendant."""
    n = len(parents)
    parents = jnp.where(parents < 0, n, parents)  # the context is the root, node n

    def add(i, size):  # children first: a parent stands before its children
        return size.at[parents[n - 1 - i]].add(size[n - 1 - i])

    size = lax.fori_loop(0, n, add, jnp.ones(n + 1, jnp.int32))

    def visit(i, carry):
        enter, free = carry
        here = free[parents[i]]
        return enter.at[i].set(here), free.at[parents[i]].add(size[i]).at[i].set(here + 1)

    enter, _ = lax.fori_loop(0, n, visit, (jnp.zeros(n, jnp.int32), jnp.zeros(n + 1, jnp.int32)))
    return enter, enter + size[:n]
