"""Block-sparse flash attention for Hopper GPUs (Pallas, Mosaic GPU): the forward kernel.

One program computes two blocks of 64 queries of one head, a warpgroup each. They take turns, so that the tensor cores
multiply for one while the other has its softmax; a third warpgroup copies the tiles of keys and values ahead of them.
Source: Shah et al. 2024, "FlashAttention-3", sections 3.1 (warp specialisation) and 3.2 (ping-pong); the runs of tiles
are those of `schedule.runs`. Compiled for sm_90a, not yet measured on a GPU.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.attention import schedule
from kernels.attention.flash import LOG2_E, MASKED, Call, Sizes, in_32_bits
from kernels.attention.gpu_common import mask_arrays, over_tiles, padded
from kernels.attention.gpu_hopper_common import (
    BLOCK_Q,
    COMPUTE_REGISTERS,
    COPY_REGISTERS,
    PER_ROW,
    ROWS,
    WARPGROUPS,
    Cores,
    along,
    check,
    query_vectors,
    take_turns,
    tile,
    unseen_keys,
    visible,
)

__all__ = ["forward"]

# (block_k, buffers in the ring of keys and in that of values) by H: what fits 227 KiB of shared memory.
TILES = {64: (128, 4), 128: (128, 2), 256: (64, 2)}


@in_32_bits
def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Any,
    scale: float,
    bias: None = None,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    interpret: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of q [B, T, N, H] over k, v [B, S, K, H] under `mask`: out [B, T, N, H], natural lse [B, N, T].

    sinks [N]: the logit of one virtual key of value 0 per head, counted in lse. What nobody sees may be NaN.
    interpret: `platforms.gpu_simulator()` runs it on a CPU. Raises NotImplementedError for a bias, for types other than
    bfloat16 and float16, for H other than 64, 128, 256 and for a scale that is not positive.
    """
    check(q, k, v, scale, bias)
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    block_k, stages = TILES[H]
    sizes = Sizes(B, T, S, N, K, H, BLOCK_Q, block_k)
    table = schedule.classes(mask, T, S, BLOCK_Q, block_k)
    if unseen_keys(mask, sizes, table):
        k, v = without_poison(k, v)
    q, k, v = padded(q, sizes, BLOCK_Q), padded(k, sizes, block_k), padded(v, sizes, block_k)
    rows = q.shape[1] // BLOCK_Q
    sink_arrays = [] if sinks is None else [sinks.astype(jnp.float32) * LOG2_E]
    ring = plgpu.Barrier(num_arrivals=1, num_barriers=stages)
    freed = plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages)
    out, lse = plgpu.kernel(
        functools.partial(_kernel, Call(sizes, mask, scale, softcap), Cores(interpret is not None), sinks is not None),
        out_type=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((B, N, q.shape[1]), jnp.float32)],
        scratch_types=[
            tile((WARPGROUPS, ROWS, H), q.dtype),
            tile((stages, block_k, H), q.dtype),
            tile((stages, block_k, H), q.dtype),
            plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32),
            plgpu.Barrier(num_arrivals=1, num_barriers=WARPGROUPS),
            *(ring, ring, freed, freed),
            plgpu.Barrier(num_arrivals=WARPGROUPS),
        ],
        compiler_params=plgpu.CompilerParams(approx_math=True),
        grid=(rows, N, B),
        grid_names=("row", "head", "batch"),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        **({} if interpret is None else {"interpret": interpret}),
    )(*map(jnp.asarray, schedule.runs(table)), q, k, v, *mask_arrays(mask, sizes), *sink_arrays)
    return out[:, :T], lse[:, :, :T]


