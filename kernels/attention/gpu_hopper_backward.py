"""The backward kernel of block-sparse flash attention for Hopper GPUs: five products a tile, and the same bits always.

One program has two blocks of 64 keys of one head, a warpgroup each, whose dk and dv stay in registers while the tiles
of queries that see them arrive. Scores are recomputed from lse. A tile's dq is a sum over programs: a fourth warpgroup
adds each part to device memory, and takes its turn in the order of the key blocks, so that the sum is always the same.
Programs start in that order and walk the queries from the last to the first, so a program only waits for programs that
started earlier.
Source: Dao 2023, "FlashAttention-2", algorithm 2; Shah et al. 2024, "FlashAttention-3", section 3.1, for the warps.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import choices
from kernels.attention import schedule
from kernels.attention.flash import Call, Sizes, in_32_bits, opening
from kernels.attention.gpu_common import mask_arrays, padded
from kernels.attention.gpu_hopper_common import (
    BLOCK,
    COPY_REGISTERS,
    PER_COLUMN,
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
from kernels.attention.scoring import Result, Scoring

# Queries of a tile that arrives, by H: as many as registers hold.
STREAMED = {64: 128, 128: 64}
# Buffers for tiles that arrive, and for what is handed over between warpgroups: what shared memory holds.
STAGES = 2
# Registers of a thread. Two warpgroups compute, one copies and one adds up dq.
COMPUTE_REGISTERS, COPYING, ADDING = 232, WARPGROUPS, WARPGROUPS + 1


class Scratch(NamedTuple):
    """Shared memory and barriers of a program.

    keys, values: the program's own, a tile for each warpgroup.
    d_scores: those of two tiles, [64 keys, queries] a warpgroup.
    dq: each warpgroup's part of the dq of two tiles.
    """

    keys: Any
    values: Any
    ready: Any
    queries: Ring
    d_outs: Ring
    d_scores: Any
    exchanged: Any
    dq: Any
    dq_ready: Any
    dq_freed: Any


@in_32_bits
def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scoring: Scoring,
    result: Result,
    cotangent: Result,
    interpret: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array, None, jax.Array | None]:
    """Gradients (dq, dk, dv, None, dsinks) of `forward`, from its result and the cotangents of it.

    Shapes and errors as in `forward`. A row that sees nothing has gradient 0. dsinks is float32 [N].
    """
    check(q, k, v, scoring.scale, scoring.bias)
    mask, (B, T, N, H), (S, K) = scoring.mask, q.shape, k.shape[1:3]
    of, tried = f"pallas_gpu_hopper backward, H {H}, S {choices.length(S)}", tuple((n,) for n in (64, 128))
    (streamed,) = choices.chosen("attention", of, "gpu", (STREAMED[H],), tried)
    sizes = Sizes(B, T, S, N, K, H, streamed, BLOCK)
    table = schedule.classes(mask, T, S, sizes.block_q, sizes.block_k)
    whole = all(all_seen(mask, sizes, table, axis) for axis in (0, 1))

    def lay(x: jax.Array, block: int) -> jax.Array:
        # What is seen is told by delta: only what no pair uses is lost.
        return padded(x if whole else jnp.where(jnp.isfinite(x), x, 0), sizes, block)

    arrays, d_sinks = opening((q, k, v), scoring.sinks, result, cotangent, lay, BLOCK, BLOCK)
    q, _, k, v, *_ = arrays
    masks = [x.swapaxes(2, 3) if x.ndim == 4 else x for x in mask_arrays(mask, sizes)]
    walk = schedule.spans(schedule.transpose(table))
    cores = Cores(interpret is not None)
    # The simulator has no turns: there each program keeps its part of dq.
    parts = (k.shape[1] // BLOCK,) * cores.simulated
    dq, dk, dv = plgpu.kernel(
        functools.partial(_kernel, Call.of(sizes, scoring), cores),
        out_type=[
            jax.ShapeDtypeStruct((*parts, *q.shape), jnp.float32),
            *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)),
        ],
        scratch_types=[
            Scratch(
                *(tile((WARPGROUPS, ROWS, H), k.dtype) for _ in "kv"),
                plgpu.Barrier(num_arrivals=2 * WARPGROUPS),
                ring(STAGES, sizes.block_q, H, q.dtype, terms=True),
                ring(STAGES, sizes.block_q, H, q.dtype, terms=True),
                tile((STAGES, WARPGROUPS, ROWS, sizes.block_q), q.dtype),
                plgpu.Barrier(num_arrivals=WARPGROUPS),
                tile((STAGES, WARPGROUPS, ROWS, ROWS), jnp.float32),
                plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=STAGES),
                plgpu.Barrier(num_arrivals=1, num_barriers=STAGES),
            )
        ],
        compiler_params=plgpu.CompilerParams(approx_math=True),
        # The last axis is the first to start: a key block of every head and row, then the next.
        grid=(k.shape[1] // BLOCK, K, B),
        grid_names=("row", "head", "batch"),
        num_threads=WARPGROUPS + 2,
        thread_name="warpgroup",
        interpret=interpret,
    )(*map(jnp.asarray, walk), schedule.turns(table), *arrays, *masks)
    dq = _summed(dq if parts else dq[None], table, sizes) * scoring.scale
    return dq.astype(q.dtype), dk[:, :S], dv[:, :S], None, d_sinks


def _summed(dq: jax.Array, table: Any, sizes: Sizes) -> jax.Array:
    """dq [B, T, N, H], 0 where no program wrote, of dq [1, B, T.., N, H] or the parts [key blocks, B, T.., N, H]."""
    written, dq = table != schedule.EMPTY, dq[:, :, : sizes.T]
    if len(dq) == 1:
        written = written.any(axis=2, keepdims=True)
    if not isinstance(written, jax.Array) and written.all():
        return dq.sum(axis=0)
    rows = jnp.repeat(jnp.moveaxis(jnp.asarray(written), 2, 0), sizes.block_q, axis=2)[:, :, : sizes.T]
    return jnp.where(rows[..., None, None], dq, 0.0).sum(axis=0)


class _Place(NamedTuple):
    """The work of a program: its key block `row`, the number of its tiles, and fold(visit, carry), the walk.

    The walk folds visit(masked, query head, tile, carry) over the tiles that see the block, the last one first.
    """

    batch: Any
    head: Any
    row: Any
    tiles: Any
    fold: Callable


def _place(call: Call, spans: Any, counts: Any) -> _Place:
    row, head, batch = (lax.axis_index(name) for name in ("row", "head", "batch"))
    at, group = batch if spans.shape[0] > 1 else 0, call.sizes.group

    def fold(visit: Callable, carry: Any) -> Any:
        def of_head(i: Any, carry: Any) -> Any:
            def of_span(n: Any, carry: Any) -> Any:
                first, end, kind = (spans[at, row, counts[at, row, 0] - 1 - n, x] for x in range(3))

                def backwards(masked: bool) -> Callable:
                    return lambda k, carry: visit(masked, head * group + i, end - 1 - k, carry)

                full = jnp.where(kind == schedule.FULL, end - first, 0)
                carry = lax.fori_loop(0, full, backwards(False), carry)
                return lax.fori_loop(full, end - first, backwards(True), carry)

            return lax.fori_loop(0, counts[at, row, 0], of_span, carry)

        return lax.fori_loop(0, group, of_head, carry)

    return _Place(batch, head, row, counts[at, row, 1] * group, fold)


def _kernel(call: Call, cores: Cores, *refs: Any) -> None:
    *refs, scratch = refs
    spans, counts, earlier, q, d_out, k, v, lse, delta, *masks, dq, dk, dv = refs
    place, sizes, warpgroup = _place(call, spans, counts), call.sizes, lax.axis_index("warpgroup")
    order = _order(cores, sizes, place, earlier)

    @pl.when(warpgroup < WARPGROUPS)
    def _compute():
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        mine = place.batch, pl.ds(place.row * BLOCK + warpgroup * ROWS, ROWS), place.head
        own = scratch.keys.at[warpgroup], scratch.values.at[warpgroup]
        for ref, tiles in zip((k, v), own, strict=True):
            plgpu.copy_gmem_to_smem(ref.at[mine], tiles, scratch.ready)
        results = _gradients(call, cores, mask_refs(call, cores, masks, q_axis=1), place, scratch)
        for result, tiles in zip(results, own, strict=True):
            tiles[...] = result.astype(k.dtype)
        plgpu.commit_smem()
        for tiles, ref in zip(own, (dk, dv), strict=True):
            plgpu.copy_smem_to_gmem(tiles, ref.at[mine])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == COPYING)
    def _copy():
        plgpu.set_max_registers(COPY_REGISTERS, action="decrease")

        def tiles_of(ref: Any) -> Callable:
            return lambda at: ref.at[place.batch, pl.ds(at[1] * sizes.block_q, sizes.block_q), at[0]]

        def terms_of(ref: Any) -> Callable:
            return lambda at: ref.at[place.batch, at[0], pl.ds(at[1] * sizes.block_q, sizes.block_q)]

        def in_order(source: Callable) -> Callable:
            return lambda at: order.wait(*at) or source(at)

        keep_filled(
            lambda visit, step: place.fold(lambda _, head, tile, step: visit((head, tile), step), step),
            [
                (scratch.queries, [tiles_of(q), terms_of(lse)]),
                (scratch.d_outs, [in_order(tiles_of(d_out)), terms_of(delta)]),
            ],
        )

    @pl.when(warpgroup == ADDING)
    def _add():
        plgpu.set_max_registers(COPY_REGISTERS, action="decrease")
        _add_dq(call, cores, place, scratch, order, dq)


def _gradients(call: Call, cores: Cores, masks: MaskRefs, place: _Place, scratch: Scratch) -> tuple:
    """dk and dv of a warpgroup's 64 keys; tiles are [keys, queries]. Leaves its part of each tile's dq in `scratch`."""
    sizes, warpgroup, queries, d_outs = call.sizes, lax.axis_index("warpgroup"), scratch.queries, scratch.d_outs
    start, other, shape = place.row * BLOCK + warpgroup * ROWS, pl.ds(warpgroup * ROWS, ROWS), (ROWS, sizes.block_q)
    # Its part of dq is 64 columns of 64 queries, or all 64 columns of half of 128 queries.
    rows, columns = (other if size > ROWS else pl.ds(0, ROWS) for size in (sizes.block_q, sizes.H))
    mine = masks.own(place.batch, start)
    plgpu.barrier_wait(scratch.ready)

    def next_queries(step: Any) -> Any:
        pl.when(step < place.tiles)(lambda: plgpu.barrier_wait(queries.ready.at[queries.slot(step)]))
        return queries.tiles.at[queries.slot(step)]

    def exchange() -> None:
        plgpu.barrier_arrive(scratch.exchanged)
        plgpu.barrier_wait(scratch.exchanged)

    def visit(masked: bool, head: Any, tile: Any, carry: tuple) -> tuple:
        dk, dv, raw, step = carry
        slot = queries.slot(step)
        # Always 0, which no compiler knows: else the addresses of all operands are kept in registers over the loop.
        zero = lax.shift_right_logical(step, jnp.int32(30))
        me = warpgroup + zero
        k, v, own_d_scores = scratch.keys.at[me], scratch.values.at[me], scratch.d_scores.at[slot, me]
        start_q = tile * sizes.block_q

        def weights() -> tuple:
            lse = cores.load(queries.terms, (slot,), PER_COLUMN)
            s, factor, slope = capped(call, raw)
            p = jnp.exp2(s * factor - along(lse, shape, 1))
            if masked:
                p = jnp.where(masks.visible(mine, place.batch, head, start, start_q, sizes.block_q), p, 0.0)
            return p.astype(k.dtype), (p, slope)

        def d_scores(held: tuple, dp: jax.Array) -> None:
            p, slope = held
            ds = p * (dp - along(cores.load(d_outs.terms, (slot,), PER_COLUMN), shape, 1))
            own_d_scores[...] = (ds if slope is None else ds * slope).astype(k.dtype)
            plgpu.commit_smem()

        plgpu.barrier_wait(d_outs.ready.at[slot])
        dv = cores.weigh(dv, v, d_outs.tiles.at[slot], weights, d_scores)
        plgpu.barrier_arrive(d_outs.freed.at[slot])

        def pairs() -> list:
            exchange()
            sides = range(WARPGROUPS)
            return [(scratch.d_scores.at[slot, i, :, rows], scratch.keys.at[i + zero, :, columns]) for i in sides]

        def hand_over(dq: jax.Array) -> None:
            pl.when(step >= STAGES)(lambda: plgpu.barrier_wait(scratch.dq_freed.at[slot]))
            scratch.dq.at[slot, me][...] = dq
            plgpu.commit_smem()
            plgpu.barrier_arrive(scratch.dq_ready.at[slot])

        def following() -> tuple:
            return k, next_queries(step + 1)

        dk, raw = cores.spread(dk, own_d_scores, queries.tiles.at[slot], pairs, following, hand_over)
        plgpu.barrier_arrive(queries.freed.at[slot])
        return dk, dv, raw, step + 1

    zeros = cores.full((ROWS, sizes.H), 0.0)
    first = cores.scores(scratch.keys.at[warpgroup], next_queries(jnp.int32(0)))
    dk, dv, _, steps = place.fold(visit, (zeros, zeros, first, jnp.int32(0)))

    @pl.loop(jnp.maximum(steps - STAGES, 0), steps)
    def _drain(step):
        plgpu.barrier_wait(scratch.dq_freed.at[queries.slot(step)])

    exchange()  # The keys are no longer read, and their memory is free.
    return dk * call.scale, dv


class _Order(NamedTuple):
    """The order in which programs add to a tile's dq; none where they are simulated."""

    batch: Any
    turns: Any
    earlier: Callable

    def wait(self, head: Any, tile: Any) -> None:
        """Waits until earlier programs have added their parts; asked before the tile is copied, to hide the wait."""
        if self.turns is not None:
            turn = self.turns.at[self.batch, head, tile]
            plgpu.semaphore_wait(turn, self.earlier(tile), decrement=False, memory_scope="gpu")

    def pass_on(self, head: Any, tile: Any) -> None:
        """Gives the turn to the next program once everything that this one added is in memory."""
        plgpu.wait_smem_to_gmem(0)
        if self.turns is not None:
            plgpu.semaphore_signal(self.turns.at[self.batch, head, tile], memory_scope="gpu")


