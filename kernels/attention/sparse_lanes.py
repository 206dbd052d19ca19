"""Attention within lists of tiles and columns in plain JAX: head after head, block of queries after block.

What the kernels of TPUs and GPUs share with it stands here, too: lists, sizes, and how arrays lie. A lane is one query
head of one row, L = B N of them; n blocks of `block` tokens.
"""

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from kernels.attention.chunked import accumulator
from kernels.masks import Mask

TILES, COLUMNS = 8, 256  # of one turn of the loops over lists


class Lists(NamedTuple):
    """What each head computes."""

    tiles: jax.Array  # [B, N, n, M] key blocks of each block of queries, ascending; n behind the last
    columns: jax.Array  # [B, N, V] single keys, ascending; T behind the last
    slashed: jax.Array  # [B, N, n] whether a tile so many blocks below the diagonal is computed; not of block_sparse
    window: jax.Array  # [N] of the keys in tiles those at most so far back are seen, and the first `sinks`
    sinks: jax.Array  # [N]


class Sizes(NamedTuple):
    """What is static of a call; `sunk`: whether there are virtual keys."""

    N: int
    K: int
    H: int
    block: int
    n: int
    T: int
    mask: Mask
    softcap: float | None
    sunk: bool


class Listed(NamedTuple):
    """`Lists` of every lane, and `sink [L]`: the score of its virtual key."""

    tiles: jax.Array  # [L, n, M]
    columns: jax.Array  # [L, V]
    slashed: jax.Array  # [L, n]
    window: jax.Array  # [L]
    sinks: jax.Array  # [L]
    sink: jax.Array  # [L]

    @classmethod
    def of(cls, lists: Lists, size: Sizes, sinks: jax.Array | None) -> Self:
        """The lists `[B, N, ...]`, lane by lane; `sinks [N]` or None."""
        B = lists.tiles.shape[0]
        flat = lambda x: x.reshape(B * size.N, *x.shape[2:])  # noqa: E731
        sink = jnp.zeros(size.N, jnp.float32) if sinks is None else sinks
        tiled = (jnp.tile(x, B) for x in (lists.window, lists.sinks, sink))
        return cls(*map(flat, (lists.tiles, lists.columns, lists.slashed)), *tiled)

    def outside(self, size: Sizes) -> jax.Array:
        """bool `[L, n, V]`: the columns that a block of queries gathers: before it, and in none of its slashes' tiles.

        `columns` ascend, so that they are among the first that lie before the block.
        """
        apart = jnp.arange(size.n)[:, None] - self.columns[:, None] // size.block  # [L, n, V]
        at = jnp.clip(apart, 0, size.n - 1)
        tiled = jnp.take_along_axis(self.slashed[:, None], at, axis=2)
        return (apart > 0) & ~tiled & (self.columns < size.T)[:, None]

    def below(self, size: Sizes) -> jax.Array:
        """`[L, n]`: how many columns lie before each block of queries."""
        return jnp.sum(self.columns[:, None] < jnp.arange(size.n)[:, None] * size.block, axis=2, dtype=jnp.int32)


def key_lanes(size: Sizes, lanes: jax.Array) -> jax.Array:
    """Which of the B K key heads each lane reads."""
    return lanes // size.N * size.K + lanes % size.N // (size.N // size.K)


def head_major(x: jax.Array, size: Sizes) -> jax.Array:
    """[B, T, N|K, H] -> [B N | B K, n block, H], with zeros behind T."""
    B, T, heads, H = x.shape
    x = jnp.pad(x, ((0, 0), (0, size.n * size.block - T), (0, 0), (0, 0)))
    return x.transpose(0, 2, 1, 3).reshape(B * heads, -1, H)


def token_major(out: jax.Array, size: Sizes, B: int) -> jax.Array:
    """[L, n, block, H] -> [B, T, N, H]."""
    out = out.reshape(B, size.N, size.n * size.block, size.H)
    return out.transpose(0, 2, 1, 3)[:, : size.T]


class Gathered(NamedTuple):
    """The columns of every lane as kernels walk them, in whole turns, and how far each block of queries walks."""

    keys: jax.Array  # [L, V, H]
    values: jax.Array  # [L, V, H]
    columns: jax.Array  # [L, V] int32, ascending; T behind the last, at least one
    outside: jax.Array  # [L, n, V] int32, `Listed.outside`
    tiles: jax.Array  # [L, n] tiles in the list of a block
    turns: jax.Array  # [L, n] turns of columns that lie before it


