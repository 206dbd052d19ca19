"""Attention of whole prompts under MInference's patterns (Jiang et al. 2024, arXiv:2407.02490), list by list.

What a head sees is found on the device: tiles of `block` queries by `block` keys, in a list of static length for each
block of queries, and single columns outside of them, which are gathered. Other tiles are not computed. The formulas are
those of `kernels.attention.patterns`, here for rows of unlike lengths. Forward alone: `sparse_lanes` in plain JAX,
`sparse_tpu` and `sparse_gpu` as kernels that walk the same lists. B rows, T tokens, N query heads over K key heads of
width H, n = ceil(T / block) blocks.
"""

import dataclasses
import functools
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels.attention.chunked import accumulator
from kernels.attention.sparse_lanes import Listed, Lists, Sizes, token_major
from kernels.lowering import by_platform, first_that_can
from kernels.masks import Causal, Mask

LANES = "lanes"
PLATFORMS = {"pallas_tpu": "tpu", "pallas_gpu": "cuda"}
KERNELS = {
    "pallas_tpu": "kernels.attention.sparse_tpu", "pallas_gpu": "kernels.attention.sparse_gpu",
    LANES: "kernels.attention.sparse_lanes",
}  # fmt: skip
IMPLEMENTATIONS = tuple(KERNELS)
KINDS = ("a_shape", "vertical_slash", "block_sparse")
ROWS, FIRST, NEAR = 64, 30, 100  # queries that are looked at; first columns and least distances that are always taken
LEAST = 50  # diagonals, and FIRST columns, of vertical_slash