def _order(cores: Cores, sizes: Sizes, place: _Place, earlier: Any) -> _Order:
    shape, at = (sizes.B, sizes.N, earlier.shape[1]), place.batch if earlier.shape[0] > 1 else 0
    turns = None if cores.simulated else pl.get_global(plgpu.SemaphoreType.REGULAR(shape))
    return _Order(place.batch, turns, lambda tile: earlier[at, tile, place.row])


def _add_dq(call: Call, cores: Cores, place: _Place, scratch: Scratch, order: _Order, dq: Any) -> None:
    """Adds both warpgroups' parts of each tile's dq to device memory. The copying warpgroup has waited for the turn."""
    sizes = call.sizes

    def visit(_: bool, head: Any, tile: Any, carry: tuple) -> tuple:
        first, *last, step = order.earlier(tile) == 0, *carry
        pl.when(step > 0)(lambda: order.pass_on(*last))
        slot = lax.rem(step, jnp.int32(STAGES))
        plgpu.barrier_wait(scratch.dq_ready.at[slot])
        for i in range(WARPGROUPS):
            row, column = (i * ROWS if size > ROWS else 0 for size in (sizes.block_q, sizes.H))
            rows, columns = pl.ds(tile * sizes.block_q + row, ROWS), pl.ds(column, ROWS)
            into = dq.at[place.row] if cores.simulated else dq
            cores.add(scratch.dq.at[slot, i], into.at[place.batch, rows, head, columns], first)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        plgpu.barrier_arrive(scratch.dq_freed.at[slot])
        return head, tile, step + 1

    *last, steps = place.fold(visit, (jnp.int32(0),) * 3)
    pl.when(steps > 0)(lambda: order.pass_on(*last))
