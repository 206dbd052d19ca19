"""The backward kernels of block-sparse flash attention for GPU: one block of queries, or one block of keys, a program.

Scores are recomputed from lse. The key kernel works on transposed tiles [keys, queries] and sums over the query heads
of its group, so that nothing is repeated for grouped heads. Source: Dao 2023, "FlashAttention-2", algorithm 2.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

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
from kernels.attention.gpu_common import (
    mask_arrays,
    mask_specs,
    over_tiles,
    padded,
    run_specs,
    sizes_of,
    visible,
)
from kernels.attention.scoring import Result, Scoring


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
    check("pallas_gpu", q, k, v, scoring.bias)
    sizes, parameters = sizes_of(q, k, backward=True)
    call = Call.of(sizes, scoring)
    lay = lambda x, block: padded(x, sizes, block)  # noqa: E731
    blocks = sizes.block_q, sizes.block_k
    arrays, d_sinks = opening((q, k, v), scoring.sinks, result, cotangent, lay, *blocks)
    table = schedule.classes(scoring.mask, sizes.T, sizes.S, *blocks)
    dq = _query_call(call, schedule.runs(table), arrays, parameters, interpret)
    dk, dv = _key_call(call, schedule.runs(schedule.transpose(table)), arrays, parameters, interpret)
    width = q.shape[3]
    return dq[:, : sizes.T, :, :width], dk[:, : sizes.S, :, :width], dv[:, : sizes.S, :, :width], None, d_sinks


def _query_call(call: Call, runs: Any, arrays: list, parameters: Any, interpret: bool) -> jax.Array:
    """dq: one program for each (block of queries, query head, row of the batch)."""
    sizes = call.sizes
    masks = mask_arrays(call.mask, sizes)
    query = pl.BlockSpec((None, sizes.block_q, None, sizes.H), lambda row, n, b: (b, row, n, 0))
    key = pl.BlockSpec(
        (None, arrays[2].shape[1], None, sizes.H), lambda row, n, b: (b, 0, jax.lax.div(n, jnp.int32(sizes.group)), 0)
    )
    per_row = pl.BlockSpec((None, None, sizes.block_q), lambda row, n, b: (b, n, row))
    return pl.pallas_call(
        functools.partial(_query_kernel, call),
        grid=(arrays[0].shape[1] // sizes.block_q, sizes.N, sizes.B),
        in_specs=[
            *run_specs(runs),
            *(query, query, key, key, per_row, per_row),
            *mask_specs(masks),
        ],
        out_specs=query,
        out_shape=jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype),
        compiler_params=parameters,
        interpret=interpret,
        name="attention_backward_queries",
    )(*map(jnp.asarray, runs), *arrays, *masks)


def _key_call(call: Call, runs: Any, arrays: list, parameters: Any, interpret: bool) -> list[jax.Array]:
    """dk, dv: one program for each (block of keys, key head, row of the batch)."""
    sizes = call.sizes
    masks = mask_arrays(call.mask, sizes)
    length = arrays[0].shape[1]
    query = pl.BlockSpec((None, length, sizes.group, sizes.H), lambda column, kv_head, b: (b, 0, kv_head, 0))
    key = pl.BlockSpec((None, sizes.block_k, None, sizes.H), lambda column, kv_head, b: (b, column, kv_head, 0))
    per_row = pl.BlockSpec((None, sizes.group, length), lambda column, kv_head, b: (b, kv_head, 0))
    return pl.pallas_call(
        functools.partial(_key_kernel, call),
        grid=(arrays[2].shape[1] // sizes.block_k, sizes.K, sizes.B),
        in_specs=[
            *run_specs(runs),
            *(query, query, key, key, per_row, per_row),
            *mask_specs(masks, sizes.group),
        ],
        out_specs=[key, key],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays[2:4]],
        compiler_params=parameters,
        interpret=interpret,
        name="attention_backward_keys",
    )(*map(jnp.asarray, runs), *arrays, *masks)


def _query_kernel(call: Call, *refs: Any) -> None:
    bounds_ref, counts_ref, q_ref, d_out_ref, k_ref, v_ref, lse_ref, delta_ref, *mask_refs, dq_ref = refs
    sizes, row = call.sizes, pl.program_id(0)
    q, d_out, lse, delta = q_ref[...], d_out_ref[...], lse_ref[...], delta_ref[...]

    def tile(masked: bool, column: Any, dq: jax.Array) -> jax.Array:
        where = pl.ds(column * sizes.block_k, sizes.block_k)
        k = k_ref[where, :]
        s, slope = scores(call, q, k)
        p = jnp.exp2(s - lse[:, None])
        ds = p * (dot(d_out, v_ref[where, :], NT) - delta[:, None])
        ds = ds if slope is None else ds * slope
        if masked:
            seen = visible(call, mask_refs, row, column)
            ds, k = jnp.where(seen, ds, 0.0), clear_unseen(k, seen)
        return dq + dot(ds.astype(k.dtype), k, NN)

    dq = over_tiles(bounds_ref, counts_ref, tile, jnp.zeros((sizes.block_q, sizes.H), jnp.float32))
    dq_ref[...] = (dq * call.scale).astype(dq_ref.dtype)


def _key_kernel(call: Call, *refs: Any) -> None:
    bounds_ref, counts_ref, q_ref, d_out_ref, k_ref, v_ref, lse_ref, delta_ref, *mask_refs, dk_ref, dv_ref = refs
    sizes, column = call.sizes, pl.program_id(0)
    k, v = k_ref[...], v_ref[...]

    def tile(member: Any, masked: bool, row: Any, carry: tuple) -> tuple:
        dk, dv = carry
        where = pl.ds(row * sizes.block_q, sizes.block_q)
        q, d_out = q_ref[where, member, :], d_out_ref[where, member, :]
        s, slope = scores(call, k, q)
        p = jnp.exp2(s - lse_ref[member, where][None, :])
        ds = p * (dot(v, d_out, NT) - delta_ref[member, where][None, :])
        ds = ds if slope is None else ds * slope
        if masked:
            seen = visible(call, mask_refs, row, column, member, transposed=True)
            p, ds, q = jnp.where(seen, p, 0.0), jnp.where(seen, ds, 0.0), clear_unseen(q, seen)
        dv = dv + dot(p.astype(d_out.dtype), d_out, NN)
        return dk + dot(ds.astype(q.dtype), q, NN), dv

    def head(member: Any, carry: tuple) -> tuple:
        return over_tiles(bounds_ref, counts_ref, functools.partial(tile, member), carry)

    zeros = jnp.zeros((sizes.block_k, sizes.H), jnp.float32)
    dk, dv = jax.lax.fori_loop(0, sizes.group, head, (zeros, zeros)) if sizes.group > 1 else head(0, (zeros, zeros))
    dk_ref[...] = (dk * call.scale).astype(dk_ref.dtype)
    dv_ref[...] = dv.astype(dv_ref.dtype)