class Pattern(NamedTuple):
    """Of one head: a_shape (sinks, window), vertical_slash (columns, diagonals), block_sparse (key blocks, block)."""

    kind: str
    first: int
    second: int

    def covers(self, T: int) -> bool:
        """Whether it sees every pair of T tokens whatever they are: attention is then dense."""
        if self.kind == "a_shape":
            return self.first + self.second >= T
        if self.kind == "vertical_slash":
            return max(self.first, FIRST) >= T or max(self.second, LEAST) >= T
        return self.first * self.second >= T


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Heads:
    """Patterns of N heads as arrays, which may lie on several devices, and the static lengths of their lists.

    Attributes:
      kind: `[N]` index in KINDS; first, second: `[N]`, of `Pattern`, as far as T tokens have so many.
      kinds: static: those that some head has.
      block: static: tokens of a tile.
      tiles, columns, diagonals: static: the longest list of key blocks of a block of queries, of columns, of distances.
    """

    kind: jax.Array
    first: jax.Array
    second: jax.Array
    kinds: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    block: int = dataclasses.field(metadata={"static": True})
    tiles: int = dataclasses.field(metadata={"static": True})
    columns: int = dataclasses.field(metadata={"static": True})
    diagonals: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, patterns: Sequence[Pattern], T: int) -> "Heads":
        """The patterns of N heads for rows of T tokens. Errors: ValueError as `block_of`."""
        block = block_of(patterns)
        n, tiles, columns, diagonals, sizes = -(-T // block), 1, 0, 0, []
        for kind, first, second in patterns:
            if kind == "vertical_slash":
                first, second = min(max(first, FIRST), T), min(max(second, LEAST), T)
                columns, diagonals, mine = max(columns, first), max(diagonals, second), 2 * second
            elif kind == "a_shape":
                first, second = min(first, T), min(second, T)
                columns, mine = max(columns, first), (second + block - 2) // block + 1
            else:
                first = mine = min(first, n)
            tiles = max(tiles, min(mine, n))
            sizes.append((KINDS.index(kind), first, second))
        kind, first, second = (jnp.asarray(x, jnp.int32) for x in zip(*sizes, strict=True))
        kinds = tuple(kind for kind in KINDS if any(kind == p.kind for p in patterns))
        return cls(kind, first, second, kinds, block, tiles, columns, diagonals)


def block_of(patterns: Sequence[Pattern]) -> int:
    """Tokens of a tile: those of the heads that are block_sparse, else 64.

    Errors: ValueError where two of them differ.
    """
    sizes = sorted({p.second for p in patterns if p.kind == "block_sparse"})
    if len(sizes) > 1:
        raise ValueError(f"block_sparse heads of one layer have blocks of {sizes[0]} and {sizes[1]}; use one for all.")
    return sizes[0] if sizes else 64


def last_rows(q: jax.Array, k: jax.Array, length: jax.Array, rows: int = ROWS) -> jax.Array:
    """`[B, N, R, T]`: `patterns.last_rows` of rows of `length [B]` tokens; q `[B, T, N, H]`, k `[B, T, K, H]`.

    Of a row with fewer than R = min(rows, T) tokens the first rows are zeros.
    """
    (B, T, N, H), K = q.shape, k.shape[2]
    R, dtype = min(rows, T), accumulator(q, k)
    at = length[:, None] - R + jnp.arange(R)
    some = jnp.take_along_axis(q, jnp.maximum(at, 0)[..., None, None], axis=1).reshape(B, R, K, N // K, H)
    x = jnp.einsum("brkgh,bskh->bkgrs", some.astype(dtype), k.astype(dtype), precision="highest") * H**-0.5
    seen = (jnp.arange(T) <= at[..., None])[:, None, None]
    x = jnp.where(seen, x, jnp.finfo(dtype).min)
    return jnp.where(seen, jax.nn.softmax(x, axis=-1), 0).reshape(B, N, R, T)


def diagonal_sums(p: jax.Array, length: jax.Array) -> jax.Array:
    """`[B, N, T]`: `patterns.diagonal_sums` of `last_rows` of rows of `length [B]` tokens."""
    B, N, R, T = p.shape
    turned = jnp.pad(jnp.flip(p, axis=-1), ((0, 0),) * 3 + ((R, T),))  # [.., R + T - 1 - j]

    def row(p: jax.Array, count: jax.Array) -> jax.Array:
        def add(r, total):  # query count - R + r: its key at distance d stands at T - 1 - (count - R + r) + d
            here = lax.dynamic_index_in_dim(p, r, axis=1, keepdims=False)
            return total + lax.dynamic_slice_in_dim(here, 2 * R + T - 1 - count - r, T, axis=1)

        return lax.fori_loop(0, R, add, jnp.zeros((N, T), p.dtype))

    return jax.vmap(row)(turned, length)


def find(q: jax.Array, k: jax.Array, heads: Heads, length: jax.Array) -> Lists:
    """The lists of every head of rows of `length [B]` tokens; q `[B, T, N, H]`, k `[B, T, K, H]`."""
    (B, T, N, _), n = q.shape, -(-q.shape[1] // heads.block)
    shape, a_shape = (B, N), heads.kind == KINDS.index("a_shape")
    columns = jnp.where(jnp.arange(heads.columns) < heads.first[:, None], jnp.arange(heads.columns), T)
    flags = jnp.broadcast_to(jnp.arange(T) < heads.second[:, None], (*shape, T))  # distances
    columns = jnp.broadcast_to(columns, (*shape, heads.columns))
    if "vertical_slash" in heads.kinds:
        p = last_rows(q, k, length)
        found = _best(p.sum(2), heads.columns, heads.first, FIRST, T)
        columns = jnp.where(a_shape[:, None], columns, jnp.sort(found, axis=-1))
        found = _best(diagonal_sums(p, length), heads.diagonals, heads.second, NEAR, T)
        marked = jax.vmap(jax.vmap(lambda at: jnp.zeros(T, bool).at[at].set(True, mode="drop")))(found)
        flags = jnp.where(a_shape[:, None], flags, marked)
    slashed = _touched(flags, n, heads.block)
    apart = jnp.arange(n)[:, None] - jnp.arange(n)
    block = jnp.arange(n)
    hit = jnp.where(apart >= 0, slashed[..., jnp.maximum(apart, 0)], False)
    tiles = jnp.sort(jnp.where(hit, block, n), axis=-1)[..., : heads.tiles]
    if "block_sparse" in heads.kinds:
        pooled = jnp.broadcast_to((heads.kind == KINDS.index("block_sparse"))[:, None, None], (N, n, heads.tiles))
        tiles = jnp.where(pooled, _pooled(q, k, heads, length), tiles)
        columns = jnp.where((heads.kind == KINDS.index("block_sparse"))[:, None], T, columns)
    window = jnp.where(a_shape, heads.second, T)
    return Lists(
        tiles.astype(jnp.int32), columns.astype(jnp.int32), slashed, window, jnp.where(a_shape, heads.first, 0)
    )


def _best(score: jax.Array, most: int, count: jax.Array, forced: int, T: int) -> jax.Array:
    """`[B, N, most]`: the `count [N]` places of the largest scores `[B, N, T]`, the first `forced` too; T else."""
    index = lax.top_k(jnp.where(jnp.arange(T) < forced, jnp.inf, score), most)[1]
    return jnp.where(jnp.arange(most) < count[:, None], index, T)


def _touched(flags: jax.Array, n: int, block: int) -> jax.Array:
    """`[B, N, n]`: whether one of the distances `flags [B, N, T]` passes through tiles so many blocks off the diagonal.

    A tile m blocks below it has the distances m block - block + 1 .. m block + block - 1.
    """
    T = flags.shape[-1]
    before = jnp.pad(jnp.cumsum(flags, axis=-1, dtype=jnp.int32), ((0, 0), (0, 0), (1, 0)))
    middle = jnp.arange(n) * block
    low, high = jnp.maximum(middle - block + 1, 0), jnp.minimum(middle + block, T)
    return before[..., high] > before[..., low]


def _pooled(q: jax.Array, k: jax.Array, heads: Heads, length: jax.Array) -> jax.Array:
    """`[B, N, n, M]`: key blocks of the largest products of means, ascending, as `patterns.block_sparse`; n else."""
    (B, T, N, _), K, dtype = q.shape, k.shape[2], accumulator(q, k)
    block, n = heads.block, -(-T // heads.block)
    real = jnp.arange(T) < length[:, None]
    size = jnp.clip(length[:, None] - jnp.arange(n) * block, 1, block)[..., None, None]

    def mean(x: jax.Array) -> jax.Array:
        x = jnp.where(real[..., None, None], x.astype(dtype), 0)
        x = jnp.pad(x, ((0, 0), (0, n * block - T), (0, 0), (0, 0)))
        return x.reshape(B, n, block, *x.shape[2:]).sum(2) / size

    score = jnp.einsum("banh,bcnh->bnac", mean(q), jnp.repeat(mean(k), N // K, axis=2), precision="highest")
    score = jnp.where(jnp.arange(n) <= jnp.arange(n)[:, None], score, -jnp.inf)
    best, index = lax.top_k(score, heads.tiles)
    some = (jnp.arange(heads.tiles) < heads.first[:, None, None]) & (best > -jnp.inf)
    return jnp.sort(jnp.where(some, index, n), axis=-1)


def pairs(lists: Lists, heads: Heads, length: int) -> jax.Array:
    """`[B, N]`: pairs of a query and a key that are computed for rows of `length` tokens, those of whole tiles."""
    B, N, n, _ = lists.tiles.shape
    tiles = (lists.tiles < n).sum((2, 3)) * heads.block**2
    rows = jnp.minimum(heads.block, length - jnp.arange(n) * heads.block)
    below = (lists.columns[:, :, None] < jnp.arange(n)[:, None] * heads.block).sum(-1)  # gathered by a block of queries
    return tiles + (below * rows).sum(-1)


def sparse_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    heads: Heads,
    *,
    length: jax.Array,
    mask: Mask = Causal(),  # noqa: B008 (immutable)
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Attention of rows of `length` tokens within what the patterns of their heads see and `mask` allows.

    Args:
      q: `[B, T, N, H]`; k, v: `[B, T, K, H]`, finite also behind the length.
      heads: patterns of the N heads.
      length: `[B]` tokens of each row, from the first on.
      mask: without arrays, over places in the row; no query may see later keys.
      softcap, sinks: as in `attention`; patterns are found without them.
      implementation: one of IMPLEMENTATIONS, or None for the one of the platform that the program is lowered for.

    Returns:
      `[B, T, N, H]` in q's type, zeros behind the length and where a query sees nothing.

    Raises:
      ValueError: the implementation is not known. NotImplementedError: a named one cannot do it, with the reason.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation={implementation!r} is not known; use None or one of {IMPLEMENTATIONS}.")
    (_, T, N, H), K, block = q.shape, k.shape[2], heads.block
    size = Sizes(N, K, H, block, -(-T // block), T, mask, softcap, sinks is not None)
    listed = Listed.of(find(q, k, heads, length), size, sinks)
    out = _dispatch(implementation, size, q, k, v, listed)
    real = jnp.arange(T) < length[:, None]
    return jnp.where(real[..., None, None], token_major(out, size, q.shape[0]), 0).astype(q.dtype)


def _dispatch(name: str | None, size: Sizes, *given: Any) -> jax.Array:
    """The named implementation, or that of the platform, known when the program is lowered."""

    def by(name: str) -> Any:
        return functools.partial(importlib.import_module(KERNELS[name]).forward, size)

    if name == LANES:
        return by(name)(*given)
    if name is not None:
        refusal = f"implementation={name!r} runs on {PLATFORMS[name]} only; use implementation={LANES!r} or None."
        return by_platform(*given, default=refusal, **{PLATFORMS[name]: by(name)})
    kernels = {platform: first_that_can(by, (each, LANES)) for each, platform in PLATFORMS.items()}
    return by_platform(*given, default=by(LANES), **kernels)
