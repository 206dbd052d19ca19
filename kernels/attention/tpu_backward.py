"""The backward kernels of block-sparse flash attention for TPU: queries' gradients row by row, keys' column by column.

Scores are recomputed from lse. The key kernel works on transposed tiles [keys, queries], so that no matrix of
probabilities is ever transposed and numbers of a query lie along lanes.
Source: Dao 2023, "FlashAttention-2", algorithm 2.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.attention import schedule
from kernels.attention.flash import (
    NN,
    NT,
    Call,
    check,
    clear_unseen,
    dot,
    in_32_bits,
    opening,
    scores,
)
from kernels.attention.scoring import Result, Scoring
from kernels.attention.tpu_common import (
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
    stride_of,
    token_major,
    visible,
    when_class,
)


@in_32_bits
def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scoring: Scoring,
    result: Result,
    cotangent: Result,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array, None, jax.Array | None]:
    """Gradients (dq, dk, dv, None, dsinks) of `forward`, from its result and the cotangents of it.

    Shapes and errors as in `forward`. A row that sees nothing has gradient 0. dsinks is float32 [N].
    """
    check("pallas_tpu", q, k, v, scoring.bias)
    sizes = sizes_of(q, k)
    call, blocks = Call.of(sizes, scoring), (sizes.block_q, sizes.block_k)
    lay = lambda x, block: head_major(x, sizes, block)  # noqa: E731
    (*arrays, lse, delta), d_sinks = opening((q, k, v), scoring.sinks, result, cotangent, lay, *blocks)
    arrays += [lse[:, :, None], delta[:, :, None]]
    table = schedule.classes(scoring.mask, sizes.T, sizes.S, *blocks)
    (dq,) = _by_batch(_query_call, call, schedule.walk(table), arrays, False, interpret)
    dk, dv = _by_batch(_key_call, call, schedule.walk(schedule.transpose(table)), arrays, True, interpret)
    width = q.shape[3]
    return (
        token_major(dq, sizes.T, width),
        token_major(dk, sizes.S, width),
        token_major(dv, sizes.S, width),
        None,
        d_sinks,
    )


def _by_batch(build: Any, call: Call, steps: schedule.Walk, arrays: list, transposed: bool, interpret: bool) -> tuple:
    operands = mask_operands(call.mask, call.sizes, transposed)
    parts = []
    for rows in batches(steps.codes, call.sizes.B):
        part = jax.tree.map(lambda x, rows=rows: x if x.shape[0] == 1 else x[rows], (steps.codes, operands, arrays))
        parts.append(build(call, steps._replace(codes=part[0]), *part[1:], interpret))
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _query_call(call: Call, steps: schedule.Walk, operands: MaskOperands, arrays: list, interpret: bool) -> tuple:
    """dq: grid (B, N, tiles row by row)."""
    sizes, batch, stride = call.sizes, arrays[0].shape[0], stride_of(steps.codes)

    def where(b: Any, n: Any, step: Any, codes_ref: Any) -> tuple:
        return b, n, *schedule.decode(codes_ref[place(stride, b, step)])

    query, key, per_row = block_specs(sizes, where)
    return pl.pallas_call(
        functools.partial(_query_kernel, call, stride),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, sizes.N, steps.length),
            in_specs=[query, query, key, key, per_row, per_row, *mask_specs(operands, sizes, where)],
            out_specs=[query],
            scratch_shapes=[pltpu.VMEM((sizes.block_q, sizes.H), jnp.float32)],
        ),
        out_shape=[jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)],
        compiler_params=compiler_params("parallel", "parallel", "arbitrary"),
        cost_estimate=cost(sizes, batch, steps.codes.shape[1], 3),
        interpret=interpret_params(interpret),
        name="attention_backward_queries",
    )(jnp.asarray(steps.codes).reshape(-1), *arrays, *jax.tree.leaves(operands))


def _key_call(call: Call, steps: schedule.Walk, operands: MaskOperands, arrays: list, interpret: bool) -> tuple:
    """dk, dv: grid (B, K, tiles column by column, query heads of the group), summed over the group in place."""
    sizes, batch, stride = call.sizes, arrays[0].shape[0], stride_of(steps.codes)

    def where(b: Any, kv_head: Any, step: Any, member: Any, codes_ref: Any) -> tuple:
        column, row = schedule.decode(codes_ref[place(stride, b, step)])
        return b, kv_head * sizes.group + member, row, column

    query, key, per_row = block_specs(sizes, where)
    return pl.pallas_call(
        functools.partial(_key_kernel, call, stride),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, sizes.K, steps.length, sizes.group),
            in_specs=[query, query, key, key, per_row, per_row, *mask_specs(operands, sizes, where, transposed=True)],
            out_specs=[key, key],
            scratch_shapes=[pltpu.VMEM((sizes.block_k, sizes.H), jnp.float32) for _ in range(2)],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays[2:4]],
        compiler_params=compiler_params("parallel", "parallel", "arbitrary", "arbitrary"),
        cost_estimate=cost(sizes, batch, steps.codes.shape[1], 4),
        interpret=interpret_params(interpret),
        name="attention_backward_keys",
    )(jnp.asarray(steps.codes).reshape(-1), *arrays, *jax.tree.leaves(operands))


def _query_kernel(call: Call, stride: int | None, codes_ref: Any, *refs: Any) -> None:
    q_ref, d_out_ref, k_ref, v_ref, lse_ref, delta_ref, *mask_refs, dq_ref, acc_ref = refs
    step = pl.program_id(2)
    code = codes_ref[place(stride, pl.program_id(0), step)]
    row, column = schedule.decode(code)

    @pl.when(schedule.is_first(code))
    def start():
        acc_ref[...] = jnp.zeros_like(acc_ref)

    def tile(masked: bool) -> None:
        k = k_ref[0, 0]
        s, slope = scores(call, q_ref[0, 0], k)
        p = jnp.exp2(s - jnp.expand_dims(lse_ref[0, 0, 0], 1))
        dp = dot(d_out_ref[0, 0], v_ref[0, 0], NT)
        ds = p * (dp - jnp.expand_dims(delta_ref[0, 0, 0], 1))
        ds = ds if slope is None else ds * slope
        if masked:
            seen = visible(call, mask_refs, row, column)
            ds, k = jnp.where(seen, ds, 0.0), clear_unseen(k, seen)
        acc_ref[...] += dot(ds.astype(k.dtype), k, NN)

    when_class(code, tile)

    @pl.when(schedule.is_last(code))
    def finish():
        dq_ref[0, 0] = (acc_ref[...] * call.scale).astype(dq_ref.dtype)


def _key_kernel(call: Call, stride: int | None, codes_ref: Any, *refs: Any) -> None:
    q_ref, d_out_ref, k_ref, v_ref, lse_ref, delta_ref, *mask_refs, dk_ref, dv_ref, dk_acc_ref, dv_acc_ref = refs
    step, member = pl.program_id(2), pl.program_id(3)
    code = codes_ref[place(stride, pl.program_id(0), step)]
    column, row = schedule.decode(code)

    @pl.when(schedule.is_first(code) & (member == 0))
    def start():
        dk_acc_ref[...] = jnp.zeros_like(dk_acc_ref)
        dv_acc_ref[...] = jnp.zeros_like(dv_acc_ref)

    def tile(masked: bool) -> None:
        q, d_out = q_ref[0, 0], d_out_ref[0, 0]
        s, slope = scores(call, k_ref[0, 0], q)
        p = jnp.exp2(s - lse_ref[0, 0])
        ds = p * (dot(v_ref[0, 0], d_out, NT) - delta_ref[0, 0])
        ds = ds if slope is None else ds * slope
        if masked:
            seen = visible(call, mask_refs, row, column, transposed=True)
            p, ds, q = jnp.where(seen, p, 0.0), jnp.where(seen, ds, 0.0), clear_unseen(q, seen)
        dv_acc_ref[...] += dot(p.astype(d_out.dtype), d_out, NN)
        dk_acc_ref[...] += dot(ds.astype(q.dtype), q, NN)

    when_class(code, tile)

    @pl.when(schedule.is_last(code) & (member == call.sizes.group - 1))
    def finish():
        dk_ref[0, 0] = (dk_acc_ref[...] * call.scale).astype(dk_ref.dtype)
        dv_ref[0, 0] = dv_acc_ref[...].astype(dv_ref.dtype)
