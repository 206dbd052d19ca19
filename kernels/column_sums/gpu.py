"""Column sums for GPU (Pallas, Triton): one program for each block of keys, over the query heads of its group."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels.attention import schedule
from kernels.attention.flash import LOG2_E, MASKED, Call, check, in_32_bits, pad_to, scores
from kernels.attention.gpu_common import mask_arrays, mask_specs, over_tiles, padded, run_specs, sizes_of, visible
from kernels.attention.scoring import Scoring
from kernels.column_sums.noisy import Noise, noisy


@in_32_bits
def columns(
    q: jax.Array,
    k: jax.Array,
    lse: jax.Array,
    weights: jax.Array,
    scoring: Scoring,
    noise: Noise | None,
    interpret: bool = False,
) -> jax.Array:
    """As `reference.columns`. Raises NotImplementedError for types other than bfloat16 and float32, and for H above
    256."""
    call, arrays, table, parameters = _opened(q, k, scoring)
    sizes, masks = call.sizes, mask_arrays(scoring.mask, call.sizes)
    arrays += [pad_to(x.astype(jnp.float32), 2, sizes.block_q) for x in (lse * LOG2_E, weights)]
    runs, length = schedule.runs(schedule.transpose(table)), arrays[0].shape[1]
    query = pl.BlockSpec((None, length, sizes.group, sizes.H), lambda column, kv_head, b: (b, 0, kv_head, 0))
    key = pl.BlockSpec((None, sizes.block_k, None, sizes.H), lambda column, kv_head, b: (b, column, kv_head, 0))
    per_row = pl.BlockSpec((None, sizes.group, length), lambda column, kv_head, b: (b, kv_head, 0))
    found = pl.pallas_call(
        functools.partial(_column_kernel, call, noise),
        grid=(arrays[1].shape[1] // sizes.block_k, sizes.K, sizes.B),
        in_specs=[*run_specs(runs), query, key, per_row, per_row, *mask_specs(masks, sizes.group)],
        out_specs=pl.BlockSpec((None, None, sizes.block_k), lambda column, kv_head, b: (b, kv_head, column)),
        out_shape=jax.ShapeDtypeStruct((sizes.B, sizes.K, arrays[1].shape[1]), jnp.float32),
        compiler_params=parameters,
        interpret=interpret,
        name="column_sums",
    )(*map(jnp.asarray, runs), *arrays, *masks)
    return found[:, :, : sizes.S]


@in_32_bits
def rows(q: jax.Array, k: jax.Array, scoring: Scoring, noise: Noise | None, interpret: bool = False) -> jax.Array:
    """As `reference.rows`."""
    call, arrays, table, parameters = _opened(q, k, scoring)
    sizes, masks, runs = call.sizes, mask_arrays(scoring.mask, call.sizes), schedule.runs(table)
    query = pl.BlockSpec((None, sizes.block_q, None, sizes.H), lambda row, n, b: (b, row, n, 0))
    key = pl.BlockSpec(
        (None, arrays[1].shape[1], None, sizes.H), lambda row, n, b: (b, 0, jax.lax.div(n, jnp.int32(sizes.group)), 0)
    )
    found = pl.pallas_call(
        functools.partial(_row_kernel, call, noise),
        grid=(arrays[0].shape[1] // sizes.block_q, sizes.N, sizes.B),
        in_specs=[*run_specs(runs), query, key, *mask_specs(masks)],
        out_specs=pl.BlockSpec((None, None, sizes.block_q), lambda row, n, b: (b, n, row)),
        out_shape=jax.ShapeDtypeStruct((sizes.B, sizes.N, arrays[0].shape[1]), jnp.float32),
        compiler_params=parameters,
        interpret=interpret,
        name="row_lse",
    )(*map(jnp.asarray, runs), *arrays, *masks)
    return found[:, :, : sizes.T]


def _opened(q: jax.Array, k: jax.Array, scoring: Scoring) -> tuple[Call, list[jax.Array], Any, Any]:
    """Sizes and mask, q and k in whole blocks, the classes of all tiles, and compiler parameters."""
    check("pallas_gpu", q, k, k, scoring.bias)
    sizes, parameters = sizes_of(q, k, backward=True)
    arrays = [padded(q, sizes, sizes.block_q), padded(k, sizes, sizes.block_k)]
    table = schedule.classes(scoring.mask, sizes.T, sizes.S, sizes.block_q, sizes.block_k)
    return Call.of(sizes, scoring), arrays, table, parameters


def _scores(call: Call, noise: Any, x: jax.Array, y: jax.Array, head: Any, row: Any, column: Any, q_axis: int):
    """Noisy scores of a tile in base 2; queries lie along `q_axis`."""
    sizes, (s, _) = call.sizes, scores(call, x, y)
    query = sizes.S - sizes.T + row * sizes.block_q + jnp.arange(sizes.block_q, dtype=jnp.int32)
    key = column * sizes.block_k + jnp.arange(sizes.block_k, dtype=jnp.int32)
    at = jnp.expand_dims(query, 1 - q_axis), jnp.expand_dims(key, q_axis)
    return noisy(noise, s, head, *at, LOG2_E)


def _column_kernel(call: Call, noise: Any, *refs: Any) -> None:
    bounds_ref, counts_ref, q_ref, k_ref, lse_ref, weight_ref, *mask_refs, out_ref = refs
    sizes, column, kv_head, k = call.sizes, pl.program_id(0), pl.program_id(1), k_ref[...]

    def tile(member: Any, masked: bool, row: Any, total: jax.Array) -> jax.Array:
        where = pl.ds(row * sizes.block_q, sizes.block_q)
        s = _scores(call, noise, k, q_ref[where, member, :], kv_head * sizes.group + member, row, column, 1)
        p = jnp.exp2(s - lse_ref[member, where][None, :]) * weight_ref[member, where][None, :]
        if masked:
            p = jnp.where(visible(call, mask_refs, row, column, member, transposed=True), p, 0.0)
        return total + p.sum(axis=1)

    def head(member: Any, total: jax.Array) -> jax.Array:
        return over_tiles(bounds_ref, counts_ref, functools.partial(tile, member), total)

    zeros = jnp.zeros((sizes.block_k,), jnp.float32)
    out_ref[...] = jax.lax.fori_loop(0, sizes.group, head, zeros) if sizes.group > 1 else head(0, zeros)


def _row_kernel(call: Call, noise: Any, *refs: Any) -> None:
    bounds_ref, counts_ref, q_ref, k_ref, *mask_refs, lse_ref = refs
    sizes, row, n, q = call.sizes, pl.program_id(0), pl.program_id(1), q_ref[...]

    def tile(masked: bool, column: Any, carry: tuple) -> tuple:
        old, total = carry
        s = _scores(call, noise, q, k_ref[pl.ds(column * sizes.block_k, sizes.block_k), :], n, row, column, 0)
        if masked:
            # A row that has seen no key has maximum MASKED and a wrong sum, which its first real score multiplies by 0.
            s = jnp.where(visible(call, mask_refs, row, column), s, MASKED)
        new = jnp.maximum(old, s.max(axis=1))
        return new, total * jnp.exp2(old - new) + jnp.exp2(s - new[:, None]).sum(axis=1)

    start = jnp.full((sizes.block_q,), MASKED, jnp.float32), jnp.zeros((sizes.block_q,), jnp.float32)
    top, total = over_tiles(bounds_ref, counts_ref, tile, start)
    seen = top > MASKED
    total = jnp.where(seen, total, 1.0)
    lse_ref[...] = jnp.where(seen, (top + jnp.log2(total)) * (1.0 / LOG2_E), -jnp.inf)
