"""How chunked attention is cut: the size of tiles and lanes, the layout of arrays, and the scores of one tile."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels import choices
from kernels.attention import schedule
from kernels.masks import And, Mask

# A static walk of up to this many tiles is unrolled: for short sequences a loop costs more than its body.
UNROLLED = 4
# Forward, on a CPU: the cost of a score by the binary logarithm of the side of its tile, and how much dearer one is in
# a tile that has to look at the mask. Measured at H = 64 (docs/LEDGER.md).
SCORE_COST, PARTIAL_COST = ((7, 8, 9), (1.45, 1.17, 1.0)), 1.3

# (block_q, block_k) that a search tries.
TRIED = tuple((q, k) for q in (64, 128, 256, 512) for k in (64, 128, 256, 512))


class Tiling(NamedTuple):
    """How one call is cut. Lanes are [batch lanes, head lanes]; lane_b rows and lane_k key/value heads in each."""

    mask: Mask
    softcap: float | None
    T: int
    S: int
    block_q: int
    block_k: int
    lane_b: int
    lane_k: int
    lanes_k: int
    group: int


class Extra(NamedTuple):
    """Arrays that scores read beside q and k: mask vectors [B|1, length], tiles and bias [B|1, K|1, G|1, T|1, S|1]."""

    q_vectors: tuple
    k_vectors: tuple
    tiles: tuple
    bias: jax.Array | None


def sizes(T: int, S: int, backward: bool) -> tuple[int, int, int]:
    """The largest block of queries, the largest block of keys, and the scores of one tile over all heads of a lane.

    Blocks of 128 skip most of what a mask hides and keep the five products of the backward pass in the second-level
    cache; the forward pass of long sequences gains more from larger products.
    """
    block_q, block_k = (128 if backward else min(512, max(128, length // 4)) for length in (T, S))
    of = f"chunked {'backward' if backward else 'forward'}, T {choices.length(T)}, S {choices.length(S)}"
    block_q, block_k = choices.chosen("attention", of, "cpu", (block_q, block_k), TRIED)
    return block_q, block_k, 2048 * max(block_q, block_k)


def plan(q_shape: tuple, k_shape: tuple, mask: Mask, softcap: float | None = None, backward: bool = False) -> Tiling:
    """Cuts q [B, T, N, H] against k [B, S, K, H] into tiles of the given `sizes`."""
    (B, T, N, _), (S, K) = q_shape, k_shape[1:3]
    most_q, most_k, most = sizes(T, S, backward)
    if not backward:
        most_q, most_k, most = _fitted(mask, T, S, most_q, most_k, most)
    group, block_k = N // K, _even(S, most_k)
    block_q = _even(T, max(8, min(most_q, most // (group * block_k))))
    room = max(1, most // (group * block_q * block_k))
    lane_k = _divisor(K, room)
    lane_b = _divisor(B, room // K) if lane_k == K else 1
    return Tiling(mask, softcap, T, S, block_q, block_k, lane_b, lane_k, K // lane_k, group)


def _fitted(mask: Mask, T: int, S: int, most_q: int, most_k: int, most: int) -> tuple[int, int, int]:
    """The given sizes, or a half or a quarter of them, whichever costs least under the part of the mask known so far.

    Large tiles are faster a score, small ones compute less of what the mask hides: a window of 512 in 2,048 tokens
    leaves 7 of 16 tiles of 512 and 70 of 256 tiles of 128, and takes 0.8 of the time in the latter.
    """
    known = _known(mask)
    choices = [(most_q // n, most_k // n, most // n) for n in (1, 2, 4) if n == 1 or min(most_q, most_k) // n >= 128]
    if known is None or len(choices) == 1:
        return choices[0]

    def cost(sizes: tuple[int, int, int]) -> float:
        block_q, block_k = _even(T, sizes[0]), _even(S, sizes[1])
        table = schedule.classes(known, T, S, block_q, block_k)
        scores = np.sum(np.where(table == schedule.PARTIAL, PARTIAL_COST, table != schedule.EMPTY))
        return float(scores) * block_q * block_k * float(np.interp(np.log2(min(block_q, block_k)), *SCORE_COST))

    return min(choices, key=cost)


def _known(mask: Mask) -> Mask | None:
    """A mask known when the program is traced: every pair that it hides, `mask` hides too. None: nothing is known."""
    if mask.is_static:
        return mask
    if not isinstance(mask, And):
        return None
    left, right = _known(mask.left), _known(mask.right)
    if left is None or right is None:
        return right if left is None else left
    return left & right


def _even(length: int, most: int) -> int:
    """A block of at most `most`, such that the last block is not much shorter than the others."""
    blocks = -(-length // most)
    size = -(-length // blocks)
    return size if blocks == 1 else -(-size // 8) * 8


def _divisor(number: int, most: int) -> int:
    return max(d for d in range(1, number + 1) if number % d == 0 and d <= max(1, most))


class Lists(NamedTuple):
    """For each row of the tile table its FULL columns and then its PARTIAL ones, each in ascending order.

    columns: int32 [B or 1, rows, longest].
    full: int32 [B or 1, rows], where the FULL columns end.
    total: int32 [B or 1, rows], where all columns end.
    """

    columns: Any
    full: Any
    total: Any


def visits(cut: Tiling) -> Lists:
    """The tiles that are computed, in order, for each lane of the batch; numpy when the mask is static.

    Or when what is known of it leaves so few tiles that each is computed: none is looked for, and none is full.
    """
    known, sizes = _known(cut.mask), (cut.T, cut.S, cut.block_q, cut.block_k)
    blocks = -(-cut.T // cut.block_q), -(-cut.S // cut.block_k)
    table = np.full((1, *blocks), schedule.PARTIAL) if known is None else schedule.classes(known, *sizes)
    if not cut.mask.is_static:
        few = (table != schedule.EMPTY).sum() <= UNROLLED
        table = np.minimum(table, schedule.PARTIAL) if few else schedule.classes(cut.mask, *sizes)
    if table.shape[0] > 1 and cut.lane_b > 1:  # a lane computes what any of its rows needs
        table = table.reshape(-1, cut.lane_b, *table.shape[1:])
        lowest, highest = table.min(1), table.max(1)
        table = jnp.where(lowest == highest, lowest, schedule.PARTIAL)
    xp, columns = (np if isinstance(table, np.ndarray) else jnp), table.shape[2]
    order = xp.where(table == schedule.FULL, 0, xp.where(table == schedule.PARTIAL, columns, 2 * columns))
    order = xp.sort(order + xp.arange(columns), axis=2) % columns
    full, total = (table == schedule.FULL).sum(2), (table != schedule.EMPTY).sum(2)
    if xp is np:
        order = order[:, :, : max(int(total.max()), 1)]
    return Lists(*(x.astype(np.int32) for x in (order, full, total)))


def tiles_computed(q_shape: tuple, k_shape: tuple, mask: Mask) -> int:
    """How many tiles of scores [block_q, block_k] a forward pass computes, over all rows of the batch and heads."""
    cut = plan(q_shape, k_shape, mask)
    total = np.asarray(visits(cut).total)
    lanes_b = q_shape[0] // cut.lane_b
    return int(total.sum()) * (lanes_b // total.shape[0]) * cut.lane_b * q_shape[2]


class Lane(NamedTuple):
    """One lane's share of `Extra` and of the lists, and where it stands among the lanes."""

    at_b: Any
    at_k: Any
    columns: Any
    full: Any
    total: Any
    q_vectors: list
    k_vectors: list
    tiles: list
    bias: jax.Array | None
    unrolled: bool


