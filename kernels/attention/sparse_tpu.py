"""Attention within lists of tiles and columns for TPU (Pallas, Mosaic): a block of queries walks the list of its head.

The list is in scalar memory; each tile of keys and values is copied from where it lies while the one before it is
worked on. Single columns were gathered, and are read whole, `WIDTH` at a time.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.attention.flash import LOG2_E, MASKED, NN, Call, check, dot, in_32_bits, scores
from kernels.attention.flash import Sizes as Tile
from kernels.attention.sparse_lanes import Listed, Sizes, gathered, head_major
from kernels.attention.tpu_common import LANES, compiler_params, interpret_params, spread_lanes

WIDTH = LANES  # columns of a turn
FIXED = 4  # numbers before the tiles of a list: tiles, turns of columns, window, sinks
ROWS = 16  # a block of queries is a multiple of: rows of a register of bfloat16


@in_32_bits
def forward(size: Sizes, q: jax.Array, k: jax.Array, v: jax.Array, listed: Listed, interpret: Any = False) -> jax.Array:
    """As `sparse_lanes.forward`, in float32. Raises NotImplementedError for types other than bfloat16 and float32, and
    for blocks that are no multiple of ROWS."""
    check("pallas_tpu", q, k, v, None)
    if size.block % ROWS:
        raise NotImplementedError(
            f"implementation='pallas_tpu' takes blocks of a multiple of {ROWS} tokens, not {size.block}; use 'lanes'."
        )
    queries, keys, values = (head_major(x, size) for x in (q, k, v))
    L, H, block = queries.shape[0], size.H, size.block
    single = gathered(size, keys, values, listed, WIDTH)
    ends = jnp.broadcast_to(jnp.stack([listed.window, listed.sinks], axis=1)[:, None], (L, size.n, 2))
    counts = jnp.stack([single.tiles, single.turns], axis=2)
    walk = jnp.concatenate([counts, ends, listed.tiles], axis=2).astype(jnp.int32)
    V, steps = single.columns.shape[1], walk.shape[2]
    rows = lambda *shape, memory=None: pl.BlockSpec(  # noqa: E731
        (1, *shape), lambda lane, a: (lane * size.n + a, 0, 0), memory_space=memory
    )
    whole = lambda *shape, memory=None: pl.BlockSpec((1, *shape), lambda lane, a: (lane, 0, 0), memory_space=memory)  # noqa: E731
    out = pl.pallas_call(
        functools.partial(_kernel, size),
        grid=(L, size.n),
        in_specs=[
            rows(1, steps, memory=pltpu.SMEM), whole(1, 1, memory=pltpu.SMEM),
            pl.BlockSpec((1, block, H), lambda lane, a: (lane, a, 0)),
            pl.BlockSpec(memory_space=pl.ANY), pl.BlockSpec(memory_space=pl.ANY),
            whole(V, H), whole(V, H), whole(1, V), rows(1, V),
        ],  # fmt: skip
        out_specs=pl.BlockSpec((1, block, H), lambda lane, a: (lane, a, 0)),
        out_shape=jax.ShapeDtypeStruct(queries.shape, jnp.float32),
        scratch_shapes=[
            pltpu.VMEM((2, block, H), k.dtype), pltpu.VMEM((2, block, H), v.dtype),
            pltpu.SemaphoreType.DMA((2, 2)),
            pltpu.VMEM((block, LANES), jnp.float32), pltpu.VMEM((block, LANES), jnp.float32),
            pltpu.VMEM((block, H), jnp.float32),
        ],  # fmt: skip
        compiler_params=compiler_params("parallel", "arbitrary"),
        interpret=interpret_params(interpret),
        name="sparse_attention",
    )(
        walk.reshape(L * size.n, 1, steps), listed.sink.astype(jnp.float32).reshape(L, 1, 1), queries, keys, values,
        single.keys, single.values, single.columns.reshape(L, 1, V), single.outside.reshape(L * size.n, 1, V),
    )  # fmt: skip
    return out.reshape(L, size.n, block, H)


def _kernel(size: Sizes, walk_ref: Any, sink_ref: Any, q_ref: Any, k_hbm: Any, v_hbm: Any, *refs: Any) -> None:
    k_one, v_one, column_ref, outside_ref, out_ref, k_tile, v_tile, ready, max_ref, sum_ref, acc_ref = refs
    lane, a, block = pl.program_id(0), pl.program_id(1), size.block
    group = jnp.int32(size.N // size.K)
    row = jax.lax.div(lane, jnp.int32(size.N))
    mine = row * size.K + jax.lax.div(lane - row * size.N, group)
    call = Call(Tile(1, size.T, size.T, size.N, size.K, size.H, block, block), size.mask, size.H**-0.5, size.softcap)
    max_ref[...] = jnp.full_like(max_ref, sink_ref[0, 0, 0] * LOG2_E if size.sunk else MASKED)
    sum_ref[...] = jnp.full_like(sum_ref, float(size.sunk))
    acc_ref[...] = jnp.zeros_like(acc_ref)

    def more(k: jax.Array, v: jax.Array, place: jax.Array, seen: jax.Array) -> None:
        """An online softmax with the keys k, v `[S, H]` at `place [1, S]`; `seen` bool, broadcast to `[block, S]`."""
        s, _ = scores(call, q_ref[0], k)
        at = a * block + jax.lax.broadcasted_iota(jnp.int32, s.shape, 0)
        place = jnp.broadcast_to(place, s.shape)
        seen = seen & jnp.broadcast_to(size.mask.evaluate(at, place, (), (), (), size.T, size.T), s.shape)
        s = jnp.where(seen, s, MASKED)
        old = max_ref[...]
        new = jnp.maximum(old, s.max(axis=1, keepdims=True))
        # Where nothing was seen yet the maximum is MASKED, and so are all scores: their weights are not 1, but 0.
        p = jnp.where(seen, jnp.exp2(s - _spread(new, s.shape[1])), 0.0)
        keep = jnp.exp2(old - new)
        max_ref[...] = new
        sum_ref[...] = keep * sum_ref[...] + p.sum(axis=1, keepdims=True)
        acc_ref[...] = acc_ref[...] * _spread(keep, size.H) + dot(p.astype(v.dtype), v, NN)

    def copies(i: Any, slot: Any) -> tuple:
        where = pl.ds(jnp.minimum(walk_ref[0, 0, FIXED + i], size.n - 1) * block, block)
        return tuple(
            pltpu.make_async_copy(hbm.at[mine, where], tile.at[slot], ready.at[x, slot])
            for x, (hbm, tile) in enumerate(((k_hbm, k_tile), (v_hbm, v_tile)))
        )

    def begin(i: Any, slot: Any) -> None:
        for copy in copies(i, slot):
            copy.start()

    number, turns = walk_ref[0, 0, 0], walk_ref[0, 0, 1]
    pl.when(number > 0)(lambda: begin(0, 0))

    @pl.loop(0, number)
    def tiles(i: Any) -> None:
        slot = jax.lax.rem(i, 2)
        pl.when(i + 1 < number)(lambda: begin(i + 1, 1 - slot))
        for copy in copies(i, slot):
            copy.wait()
        place = walk_ref[0, 0, FIXED + i] * block + jax.lax.broadcasted_iota(jnp.int32, (block, block), 1)
        at = a * block + jax.lax.broadcasted_iota(jnp.int32, (block, block), 0)
        more(k_tile[slot], v_tile[slot], place, (at - place < walk_ref[0, 0, 2]) | (place < walk_ref[0, 0, 3]))

    @pl.loop(0, turns)
    def columns(i: Any) -> None:
        cut = pl.ds(pl.multiple_of(i * WIDTH, WIDTH), WIDTH)
        more(k_one[0, cut], v_one[0, cut], column_ref[0, :, cut], outside_ref[0, :, cut] > 0)

    total = sum_ref[...]
    out_ref[0] = acc_ref[...] / _spread(jnp.where(total > 0, total, 1.0), size.H)


def _spread(x: jax.Array, width: int) -> jax.Array:
    """`[block, LANES]`, alike along lanes, as `[block, width]`."""
    if width <= LANES or not width % LANES:
        return spread_lanes(x, width)
    return jnp.broadcast_to(x[:, :1], (x.shape[0], width))
