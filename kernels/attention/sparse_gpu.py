"""Attention within lists of tiles and columns for GPU (Pallas, Triton): a program for each block of queries of a head.

Tiles of keys and values are read where they lie, in the order of the list; single columns were gathered.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels import choices
from kernels.attention.flash import LOG2_E, MASKED, NN, Call, check, dot, in_32_bits, pad_to, scores
from kernels.attention.flash import Sizes as Tile
from kernels.attention.sparse_lanes import Listed, Sizes, gathered, head_major

WIDTH = 64  # columns of a turn
LEAST = 16  # tokens of a block, and width of a head, at least


@in_32_bits
def forward(
    size: Sizes, q: jax.Array, k: jax.Array, v: jax.Array, listed: Listed, interpret: bool = False
) -> jax.Array:
    """As `sparse_lanes.forward`, in float32. Raises NotImplementedError for types other than bfloat16 and float32, for
    H above 256, and for blocks that are no power of two from LEAST on."""
    check("pallas_gpu", q, k, v, None)
    if size.H > 256:
        raise NotImplementedError(
            f"implementation='pallas_gpu' takes heads up to 256 wide, not H={size.H}; use 'lanes'."
        )
    if size.block < LEAST or size.block & (size.block - 1):
        raise NotImplementedError(
            f"implementation='pallas_gpu' takes blocks of {LEAST}, 32, 64, ... tokens, not {size.block}; use 'lanes'."
        )
    H = max(LEAST, choices.length(size.H))
    queries, keys, values = (pad_to(head_major(x, size), 2, H) for x in (q, k, v))
    L, block = queries.shape[0], size.block
    single = gathered(size, keys, values, listed, WIDTH)
    counts = jnp.stack([single.tiles, single.turns], axis=2)
    ends = jnp.stack([listed.window, listed.sinks], axis=1).astype(jnp.int32)
    group, V = size.N // size.K, single.columns.shape[1]

    def mine(a: Any, lane: Any) -> tuple:
        row = jax.lax.div(lane, jnp.int32(size.N))
        return row * size.K + jax.lax.div(lane - row * size.N, jnp.int32(group)), 0, 0

    row = lambda *shape: pl.BlockSpec((None, None, *shape), lambda a, lane: (lane, a, *(0,) * len(shape)))  # noqa: E731
    whole = lambda *shape: pl.BlockSpec((None, *shape), lambda a, lane: (lane, *(0,) * len(shape)))  # noqa: E731
    key = pl.BlockSpec((None, size.n * block, H), mine)
    out = pl.pallas_call(
        functools.partial(_kernel, size, H),
        grid=(size.n, L),
        in_specs=[
            row(listed.tiles.shape[2]), row(2), whole(2), whole(1), row(block, H), key, key,
            whole(V, H), whole(V, H), whole(V), row(V),
        ],  # fmt: skip
        out_specs=row(block, H),
        out_shape=jax.ShapeDtypeStruct((L, size.n, block, H), jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="sparse_attention",
    )(
        listed.tiles, counts, ends, listed.sink.astype(jnp.float32)[:, None],
        queries.reshape(L, size.n, block, H), keys, values,
        single.keys, single.values, single.columns, single.outside,
    )  # fmt: skip
    return out[..., : size.H]


def _kernel(size: Sizes, H: int, *refs: Any) -> None:
    tiles_ref, counts_ref, ends_ref, sink_ref, q_ref, k_ref, v_ref, *single, out_ref = refs
    k_one, v_one, column_ref, outside_ref = single
    a, block, q = pl.program_id(0), size.block, q_ref[...]
    call = Call(Tile(1, size.T, size.T, size.N, size.K, H, block, block), size.mask, size.H**-0.5, size.softcap)
    at = (a * block + jnp.arange(block, dtype=jnp.int32))[:, None]

    def more(k: jax.Array, v: jax.Array, place: jax.Array, seen: jax.Array, carry: tuple) -> tuple:
        """An online softmax with the keys k, v `[S, H]` at `place [1, S]`; `seen` bool, broadcast to `[block, S]`."""
        top, total, out = carry
        s, _ = scores(call, q, k)
        seen = jnp.broadcast_to(seen & size.mask.evaluate(at, place, (), (), (), size.T, size.T), s.shape)
        s = jnp.where(seen, s, MASKED)
        new = jnp.maximum(top, s.max(axis=1))
        # Where nothing was seen yet the maximum is MASKED, and so are all scores: their weights are not 1, but 0.
        p, keep = jnp.where(seen, jnp.exp2(s - new[:, None]), 0.0), jnp.exp2(top - new)
        return new, total * keep + p.sum(axis=1), out * keep[:, None] + dot(p.astype(v.dtype), v, NN)

    def tile(i: Any, carry: tuple) -> tuple:
        first = tiles_ref[i] * block
        place = (first + jnp.arange(block, dtype=jnp.int32))[None]
        where = pl.ds(first, block)
        seen = (at - place < ends_ref[0]) | (place < ends_ref[1])
        return more(k_ref[where, :], v_ref[where, :], place, seen, carry)

    def some(i: Any, carry: tuple) -> tuple:
        cut = pl.ds(i * WIDTH, WIDTH)
        return more(k_one[cut, :], v_one[cut, :], column_ref[cut][None], outside_ref[cut][None] > 0, carry)

    top = jnp.full((block,), 0.0, jnp.float32) + (sink_ref[0] * LOG2_E if size.sunk else MASKED)
    carry = top, jnp.full((block,), float(size.sunk), jnp.float32), jnp.zeros((block, H), jnp.float32)
    carry = jax.lax.fori_loop(0, counts_ref[0], tile, carry)
    _, total, out = jax.lax.fori_loop(0, counts_ref[1], some, carry)
    out_ref[...] = out / jnp.where(total > 0, total, 1.0)[:, None]