def lane_of(cut: Tiling, extra: Extra, lists: Lists, at: Any) -> Lane:
    """What lane number `at` reads."""
    at_b, at_k = at // cut.lanes_k, at % cut.lanes_k
    unrolled = isinstance(lists.total, np.ndarray) and lists.total.sum() <= UNROLLED
    if unrolled:
        walk = [x[0].tolist() for x in lists]
    else:
        walk = [jnp.asarray(x)[at_b if x.shape[0] > 1 else 0] for x in lists]
    vectors = [[part(x, 0, at_b, cut.lane_b) for x in xs] for xs in (extra.q_vectors, extra.k_vectors)]
    tiles = [_share(cut, x, at_b, at_k) for x in extra.tiles]
    bias = None if extra.bias is None else _share(cut, extra.bias, at_b, at_k)
    return Lane(at_b, at_k, *walk, *vectors, tiles, bias, unrolled)


def extra_of(cut: Tiling, bias: jax.Array | None, dtype: Any) -> Extra:
    """The mask's operands and the bias, padded to whole blocks, heads split into [K, G]."""
    q_vectors, k_vectors, tiles = cut.mask.operands(cut.T, cut.S)
    q_vectors = tuple(_padded(x, 1, cut.block_q) for x in q_vectors)
    k_vectors = tuple(_padded(x, 1, cut.block_k) for x in k_vectors)
    bias = None if bias is None else _grouped(cut, bias.astype(dtype))
    return Extra(q_vectors, k_vectors, tuple(_grouped(cut, x) for x in tiles), bias)


