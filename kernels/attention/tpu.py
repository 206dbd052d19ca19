"""Block-sparse flash attention for TPU (Pallas, Mosaic): the forward kernel. The module also exports `backward`.

The grid's last axis walks a list of the tiles that are not empty (`schedule.walk`), prefetched into scalar memory: an
empty tile costs neither a load nor a step. Source: Dao 2023, "FlashAttention-2", algorithm 1.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.attention import schedule
from kernels.attention.flash import LOG2_E, MASKED, NN, Call, check, clear_unseen, dot, in_32_bits, scores
from kernels.attention.scoring import Scoring
from kernels.attention.tpu_backward import backward
from kernels.attention.tpu_common import (
    LANES,
    Beside,
    MaskOperands,
    batches,
    block_specs,
    compiler_params,
    cost,
    head_major,
    interpret_params,
    mask_operands,
    mask_specs,
    place,
    sizes_of,
    spread_lanes,
    stride_of,
    token_major,
    visible,
    when_class,
)

__all__ = ["backward", "forward"]
NOTHING_BESIDE = Beside((), (), (), (), lambda: None, lambda: None, 0)


@in_32_bits
def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scoring: Scoring,
    interpret: Any = False,
    beside: Beside | None = None,
) -> tuple[jax.Array, ...]:
    """Attention of q [B, T, N, H] over k, v [B, S, K, H] under `scoring`: out [B, T, N, H], natural lse [B, N, T].

    Keys and values that no query sees may be NaN.
    beside: copies that run beside the kernel; their results follow lse.
    Raises NotImplementedError for a bias or for types other than bfloat16 and float32.
    """
    check("pallas_tpu", q, k, v, scoring.bias)
    sizes = sizes_of(q, k)
    call = Call.of(sizes, scoring)
    steps = schedule.walk(schedule.classes(scoring.mask, sizes.T, sizes.S, sizes.block_q, sizes.block_k))
    operands = mask_operands(scoring.mask, sizes)
    blocks = (q, sizes.block_q), (k, sizes.block_k), (v, sizes.block_k)
    arrays = [head_major(x, sizes, block) for x, block in blocks]
    parts, results = [], ()
    for rows in batches(steps.codes, sizes.B):
        part = jax.tree.map(lambda x, rows=rows: x if x.shape[0] == 1 else x[rows], (steps.codes, arrays, operands))
        also = beside if not parts else None
        out, lse, *more = _forward_call(call, steps._replace(codes=part[0]), scoring.sinks, *part[1:], interpret, also)
        parts.append((out, lse))
        results = results or tuple(more)
    out, lse = parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    return token_major(out, sizes.T, q.shape[3]), lse[:, :, 0, : sizes.T], *results


def _forward_call(
    call: Call,
    steps: schedule.Walk,
    sinks: jax.Array | None,
    arrays: list[jax.Array],
    operands: MaskOperands,
    interpret: Any,
    beside: Beside | None,
) -> list[jax.Array]:
    sizes, codes, (q, *_), batch = call.sizes, steps.codes, arrays, arrays[0].shape[0]
    stride = stride_of(codes)

    def where(b: Any, n: Any, step: Any, codes_ref: Any, *_: Any) -> tuple:
        return b, n, *schedule.decode(codes_ref[place(stride, b, step)])

    query, key, per_row = block_specs(sizes, where)
    accumulators = [(sizes.block_q, LANES), (sizes.block_q, LANES), (sizes.block_q, sizes.H)]
    prefetched = [jnp.asarray(codes).reshape(-1)] + ([] if sinks is None else [sinks.astype(jnp.float32) * LOG2_E])
    read = (*prefetched, *arrays, *jax.tree.leaves(operands))
    kernel = functools.partial(_forward_kernel, call, stride, sinks is not None)
    also = beside or NOTHING_BESIDE
    return pl.pallas_call(
        kernel if beside is None else beside.around(kernel, len(read), 2),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetched),
            grid=(batch, sizes.N, steps.length),
            in_specs=[query, key, key, *mask_specs(operands, sizes, where), *also.specs],
            out_specs=[query, per_row, *(pl.BlockSpec(memory_space=pl.ANY) for _ in also.results)],
            scratch_shapes=[*(pltpu.VMEM(shape, jnp.float32) for shape in accumulators), *also.scratch],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((batch, sizes.N, 1, q.shape[2]), jnp.float32),
            *also.results,
        ],
        compiler_params=compiler_params("parallel", "parallel", "arbitrary", beside=beside),
        cost_estimate=cost(sizes, batch, codes.shape[1], 2),
        interpret=interpret_params(interpret),
        name="attention_forward",
    )(*read, *also.operands)


def _forward_kernel(call: Call, stride: int | None, with_sinks: bool, codes_ref: Any, *refs: Any) -> None:
    sink_ref, refs = (refs[0], refs[1:]) if with_sinks else (None, refs)
    q_ref, k_ref, v_ref, *mask_refs, out_ref, lse_ref, max_ref, sum_ref, acc_ref = refs
    n, step = pl.program_id(1), pl.program_id(2)
    code = codes_ref[place(stride, pl.program_id(0), step)]
    row, column = schedule.decode(code)

    @pl.when(schedule.is_first(code))
    def start():
        acc_ref[...] = jnp.zeros_like(acc_ref)
        if with_sinks:
            # The virtual key is the first to be seen: its weight is 1 (in LANES equal parts), its value 0.
            sink = jnp.maximum(sink_ref[n], MASKED)
            max_ref[...] = jnp.full_like(max_ref, sink)
            sum_ref[...] = jnp.full_like(sum_ref, jnp.where(sink > MASKED, 1.0 / LANES, 0.0))
        else:
            max_ref[...] = jnp.full_like(max_ref, MASKED)
            sum_ref[...] = jnp.zeros_like(sum_ref)

    def tile(masked: bool) -> None:
        v = v_ref[0, 0]
        s, _ = scores(call, q_ref[0, 0], k_ref[0, 0])
        if masked:
            # A row that has seen no key has maximum MASKED and a wrong sum, which its first real score multiplies by 0.
            seen = visible(call, mask_refs, row, column)
            s, v = jnp.where(seen, s, MASKED), clear_unseen(v, seen)
        old = max_ref[...]
        new = jnp.maximum(old, s.max(axis=1, keepdims=True))
        p = jnp.exp2(s - spread_lanes(new, s.shape[1]))
        decay = jnp.exp2(old - new)
        # Sums stay spread over the lanes until the row is finished: one reduction per row instead of one per tile.
        partial = functools.reduce(jnp.add, [p[:, i : i + LANES] for i in range(0, p.shape[1], LANES)])
        max_ref[...] = new
        sum_ref[...] = decay * sum_ref[...] + partial
        acc_ref[...] = spread_lanes(decay, acc_ref.shape[1]) * acc_ref[...] + dot(p.astype(v.dtype), v, NN)

    when_class(code, tile)

    @pl.when(schedule.is_last(code))
    def finish():
        top = max_ref[...]
        seen = top > MASKED
        total = jnp.where(seen, sum_ref[...].sum(axis=1, keepdims=True), 1.0)
        weight = jnp.where(seen, 1.0 / total, 0.0)
        out_ref[0, 0] = (acc_ref[...] * spread_lanes(weight, acc_ref.shape[1])).astype(out_ref.dtype)
        lse = jnp.where(seen, top + jnp.log2(total), -jnp.inf) * (1.0 / LOG2_E)
        lse_ref[0, 0, 0] = lse[:, 0]
