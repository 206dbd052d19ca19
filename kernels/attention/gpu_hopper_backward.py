"""The backward kernels of block-sparse flash attention for Hopper GPUs: 64 queries, or 64 keys, a warpgroup.

Scores are recomputed from lse. The key kernel works on transposed tiles [keys, queries] and walks the query heads of
its group, so that nothing is repeated for grouped heads and every sum stays in registers.
Source: Dao 2023, "FlashAttention-2", algorithm 2, with the warp specialisation of the forward kernel.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.attention import schedule
from kernels.attention.flash import LOG2_E, Call, Sizes, in_32_bits, pad_to, row_terms
from kernels.attention.gpu_common import mask_arrays, over_tiles, padded
from kernels.attention.gpu_hopper_common import (
    BLOCK,
    COMPUTE_REGISTERS,
    COPY_REGISTERS,
    PER_COLUMN,
    PER_ROW,
    ROWS,
    WARPGROUPS,
    Cores,
    MaskRefs,
    Ring,
    all_seen,
    along,
    capped,
    check,
    keep_filled,
    mask_refs,
    ring,
    tile,
)

# Rows of the tiles that arrive, and how many of each kind are on their way: what fits registers and shared memory.
STREAMED, STAGES = 64, {64: 4, 128: 3}


class Scratch(NamedTuple):
    """Shared memory and barriers of a program: its own two tiles, and two rings for those that arrive."""

    own: Any
    other: Any
    ready: Any
    first: Ring
    second: Ring


@in_32_bits
def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Any,
    scale: float,
    bias: None,
    softcap: float | None,
    sinks: jax.Array | None,
    out: jax.Array,
    lse: jax.Array,
    d_out: jax.Array,
    d_lse: jax.Array | None,
    interpret: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array, None, jax.Array | None]:
    """Gradients (dq, dk, dv, None, dsinks) of `forward`, given d_out [B, T, N, H] and d_lse [B, N, T] (or None).

    Shapes and errors as in `forward`. A row that sees nothing has gradient 0. dsinks is float32 [N].
    """
    check(q, k, v, scale, bias)
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    by_query, by_key = Sizes(B, T, S, N, K, H, BLOCK, STREAMED), Sizes(B, T, S, N, K, H, STREAMED, BLOCK)
    table, by_column = (schedule.classes(mask, T, S, x.block_q, x.block_k) for x in (by_query, by_key))
    delta, lse, d_sinks = row_terms(out, lse, d_out, d_lse, sinks)
    arrays = [q, d_out.astype(q.dtype), k, v]
    if not all(all_seen(mask, by_query, table, axis) for axis in (0, 1)):
        # What is seen is told by delta: only what no pair uses is lost.
        arrays = [jnp.where(jnp.isfinite(x), x, 0) for x in arrays]
    arrays = [padded(x, by_query, BLOCK) for x in arrays]
    arrays += [pad_to(x, 2, BLOCK) for x in (lse * LOG2_E, delta)]
    call = functools.partial(_call, Cores(interpret is not None), arrays, interpret)
    (dq,) = call(_query_kernel, Call(by_query, mask, scale, softcap), schedule.runs(table), 0)
    dk, dv = call(_key_kernel, Call(by_key, mask, scale, softcap), schedule.runs(schedule.transpose(by_column)), 1)
    return dq[:, :T], dk[:, :S], dv[:, :S], None, d_sinks


def _call(
    cores: Cores, arrays: list, interpret: Any, kernel: Callable, call: Call, runs: Any, q_axis: int
) -> list[jax.Array]:
    """One program for each (block of queries, query head, row of the batch), or with q_axis 1 of keys and key heads."""
    sizes, q, k = call.sizes, arrays[0], arrays[2]
    masks = [x.swapaxes(2, 3) if q_axis and x.ndim == 4 else x for x in mask_arrays(call.mask, sizes)]
    outputs, heads = ([k, k], sizes.K) if q_axis else ([q], sizes.N)
    own = tile((WARPGROUPS, ROWS, sizes.H), q.dtype)
    return plgpu.kernel(
        functools.partial(_kernel, kernel, call, cores, q_axis, len(outputs)),
        out_type=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        scratch_types=[
            Scratch(
                *(own, own),
                plgpu.Barrier(num_arrivals=2, num_barriers=WARPGROUPS),
                *(ring(STAGES[sizes.H], STREAMED, sizes.H, q.dtype) for _ in range(2)),
            )
        ],
        compiler_params=plgpu.CompilerParams(approx_math=True),
        grid=(outputs[0].shape[1] // BLOCK, heads, sizes.B),
        grid_names=("row", "head", "batch"),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        interpret=interpret,
    )(*map(jnp.asarray, runs), *arrays, *masks)


class _Place(NamedTuple):
    """What one warpgroup of a program works on, and fold(tile, carry), the walk over its tiles."""

    batch: Any
    head: Any
    start: Any
    fold: Callable


def _kernel(
    kernel: Callable,
    call: Call,
    cores: Cores,
    q_axis: int,
    n_outputs: int,
    bounds_ref: Any,
    counts_ref: Any,
    *refs: Any,
) -> None:
    """What both kernels do around their tiles: one warpgroup copies, two load their own rows, compute and store."""
    *inputs, scratch = refs
    arrays, masks, outputs = inputs[:6], inputs[6:-n_outputs], inputs[-n_outputs:]
    row, head, batch = (lax.axis_index(name) for name in ("row", "head", "batch"))
    at, warpgroup = batch if bounds_ref.shape[0] > 1 else 0, lax.axis_index("warpgroup")
    start, mine, streamed = row * BLOCK + warpgroup * ROWS, arrays[:2], arrays[2:4]
    if q_axis:
        mine, streamed = streamed, mine
    group = call.sizes.group

    def fold(visit: Callable, carry: Any) -> Any:
        """visit(masked, head, block, carry) over the tiles: of one key head, or of all query heads of a group."""

        def of_head(other: Any, carry: Any) -> Any:
            return over_tiles(
                bounds_ref.at[at, row], counts_ref.at[at, row], lambda masked, i, c: visit(masked, other, i, c), carry
            )

        if not q_axis:
            return of_head(lax.div(head, jnp.int32(group)), carry)
        return lax.fori_loop(0, group, lambda i, carry: of_head(head * group + i, carry), carry)

    @pl.when(warpgroup < WARPGROUPS)
    def _compute():
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        own, rows = [x.at[warpgroup] for x in scratch[:2]], pl.ds(start, ROWS)
        for ref, tiles in zip(mine, own, strict=True):
            plgpu.copy_gmem_to_smem(ref.at[batch, rows, head], tiles, scratch.ready.at[warpgroup])
        given = mask_refs(call, cores, masks, q_axis)
        place = _Place(batch, head, start, fold)
        results = kernel(call, cores, given, place, own, scratch, arrays[4:])
        for result, tiles, ref in zip(results, own, outputs, strict=False):
            tiles[...] = result.astype(ref.dtype)
        plgpu.commit_smem()
        for tiles, ref in zip(own, outputs, strict=False):
            plgpu.copy_smem_to_gmem(tiles, ref.at[batch, rows, head])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == WARPGROUPS)
    def _copy():
        plgpu.set_max_registers(COPY_REGISTERS, action="decrease")

        def source(ref: Any) -> Callable:
            return lambda at: ref.at[batch, pl.ds(at[1] * STREAMED, STREAMED), at[0]]

        keep_filled(
            lambda visit, step: fold(lambda _, other, i, step: visit((other, i), step), step),
            list(zip(map(source, streamed), (scratch.first, scratch.second), strict=True)),
        )


def _query_kernel(
    call: Call, cores: Cores, masks: MaskRefs, place: _Place, own: list, scratch: Scratch, terms: list
) -> list[jax.Array]:
    """dq of 64 queries."""
    (q, d_out), (keys, values), shape = own, scratch[3:], (ROWS, STREAMED)
    rows = place.batch, place.head, pl.ds(place.start, ROWS)
    lse, delta = (along(cores.load(ref, rows, PER_ROW), shape) for ref in terms)
    mine = masks.own(place.batch, place.start)
    ready = scratch.ready.at[lax.axis_index("warpgroup")]
    plgpu.barrier_wait(ready)

    def visit(masked: bool, _: Any, column: Any, carry: tuple) -> tuple:
        dq, step = carry
        slot = lax.rem(step, jnp.int32(keys.tiles.shape[0]))
        plgpu.barrier_wait(keys.ready.at[slot])
        plgpu.barrier_wait(values.ready.at[slot])
        pairs = (q, keys.tiles.at[slot]), (d_out, values.tiles.at[slot])
        (p, slope), dp = cores.score_both(*pairs, lambda raw: _probabilities(call, raw, lse))
        plgpu.barrier_arrive(values.freed.at[slot])
        ds = _d_scores(p, dp, delta, slope)
        if masked:
            seen = masks.visible(mine, place.batch, place.head, place.start, column * STREAMED, STREAMED)
            ds = jnp.where(seen, ds, 0.0)
        dq = cores.accumulate(dq, ds.astype(q.dtype), keys.tiles.at[slot])
        plgpu.barrier_arrive(keys.freed.at[slot])
        return dq, step + 1

    dq, _ = place.fold(visit, (cores.full((ROWS, call.sizes.H), 0.0), jnp.int32(0)))
    return [dq * call.scale]


def _key_kernel(
    call: Call, cores: Cores, masks: MaskRefs, place: _Place, own: list, scratch: Scratch, terms: list
) -> list[jax.Array]:
    """dk and dv of 64 keys; tiles are [keys, queries]."""
    (k, v), (queries, d_outs), shape = own, scratch[3:], (ROWS, STREAMED)
    mine = masks.own(place.batch, place.start)
    plgpu.barrier_wait(scratch.ready.at[lax.axis_index("warpgroup")])

    def visit(masked: bool, head: Any, row: Any, carry: tuple) -> tuple:
        dk, dv, step = carry
        slot = lax.rem(step, jnp.int32(queries.tiles.shape[0]))
        columns = place.batch, head, pl.ds(row * STREAMED, STREAMED)
        lse = cores.load(terms[0], columns, PER_COLUMN)
        plgpu.barrier_wait(queries.ready.at[slot])
        p, slope = _probabilities(call, cores.scores(k, queries.tiles.at[slot]), along(lse, shape, 1))
        if masked:
            p = jnp.where(masks.visible(mine, place.batch, head, place.start, row * STREAMED, STREAMED), p, 0.0)
        plgpu.barrier_wait(d_outs.ready.at[slot])
        delta = cores.load(terms[1], columns, PER_COLUMN)
        dv, dp = cores.accumulate_and_score(dv, p.astype(k.dtype), d_outs.tiles.at[slot], v)
        plgpu.barrier_arrive(d_outs.freed.at[slot])
        ds = _d_scores(p, dp, along(delta, shape, 1), slope)
        dk = cores.accumulate(dk, ds.astype(k.dtype), queries.tiles.at[slot])
        plgpu.barrier_arrive(queries.freed.at[slot])
        return dk, dv, step + 1

    zeros = cores.full((ROWS, call.sizes.H), 0.0)
    dk, dv, _ = place.fold(visit, (zeros, zeros, jnp.int32(0)))
    return [dk * call.scale, dv]


def _probabilities(call: Call, raw: jax.Array, lse: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """The probabilities of a tile from its products and lse in base 2, and the slope of the softcap, if any."""
    s, factor, slope = capped(call, raw)
    return jnp.exp2(s * factor - lse), slope


def _d_scores(p: jax.Array, dp: jax.Array, delta: jax.Array, slope: jax.Array | None) -> jax.Array:
    """The gradient of a tile's scores, before they are scaled."""
    ds = p * (dp - delta)
    return ds if slope is None else ds * slope