def _grouped(cut: Tiling, x: jax.Array) -> jax.Array:
    B, N, T, S = x.shape
    x = x.reshape(B, *((1, 1) if N == 1 else (N // cut.group, cut.group)), T, S)
    x = x if T == 1 else _padded(x, 3, cut.block_q)
    return x if S == 1 else _padded(x, 4, cut.block_k)


def _padded(x: jax.Array, axis: int, block: int) -> jax.Array:
    missing = -x.shape[axis] % block
    return jnp.pad(x, [(0, missing if a == axis else 0) for a in range(x.ndim)]) if missing else x


def to_queries(cut: Tiling, x: jax.Array) -> jax.Array:
    """[B, T, N, H] -> [lanes, query blocks, lane_b, lane_k, G block_q, H]."""
    B, _, _, H = x.shape
    x = _padded(x, 1, cut.block_q)
    x = x.reshape(B // cut.lane_b, cut.lane_b, -1, cut.block_q, cut.lanes_k, cut.lane_k, cut.group, H)
    x = x.transpose(0, 4, 2, 1, 5, 6, 3, 7)
    return x.reshape(-1, x.shape[2], cut.lane_b, cut.lane_k, cut.group * cut.block_q, H)


def from_queries(cut: Tiling, x: jax.Array) -> jax.Array:
    """The inverse of `to_queries`."""
    blocks, H = x.shape[1], x.shape[-1]
    x = x.reshape(-1, cut.lanes_k, blocks, cut.lane_b, cut.lane_k, cut.group, cut.block_q, H)
    x = x.transpose(0, 3, 2, 6, 1, 4, 5, 7)
    return x.reshape(x.shape[0] * cut.lane_b, blocks * cut.block_q, -1, H)[:, : cut.T]


def to_keys(cut: Tiling, x: jax.Array) -> jax.Array:
    """[B, S, K, H] -> [lanes, lane_b, lane_k, S padded, H]."""
    B, _, _, H = x.shape
    x = _padded(x, 1, cut.block_k)
    x = x.reshape(B // cut.lane_b, cut.lane_b, -1, cut.lanes_k, cut.lane_k, H).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, *x.shape[2:])


def from_keys(cut: Tiling, x: jax.Array) -> jax.Array:
    """The inverse of `to_keys`."""
    x = x.reshape(-1, cut.lanes_k, *x.shape[1:]).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(x.shape[0] * cut.lane_b, x.shape[2], -1, x.shape[-1])[:, : cut.S]


def to_heads(cut: Tiling, sinks: jax.Array | None, dtype: Any, B: int) -> jax.Array | None:
    """[N] -> [lanes, lane_k, G]."""
    if sinks is None:
        return None
    heads = sinks.astype(dtype).reshape(cut.lanes_k, cut.lane_k, cut.group)
    return jnp.tile(heads, (B // cut.lane_b, 1, 1))


def per_row(cut: Tiling, heads: jax.Array) -> jax.Array:
    """[lane_k, G] -> [lane_k, G block_q]: the value of its head for every row of a tile."""
    return jnp.repeat(heads, cut.block_q, axis=1)


def from_bias(cut: Tiling, d_bias: jax.Array, bias: jax.Array) -> jax.Array:
    """The gradient of a bias in the shape and type of the bias."""
    B, N, T, S = bias.shape
    return d_bias[:, :, :, :T, :S].reshape(B, N, T, S).astype(bias.dtype)


def add_bias(cut: Tiling, here: Lane, d_bias: jax.Array, d_score: jax.Array, i: Any, j: Any) -> jax.Array:
    """Adds one tile's share, summed over the axes along which the bias is broadcast."""
    d_score = d_score.reshape(*d_score.shape[:2], cut.group, cut.block_q, cut.block_k)
    summed = [axis for axis in range(5) if d_bias.shape[axis] == 1]
    d_score = d_score.sum(summed, keepdims=True)
    starts = (here.at_b * cut.lane_b, here.at_k * cut.lane_k, 0, i * cut.block_q, j * cut.block_k)
    starts = [0 if axis in summed else start for axis, start in enumerate(starts)]
    old = lax.dynamic_slice(d_bias, starts, d_score.shape)
    return lax.dynamic_update_slice(d_bias, old + d_score, starts)


def add(total: jax.Array, share: jax.Array, j: Any) -> jax.Array:
    """Adds the share of key block `j` to a sum over [b, k, S, H], in place inside a loop."""
    start = j * share.shape[2]
    old = lax.dynamic_slice_in_dim(total, start, share.shape[2], 2)
    return lax.dynamic_update_slice_in_dim(total, old + share, start, 2)


def dot(left: jax.Array, right: jax.Array, letters: str) -> jax.Array:
    """einsum in the type of the accumulator; float32 stays float32 on chips that would round it."""
    return jnp.einsum(letters, left, right, precision=lax.Precision.HIGHEST)


def part(x: jax.Array, axis: int, block: Any, size: int) -> jax.Array:
    """Block number `block` along an axis; an axis of length 1 is broadcast, so all of it."""
    return x if x.shape[axis] == 1 else lax.dynamic_slice_in_dim(x, block * size, size, axis)


def tile_of(cut: Tiling, x: jax.Array, i: Any, j: Any) -> jax.Array:
    """One tile of [b|1, k|1, G|1, T|1, S|1]."""
    return part(part(x, 3, i, cut.block_q), 4, j, cut.block_k)


def _share(cut: Tiling, x: jax.Array, at_b: Any, at_k: Any) -> jax.Array:
    return part(part(x, 0, at_b, cut.lane_b), 1, at_k, cut.lane_k)


def scan_rows(cut: Tiling, here: Lane, row: Callable, carry: Any) -> tuple[Any, Any]:
    """`lax.scan` of row(carry, i) over the blocks of queries, unrolled where the lane is."""
    if not here.unrolled:
        return lax.scan(row, carry, jnp.arange(-(-cut.T // cut.block_q)))
    results = []
    for i in range(-(-cut.T // cut.block_q)):
        carry, result = row(carry, i)
        results.append(result)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *results)


def each(first: Any, end: Any, step: Callable, carry: Any) -> Any:
    """carry = step(n, carry) for n from `first` up to `end`; plain Python in an unrolled lane."""
    if isinstance(first, int) and isinstance(end, int):
        for n in range(first, end):
            carry = step(n, carry)
        return carry
    return lax.fori_loop(first, end, step, carry)


def scores(cut: Tiling, here: Lane, q: jax.Array, k: jax.Array, i: Any, j: Any, partial: bool) -> tuple:
    """Scores of a tile [b, k, G block_q, block_k], -inf where not seen; what is seen; and the slope of the softcap."""
    score, seen, slope = dot(q, k, "bkrh,bksh->bkrs"), None, None
    full = (*score.shape[:2], cut.group, cut.block_q, cut.block_k)
    if here.bias is not None:
        score = (score.reshape(full) + tile_of(cut, here.bias, i, j)).reshape(score.shape)
    if cut.softcap is not None:
        score = cut.softcap * jnp.tanh(score / cut.softcap)
        slope = 1 - (score / cut.softcap) ** 2
    if partial:
        q_index = i * cut.block_q + jnp.arange(cut.block_q, dtype=jnp.int32)[:, None]
        k_index = j * cut.block_k + jnp.arange(cut.block_k, dtype=jnp.int32)[None]
        q_vectors = [part(x, 1, i, cut.block_q)[:, None, None, :, None] for x in here.q_vectors]
        k_vectors = [part(x, 1, j, cut.block_k)[:, None, None, None, :] for x in here.k_vectors]
        tiles = [tile_of(cut, x, i, j) for x in here.tiles]
        seen = cut.mask.evaluate(q_index, k_index, q_vectors, k_vectors, tiles, cut.T, cut.S)
        # Padding sees nothing and is not seen: a key that only padding would see does not count as seen.
        if cut.S % cut.block_k:
            seen = seen & (k_index < cut.S)
        if cut.T % cut.block_q:
            seen = seen & (q_index < cut.T)
        seen = seen.reshape((1,) * (5 - seen.ndim) + seen.shape)
        score = jnp.where(seen, score.reshape(full), -jnp.inf).reshape(score.shape)
        if slope is not None:  # the score of a masked pair may be NaN
            slope = jnp.where(seen, slope.reshape(full), 0).reshape(score.shape)
    return score, seen, slope
