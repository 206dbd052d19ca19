"""Block-sparse flash attention for Hopper GPUs (Pallas, Mosaic GPU): the forward kernel, with `backward` exported.

One program computes two blocks of 64 queries of one head, a warpgroup each. They take turns, so that the tensor cores
multiply for one while the other has its softmax; a third warpgroup copies the tiles of keys and values ahead of them.
Source: Shah et al. 2024, "FlashAttention-3", sections 3.1 (warp specialisation) and 3.2 (ping-pong); the runs of tiles
are those of `schedule.runs`. For sm_90a; measured on an H100.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import choices
from kernels.attention import schedule
from kernels.attention.flash import LOG2_E, MASKED, Call, Sizes, in_32_bits
from kernels.attention.gpu_common import mask_arrays, over_tiles, padded
from kernels.attention.gpu_hopper_backward import backward
from kernels.attention.gpu_hopper_common import (
    BLOCK,
    COMPUTE_REGISTERS,
    COPY_REGISTERS,
    PER_ROW,
    ROWS,
    WARPGROUPS,
    Cores,
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
from kernels.attention.scoring import Scoring

__all__ = ["backward", "forward"]

BLOCK_K = 128
# Buffers in the ring of keys and in that of values, by H: what fits 227 KiB of shared memory.
STAGES = {64: 4, 128: 2}


class Scratch(NamedTuple):
    """Shared memory and barriers of a program."""

    q: Any
    lse: Any
    q_ready: Any
    turn: Any
    keys: Ring
    values: Ring


@in_32_bits
def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, interpret: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Attention of q [B, T, N, H] over k, v [B, S, K, H] under `scoring`: out [B, T, N, H], natural lse [B, N, T].

    Keys and values that no query sees may be NaN.
    interpret: the parameters of jax's GPU simulator, to run on a CPU.
    Raises NotImplementedError for a bias, for types other than bfloat16 and float16, for H other than 64 and 128, and
    for a scale that is not positive.
    """
    check(q, k, v, scoring.scale, scoring.bias)
    mask, sinks = scoring.mask, scoring.sinks
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    block_k, stages = _tiles(H, S)
    sizes = Sizes(B, T, S, N, K, H, BLOCK, block_k)
    table = schedule.classes(mask, T, S, BLOCK, block_k)
    if not all_seen(mask, sizes, table, axis=1):
        k, v = without_poison(k, v)
    q, k, v = padded(q, sizes, BLOCK), padded(k, sizes, block_k), padded(v, sizes, block_k)
    sink_arrays = [] if sinks is None else [sinks.astype(jnp.float32) * LOG2_E]
    out, lse = plgpu.kernel(
        functools.partial(_kernel, Call.of(sizes, scoring), Cores(interpret is not None), sinks is not None),
        out_type=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((B, N, q.shape[1]), jnp.float32)],
        scratch_types=[
            Scratch(
                tile((WARPGROUPS, ROWS, H), q.dtype),
                plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32),
                plgpu.Barrier(num_arrivals=1, num_barriers=WARPGROUPS),
                plgpu.Barrier(num_arrivals=WARPGROUPS),
                *(ring(stages, block_k, H, q.dtype) for _ in range(2)),
            )
        ],
        compiler_params=plgpu.CompilerParams(approx_math=True),
        grid=(q.shape[1] // BLOCK, N, B),
        grid_names=("row", "head", "batch"),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        interpret=interpret,
    )(*map(jnp.asarray, schedule.runs(table)), q, k, v, *mask_arrays(mask, sizes), *sink_arrays)
    return out[:, :T], lse[:, :, :T]


def _tiles(H: int, S: int) -> tuple[int, int]:
    """Keys of a tile, and buffers in the ring of keys and in that of values."""
    tried = tuple((block_k, stages) for block_k in (64, 128) for stages in (2, 3, 4))
    of = f"pallas_gpu_hopper forward, H {H}, S {choices.length(S)}"
    return choices.chosen("attention", of, "gpu", (BLOCK_K, STAGES[H]), tried)