def without_poison(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """k, v with what is not finite in v moved to k: 0 * NaN cannot leak from a key that is masked, and a NaN that is
    seen still reaches whoever sees it, by its score."""
    finite = jnp.isfinite(v)
    return jnp.where(finite.all(-1, keepdims=True), k, jnp.nan), jnp.where(finite, v, 0)


class _Place(NamedTuple):
    """What one warpgroup of a program works on."""

    batch: Any
    head: Any
    start: Any
    bounds: Any
    counts: Any


def _kernel(call: Call, cores: Cores, with_sinks: bool, bounds_ref: Any, counts_ref: Any, *refs: Any) -> None:
    *inputs, out_ref, lse_ref = refs[:-10]
    scratch, sizes = refs[-10:], call.sizes
    # Rows run last to first: under a causal mask the long ones start first and the short ones fill the gaps.
    rows = out_ref.shape[1] // sizes.block_q
    row, head, batch = rows - 1 - lax.axis_index("row"), lax.axis_index("head"), lax.axis_index("batch")
    warpgroup, at = lax.axis_index("warpgroup"), batch if bounds_ref.shape[0] > 1 else 0
    place = _Place(
        batch, head, row * sizes.block_q + warpgroup * ROWS, bounds_ref.at[at, row], counts_ref.at[at, row]
    )

    @pl.when(warpgroup < WARPGROUPS)
    def _compute():
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        _attend(call, cores, with_sinks, place, warpgroup, inputs, (out_ref, lse_ref), scratch)

    @pl.when(warpgroup == WARPGROUPS)
    def _copy():
        plgpu.set_max_registers(COPY_REGISTERS, action="decrease")
        _copy_tiles(call, place, inputs[1:3], scratch)


def _copy_tiles(call: Call, place: _Place, inputs: Any, scratch: Any) -> None:
    """Keeps the rings of keys and of values filled, in the order in which the tiles are computed."""
    _, k_ring, v_ring, _, _, k_ready, v_ready, k_freed, v_freed, _ = scratch
    rings = list(zip(inputs, (k_ring, v_ring), (k_ready, v_ready), (k_freed, v_freed), strict=True))
    stages, block_k = k_ring.shape[0], call.sizes.block_k
    kv_head = lax.div(place.head, jnp.int32(call.sizes.group))

    def copy(_: bool, column: Any, step: Any) -> Any:
        slot = lax.rem(step, jnp.int32(stages))
        for source, ring, ready, freed in rings:

            @pl.when(step >= stages)
            def _wait(freed=freed):
                plgpu.barrier_wait(freed.at[slot])

            keys = source.at[place.batch, pl.ds(column * block_k, block_k), kv_head]
            plgpu.copy_gmem_to_smem(keys, ring.at[slot], ready.at[slot])
        return step + 1

    steps = over_tiles(place.bounds, place.counts, copy, jnp.int32(0))

    # Every barrier ends with all its arrivals seen.
    @pl.loop(jnp.maximum(steps - stages, 0), steps)
    def _drain(step):
        for *_, freed in rings:
            plgpu.barrier_wait(freed.at[lax.rem(step, jnp.int32(stages))])


def _attend(
    call: Call, cores: Cores, with_sinks: bool, place: _Place, warpgroup: Any, inputs: Any, outputs: Any, scratch: Any
) -> None:
    """Online softmax of this warpgroup's 64 queries over the tiles that arrive."""
    sizes, (q_ref, _, _, *mask_refs) = call.sizes, inputs
    sink = mask_refs.pop()[place.head] if with_sinks else None
    q_tiles, k_ring, v_ring, lse_rows, q_ready, k_ready, v_ready, k_freed, v_freed, turn = scratch
    q, shape, stages = q_tiles.at[warpgroup], (ROWS, sizes.block_k), k_ring.shape[0]
    mine = pl.ds(place.start, ROWS)
    plgpu.copy_gmem_to_smem(q_ref.at[place.batch, mine, place.head], q, q_ready.at[warpgroup])
    vectors = query_vectors(call, cores, mask_refs, place.batch, place.start)
    factor = (call.scale if call.softcap is None else call.softcap) * LOG2_E
    plgpu.barrier_wait(q_ready.at[warpgroup])
    # The second warpgroup lets the first one go ahead by half a tile.
    pl.when(warpgroup == 1)(lambda: take_turns(turn))

    def attend(masked: bool, column: Any, carry: tuple) -> tuple:
        acc, old, total, step = carry
        slot = lax.rem(step, jnp.int32(stages))
        plgpu.barrier_wait(k_ready.at[slot])
        s = cores.scores(q, k_ring.at[slot], lambda: take_turns(turn))
        plgpu.barrier_arrive(k_freed.at[slot])
        s = s if call.softcap is None else tanh(s * (call.scale / call.softcap))
        if masked:
            seen = visible(call, cores, mask_refs, vectors, place.batch, place.head, place.start, column)
            s = jnp.where(seen, s, -jnp.inf)
        new = jnp.maximum(old, s.max(axis=1) * factor)
        p = jnp.exp2(s * factor - along(new, shape))
        decay = jnp.exp2(old - new)
        total = total * decay + p.sum(axis=1)
        acc, p = acc * along(decay, acc.shape), p.astype(q_ref.dtype)
        # All of the softmax belongs to this warpgroup's turn away from the tensor cores.
        acc, total, new, p = lax.optimization_barrier((acc, total, new, p))
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(v_ready.at[slot])
        plgpu.barrier_wait(turn)
        acc = cores.accumulate(acc, p, v_ring.at[slot])
        plgpu.barrier_arrive(v_freed.at[slot])
        return acc, new, total, step + 1

    if with_sinks:
        # The virtual key is the first to be seen: its weight is 1, its value 0.
        first = jnp.maximum(sink, MASKED), jnp.where(sink > MASKED, 1.0, 0.0)
    else:
        first = MASKED, 0.0
    top, total = (cores.full((ROWS,), x, PER_ROW) for x in first)
    carry = (cores.full((ROWS, sizes.H), 0.0), top, total, jnp.int32(0))
    acc, top, total, _ = over_tiles(place.bounds, place.counts, attend, carry)
    pl.when(warpgroup == 0)(lambda: take_turns(turn))

    seen = total != 0.0
    total = jnp.where(seen, total, 1.0)
    q[...] = (acc * along(jnp.where(seen, 1.0 / total, 0.0), acc.shape)).astype(q_ref.dtype)
    lse_rows.at[warpgroup][...] = jnp.where(seen, top * math.log(2) + jnp.log(total), -jnp.inf)
    plgpu.commit_smem()
    out_ref, lse_ref = outputs
    plgpu.copy_smem_to_gmem(q, out_ref.at[place.batch, mine, place.head])
    plgpu.copy_smem_to_gmem(lse_rows.at[warpgroup], lse_ref.at[place.batch, place.head, mine])
    plgpu.wait_smem_to_gmem(0)


def tanh(x: jax.Array) -> jax.Array:
    """tanh to float32 accuracy: the chip's own approximation is off by 2^-11, and a softcap multiplies that."""
    return 1.0 - 2.0 / (jnp.exp2(x * (2 * LOG2_E)) + 1.0)
