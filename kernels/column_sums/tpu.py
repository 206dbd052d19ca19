"""Column sums for TPU (Pallas, Mosaic): each block of keys walks the blocks of queries whose tile is not empty.

Tiles are transposed, [keys, queries], so that numbers of a query lie along lanes; sums stay spread over the lanes until
a block of keys is finished.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.attention import schedule
from kernels.attention.flash import LOG2_E, MASKED, Call, check, in_32_bits, pad_to, scores
from kernels.attention.scoring import Scoring
from kernels.attention.tpu_common import (
    LANES,
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
    visible,
    when_class,
)
from kernels.column_sums.noisy import Noise, noisy


@in_32_bits
def columns(
    q: jax.Array,
    k: jax.Array,
    lse: jax.Array,
    weights: jax.Array,
    scoring: Scoring,
    noise: Noise | None,
    interpret: Any = False,
) -> jax.Array:
    """As `reference.columns`. Raises NotImplementedError for types other than bfloat16 and float32."""
    call, arrays, table = _opened(q, k, scoring)
    sizes = call.sizes
    arrays += [pad_to(x.astype(jnp.float32), 2, sizes.block_q)[:, :, None] for x in (lse * LOG2_E, weights)]
    steps = schedule.walk(schedule.transpose(table))
    found = _by_batch(_column_call, call, steps, arrays, True, noise, interpret)
    return found[:, :, 0, : sizes.S]


@in_32_bits
def rows(q: jax.Array, k: jax.Array, scoring: Scoring, noise: Noise | None, interpret: Any = False) -> jax.Array:
    """As `reference.rows`."""
    call, arrays, table = _opened(q, k, scoring)
    return _by_batch(_row_call, call, schedule.walk(table), arrays, False, noise, interpret)[:, :, 0, : call.sizes.T]


def _opened(q: jax.Array, k: jax.Array, scoring: Scoring) -> tuple[Call, list[jax.Array], Any]:
    """What both kernels read: sizes and mask, q and k head by head, the classes of all tiles."""
    check("pallas_tpu", q, k, k, scoring.bias)
    sizes = sizes_of(q, k)
    arrays = [head_major(q, sizes, sizes.block_q), head_major(k, sizes, sizes.block_k)]
    table = schedule.classes(scoring.mask, sizes.T, sizes.S, sizes.block_q, sizes.block_k)
    return Call.of(sizes, scoring), arrays, table


def _by_batch(
    build: Any, call: Call, steps: schedule.Walk, arrays: list, transposed: bool, noise: Any, interpret: Any
) -> jax.Array:
    operands = mask_operands(call.mask, call.sizes, transposed)
    parts = []
    for some in batches(steps.codes, call.sizes.B):
        part = jax.tree.map(lambda x, some=some: x if x.shape[0] == 1 else x[some], (steps.codes, operands, arrays))
        parts.append(build(call, steps._replace(codes=part[0]), *part[1:], noise, interpret))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _column_call(call: Call, steps: Any, operands: MaskOperands, arrays: list, noise: Any, interpret: Any) -> jax.Array:
    """Grid (B, K, tiles column by column, query heads of the group), summed over the group in place."""
    sizes, batch, stride = call.sizes, arrays[0].shape[0], stride_of(steps.codes)

    def where(b: Any, kv_head: Any, step: Any, member: Any, codes_ref: Any) -> tuple:
        column, row = schedule.decode(codes_ref[place(stride, b, step)])
        return b, kv_head * sizes.group + member, row, column

    def at_key(*at: Any) -> tuple:
        b, _, _, column = where(*at)
        return b, at[1], 0, column

    query, key, per_row = block_specs(sizes, where)
    return pl.pallas_call(
        functools.partial(_column_kernel, call, stride, noise),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, sizes.K, steps.length, sizes.group),
            in_specs=[query, key, per_row, per_row, *mask_specs(operands, sizes, where, transposed=True)],
            out_specs=pl.BlockSpec((1, 1, 1, sizes.block_k), at_key),
            scratch_shapes=[pltpu.VMEM((sizes.block_k, LANES), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, sizes.K, 1, arrays[1].shape[2]), jnp.float32),
        compiler_params=compiler_params("parallel", "parallel", "arbitrary", "arbitrary"),
        cost_estimate=cost(sizes, batch, steps.codes.shape[1], 1),
        interpret=interpret_params(interpret),
        name="column_sums",
    )(jnp.asarray(steps.codes).reshape(-1), *arrays, *jax.tree.leaves(operands))


def _row_call(call: Call, steps: Any, operands: MaskOperands, arrays: list, noise: Any, interpret: Any) -> jax.Array:
    """Grid (B, N, tiles row by row)."""
    sizes, batch, stride = call.sizes, arrays[0].shape[0], stride_of(steps.codes)

    def where(b: Any, n: Any, step: Any, codes_ref: Any) -> tuple:
        return b, n, *schedule.decode(codes_ref[place(stride, b, step)])

    query, key, per_row = block_specs(sizes, where)
    return pl.pallas_call(
        functools.partial(_row_kernel, call, stride, noise),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, sizes.N, steps.length),
            in_specs=[query, key, *mask_specs(operands, sizes, where)],
            out_specs=per_row,
            scratch_shapes=[pltpu.VMEM((sizes.block_q, LANES), jnp.float32) for _ in range(2)],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, sizes.N, 1, arrays[0].shape[2]), jnp.float32),
        compiler_params=compiler_params("parallel", "parallel", "arbitrary"),
        cost_estimate=cost(sizes, batch, steps.codes.shape[1], 1),
        interpret=interpret_params(interpret),
        name="row_lse",
    )(jnp.asarray(steps.codes).reshape(-1), *arrays, *jax.tree.leaves(operands))


def _scores(call: Call, noise: Any, x: jax.Array, y: jax.Array, head: Any, row: Any, column: Any, q_axis: int):
    """Noisy scores of a tile in base 2; queries lie along `q_axis`."""
    sizes, (s, _) = call.sizes, scores(call, x, y)
    if noise is None:
        return s
    iota = lambda axis: jax.lax.broadcasted_iota(jnp.int32, s.shape, axis)  # noqa: E731
    query = sizes.S - sizes.T + row * sizes.block_q + iota(q_axis)
    return noisy(noise, s, head, query, column * sizes.block_k + iota(1 - q_axis), LOG2_E)


def _by_lanes(p: jax.Array) -> jax.Array:
    """[rows, LANES] of p [rows, columns]: sums of every LANES-th column."""
    return functools.reduce(jnp.add, [p[:, i : i + LANES] for i in range(0, p.shape[1], LANES)])


def _column_kernel(call: Call, stride: int | None, noise: Any, codes_ref: Any, *refs: Any) -> None:
    q_ref, k_ref, lse_ref, weight_ref, *mask_refs, out_ref, acc_ref = refs
    sizes, step, member = call.sizes, pl.program_id(2), pl.program_id(3)
    head = pl.program_id(1) * sizes.group + member
    code = codes_ref[place(stride, pl.program_id(0), step)]
    column, row = schedule.decode(code)

    @pl.when(schedule.is_first(code) & (member == 0))
    def start():
        acc_ref[...] = jnp.zeros_like(acc_ref)

    def tile(masked: bool) -> None:
        s = _scores(call, noise, k_ref[0, 0], q_ref[0, 0], head, row, column, 1)
        p = jnp.exp2(s - lse_ref[0, 0]) * weight_ref[0, 0]
        if masked:
            p = jnp.where(visible(call, mask_refs, row, column, transposed=True), p, 0.0)
        acc_ref[...] += _by_lanes(p)

    when_class(code, tile)

    @pl.when(schedule.is_last(code) & (member == sizes.group - 1))
    def finish():
        out_ref[0, 0, 0] = acc_ref[...].sum(axis=1, keepdims=True)[:, 0]


def _row_kernel(call: Call, stride: int | None, noise: Any, codes_ref: Any, *refs: Any) -> None:
    q_ref, k_ref, *mask_refs, lse_ref, max_ref, sum_ref = refs
    n, step = pl.program_id(1), pl.program_id(2)
    code = codes_ref[place(stride, pl.program_id(0), step)]
    row, column = schedule.decode(code)

    @pl.when(schedule.is_first(code))
    def start():
        max_ref[...] = jnp.full_like(max_ref, MASKED)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    def tile(masked: bool) -> None:
        s = _scores(call, noise, q_ref[0, 0], k_ref[0, 0], n, row, column, 0)
        if masked:
            # A row that has seen no key has maximum MASKED and a wrong sum, which its first real score multiplies by 0.
            s = jnp.where(visible(call, mask_refs, row, column), s, MASKED)
        old = max_ref[...]
        new = jnp.maximum(old, s.max(axis=1, keepdims=True))
        max_ref[...] = new
        sum_ref[...] = jnp.exp2(old - new) * sum_ref[...] + _by_lanes(jnp.exp2(s - spread_lanes(new, s.shape[1])))

    when_class(code, tile)

    @pl.when(schedule.is_last(code))
    def finish():
        top = max_ref[...]
        seen = top > MASKED
        total = jnp.where(seen, sum_ref[...].sum(axis=1, keepdims=True), 1.0)
        lse_ref[0, 0, 0] = jnp.where(seen, (top + jnp.log2(total)) * (1.0 / LOG2_E), -jnp.inf)[:, 0]