def without_poison(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """k and v with v finite: entries of v that are not finite become 0, and their keys become NaN.

    A masked NaN then cannot leak as 0 * NaN. A NaN that is seen still reaches its queries, by its score.
    """
    finite = jnp.isfinite(v)
    return jnp.where(finite.all(-1, keepdims=True), k, jnp.nan), jnp.where(finite, v, 0)


class _Place(NamedTuple):
    """The block of queries that one warpgroup of a program computes."""

    batch: Any
    head: Any
    start: Any
    bounds: Any
    counts: Any


def _kernel(call: Call, cores: Cores, with_sinks: bool, bounds_ref: Any, counts_ref: Any, *refs: Any) -> None:
    q_ref, k_ref, v_ref, *mask_refs_and_sinks, out_ref, lse_ref, scratch = refs
    # Rows run last to first: under a causal mask the long ones start first and the short ones fill the gaps.
    row = out_ref.shape[1] // BLOCK - 1 - lax.axis_index("row")
    head, batch, warpgroup = lax.axis_index("head"), lax.axis_index("batch"), lax.axis_index("warpgroup")
    at = batch if bounds_ref.shape[0] > 1 else 0
    place = _Place(batch, head, row * BLOCK + warpgroup * ROWS, bounds_ref.at[at, row], counts_ref.at[at, row])

    @pl.when(warpgroup < WARPGROUPS)
    def _compute():
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        sink = mask_refs_and_sinks[-1][head] if with_sinks else None
        masks = mask_refs(call, cores, mask_refs_and_sinks[: len(mask_refs_and_sinks) - with_sinks])
        mine = pl.ds(place.start, ROWS)
        q = scratch.q.at[warpgroup], scratch.q_ready.at[warpgroup]
        plgpu.copy_gmem_to_smem(q_ref.at[batch, mine, head], *q)
        out, lse = _attend(call, cores, masks, place, warpgroup, scratch, sink)
        scratch.q.at[warpgroup][...] = out.astype(q_ref.dtype)
        scratch.lse.at[warpgroup][...] = lse
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(scratch.q.at[warpgroup], out_ref.at[batch, mine, head])
        plgpu.copy_smem_to_gmem(scratch.lse.at[warpgroup], lse_ref.at[batch, head, mine])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == WARPGROUPS)
    def _copy():
        plgpu.set_max_registers(COPY_REGISTERS, action="decrease")
        kv_head, block_k = lax.div(head, jnp.int32(call.sizes.group)), call.sizes.block_k

        def walk(visit, step):
            return over_tiles(place.bounds, place.counts, lambda _, column, step: visit(column, step), step)

        def source(ref):
            return lambda column: ref.at[batch, pl.ds(column * block_k, block_k), kv_head]

        keep_filled(walk, [(scratch.keys, [source(k_ref)]), (scratch.values, [source(v_ref)])])


def _attend(
    call: Call, cores: Cores, masks: Any, place: _Place, warpgroup: Any, scratch: Scratch, sink: Any
) -> tuple[jax.Array, jax.Array]:
    """Online softmax of this warpgroup's 64 queries over the tiles that arrive: out [64, H], natural lse [64]."""
    q, keys, values, turn = scratch.q.at[warpgroup], scratch.keys, scratch.values, scratch.turn
    block_k = call.sizes.block_k
    shape = ROWS, block_k

    def take_turns() -> None:
        """One warpgroup has the tensor cores while the other has its softmax."""
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(turn)

    own = masks.own(place.batch, place.start)
    plgpu.barrier_wait(scratch.q_ready.at[warpgroup])
    # The second warpgroup lets the first one go ahead by half a tile.
    pl.when(warpgroup == 1)(take_turns)

    def attend(masked: bool, column: Any, carry: tuple) -> tuple:
        acc, old, total, step = carry
        slot = keys.slot(step)
        plgpu.barrier_wait(keys.ready.at[slot])
        raw = cores.scores(q, keys.tiles.at[slot], take_turns)
        plgpu.barrier_arrive(keys.freed.at[slot])
        s, factor, _ = capped(call, raw)
        if masked:
            seen = masks.visible(own, place.batch, place.head, place.start, column * block_k, block_k)
            s = jnp.where(seen, s, -jnp.inf)
        new = jnp.maximum(old, s.max(axis=1) * factor)
        p = jnp.exp2(s * factor - along(new, shape))
        decay = jnp.exp2(old - new)
        total = total * decay + p.sum(axis=1)
        acc, p = acc * along(decay, acc.shape), p.astype(q.dtype)
        # All of the softmax belongs to this warpgroup's turn away from the tensor cores.
        acc, total, new, p = lax.optimization_barrier((acc, total, new, p))
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(values.ready.at[slot])
        plgpu.barrier_wait(turn)
        acc = cores.accumulate(acc, p, values.tiles.at[slot])
        plgpu.barrier_arrive(values.freed.at[slot])
        return acc, new, total, step + 1

    if sink is None:
        first = MASKED, 0.0
    else:  # The virtual key is the first to be seen: its weight is 1, its value 0.
        first = jnp.maximum(sink, MASKED), jnp.where(sink > MASKED, 1.0, 0.0)
    top, total = (cores.full((ROWS,), x, PER_ROW) for x in first)
    carry = (cores.full((ROWS, call.sizes.H), 0.0), top, total, jnp.int32(0))
    acc, top, total, _ = over_tiles(place.bounds, place.counts, attend, carry)
    pl.when(warpgroup == 0)(take_turns)

    seen = total != 0.0
    total = jnp.where(seen, total, 1.0)
    out = acc * along(jnp.where(seen, 1.0 / total, 0.0), acc.shape)
    return out, jnp.where(seen, top * math.log(2) + jnp.log(total), -jnp.inf)