def gathered(size: Sizes, keys: jax.Array, values: jax.Array, listed: Listed, width: int) -> Gathered:
    """Columns for turns of `width`; keys, values `[B K, n block, H]` of `head_major`."""
    more = 1 + -(listed.columns.shape[1] + 1) % width
    columns = jnp.pad(listed.columns, ((0, 0), (0, more)), constant_values=size.T).astype(jnp.int32)
    listed = listed._replace(columns=columns)
    mine, index = key_lanes(size, jnp.arange(len(columns))), jnp.minimum(columns, size.n * size.block - 1)
    single = (x[mine[:, None], index] for x in (keys, values))
    tiles = jnp.sum(listed.tiles < size.n, axis=2, dtype=jnp.int32)
    outside = listed.outside(size).astype(jnp.int32)
    return Gathered(*single, columns, outside, tiles, -(-listed.below(size) // width))


def forward(size: Sizes, q: jax.Array, k: jax.Array, v: jax.Array, listed: Listed) -> jax.Array:
    """`[L, n, block, H]` in float32 or wider; q `[B, T, N, H]`, k, v `[B, T, K, H]`."""
    dtype, (_, _, M) = accumulator(q, k, v), listed.tiles.shape
    queries = head_major(q.astype(dtype) * size.H**-0.5, size).reshape(-1, size.n, size.block, size.H)
    keys, values = (head_major(x.astype(dtype), size) for x in (k, v))
    V = listed.columns.shape[1]
    step, width = min(TILES, M), min(COLUMNS, max(V, 1))
    tiles = jnp.pad(listed.tiles, ((0, 0), (0, 0), (0, -M % step)), constant_values=size.n)
    columns = jnp.pad(listed.columns, ((0, 0), (0, -V % width)), constant_values=size.T)
    listed = listed._replace(tiles=tiles, columns=columns, sink=listed.sink.astype(dtype))

    def lane(args: tuple) -> jax.Array:
        at, q, listed = args
        mine = key_lanes(size, at)
        k, v = (lax.dynamic_index_in_dim(x, mine, keepdims=False) for x in (keys, values))
        return _lane(size, (step, width), q, k, v, listed)

    return lax.map(lane, (jnp.arange(queries.shape[0]), queries, listed))


def _lane(size: Sizes, turn: tuple[int, int], q: jax.Array, k: jax.Array, v: jax.Array, listed: Listed) -> jax.Array:
    """One head of one row: q `[n, block, H]` against k, v `[n block, H]`; `[n, block, H]`."""
    (n, block, H), (step, width), columns = q.shape, turn, listed.columns
    index = jnp.minimum(columns, n * block - 1)
    single = k[index], v[index]

    def row(args: tuple) -> jax.Array:
        a, q, tiles = args
        at = a * block + jnp.arange(block, dtype=jnp.int32)[:, None]

        def some_tiles(turn: jax.Array, carry: tuple) -> tuple:
            some = [lax.dynamic_index_in_dim(tiles, turn * step + i, keepdims=False) for i in range(step)]
            first = [jnp.minimum(tile, n - 1) * block for tile in some]
            part = lambda x: jnp.concatenate([lax.dynamic_slice_in_dim(x, i, block) for i in first])  # noqa: E731
            place = jnp.concatenate([tile * block + jnp.arange(block, dtype=jnp.int32) for tile in some])
            seen = (at - place < listed.window) | (place < listed.sinks)
            return _more(size, q, part(k), part(v), at, place, seen & (place < n * block), carry)

        def some_columns(turn: jax.Array, carry: tuple) -> tuple:
            cut = lambda x: lax.dynamic_slice_in_dim(x, turn * width, width)  # noqa: E731
            place = cut(columns)
            apart = a - place // block
            outside = (apart > 0) & ~listed.slashed[jnp.clip(apart, 0, n - 1)]
            return _more(size, q, cut(single[0]), cut(single[1]), at, place, outside & (place < size.T), carry)

        top = jnp.full(block, listed.sink if size.sunk else -jnp.inf, q.dtype)
        carry = top, jnp.full(block, float(size.sunk), q.dtype), jnp.zeros((block, H), q.dtype)
        carry = lax.fori_loop(0, -(-jnp.sum(tiles < n) // step), some_tiles, carry)
        if columns.shape[0]:
            below = jnp.sum(columns < a * block)
            carry = lax.fori_loop(0, -(-below // width), some_columns, carry)
        _, total, out = carry
        return out / jnp.where(total > 0, total, 1)[:, None]

    return lax.map(row, (jnp.arange(n, dtype=jnp.int32), q, listed.tiles))


def _more(size: Sizes, q, k, v, at, place, seen, carry) -> tuple:
    """An online softmax with the keys k, v `[S, H]` at `place [S]` more; `seen` bool, broadcast to `[block, S]`."""
    top, total, out = carry
    dot = lambda x, y, letters: jnp.einsum(letters, x, y, precision=lax.Precision.HIGHEST)  # noqa: E731
    score = dot(q, k, "th,sh->ts")
    if size.softcap is not None:
        score = size.softcap * jnp.tanh(score / size.softcap)
    seen = seen & size.mask.evaluate(at, place[None], (), (), (), size.T, size.T)
    score = jnp.where(seen, score, -jnp.inf)
    new = jnp.maximum(top, score.max(-1))
    pivot = jnp.where(new == -jnp.inf, 0, new)
    weight, keep = jnp.exp(score - pivot[:, None]), jnp.exp(top - pivot)
    return new, total * keep + weight.sum(-1), out * keep[:, None] + dot(weight, v, "ts,sh->th")
