"""Block-sparse flash attention for GPU (Pallas, Triton): the forward kernel. The module also exports `backward`.

One program computes one block of queries of one head: it reads which runs of tiles its row has, first those
without a mask, then those that evaluate it (`schedule.runs`). Source: Dao 2023, "FlashAttention-2", algorithm 1.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels.attention import schedule
from kernels.attention.flash import LOG2_E, MASKED, NN, Call, check, clear_unseen, dot, in_32_bits, scores
from kernels.attention.gpu_backward import backward
from kernels.attention.gpu_common import (
    mask_arrays,
    mask_specs,
    over_tiles,
    padded,
    run_specs,
    sizes_of,
    visible,
)
from kernels.attention.scoring import Scoring

__all__ = ["backward", "forward"]


@in_32_bits
def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Attention of q [B, T, N, H] over k, v [B, S, K, H] under `scoring`: out [B, T, N, H], natural lse [B, N, T].

    Keys and values that no query sees may be NaN. Raises NotImplementedError for a bias, for types other than bfloat16
    and float32, and for H above 256.
    """
    check("pallas_gpu", q, k, v, scoring.bias)
    sizes, parameters = sizes_of(q, k)
    call, sinks = Call.of(sizes, scoring), scoring.sinks
    runs = schedule.runs(schedule.classes(scoring.mask, sizes.T, sizes.S, sizes.block_q, sizes.block_k))
    masks = mask_arrays(scoring.mask, sizes)
    padded_q, keys = padded(q, sizes, sizes.block_q), [padded(x, sizes, sizes.block_k) for x in (k, v)]
    rows = padded_q.shape[1] // sizes.block_q

    # Rows run last to first: under a causal mask the long ones start first and the short ones fill the gaps.
    def at(row: Any, n: Any, b: Any) -> tuple:
        return rows - 1 - row, n, b

    def reordered(spec: pl.BlockSpec) -> pl.BlockSpec:
        return pl.BlockSpec(spec.block_shape, lambda *place: spec.index_map(*at(*place)))

    query = pl.BlockSpec((None, sizes.block_q, None, sizes.H), lambda row, n, b: (b, row, n, 0))
    key = pl.BlockSpec(
        (None, keys[0].shape[1], None, sizes.H), lambda row, n, b: (b, 0, jax.lax.div(n, jnp.int32(sizes.group)), 0)
    )
    specs = [*run_specs(runs), query, key, key, *mask_specs(masks)]
    sink_arrays = [] if sinks is None else [sinks.astype(jnp.float32) * LOG2_E]
    specs += [pl.BlockSpec((None,), lambda row, n, b: (n,)) for _ in sink_arrays]
    lse = pl.BlockSpec((None, None, sizes.block_q), lambda row, n, b: (b, n, row))
    out, lse = pl.pallas_call(
        functools.partial(_forward_kernel, call, rows, sinks is not None),
        grid=(rows, sizes.N, sizes.B),
        in_specs=[reordered(s) for s in specs],
        out_specs=[reordered(query), reordered(lse)],
        out_shape=[
            jax.ShapeDtypeStruct(padded_q.shape, q.dtype),
            jax.ShapeDtypeStruct((sizes.B, sizes.N, padded_q.shape[1]), jnp.float32),
        ],
        compiler_params=parameters,
        interpret=interpret,
        name="attention_forward",
    )(*map(jnp.asarray, runs), padded_q, *keys, *masks, *sink_arrays)
    return out[:, : sizes.T, :, : q.shape[3]], lse[:, :, : sizes.T]


def _forward_kernel(call: Call, rows: int, with_sinks: bool, *refs: Any) -> None:
    bounds_ref, counts_ref, q_ref, k_ref, v_ref, *mask_refs, out_ref, lse_ref = refs
    sizes, row = call.sizes, rows - 1 - pl.program_id(0)
    q = q_ref[...]
    if with_sinks:
        # The virtual key is the first to be seen: its weight is 1, its value 0.
        sink = jnp.maximum(mask_refs.pop()[...], MASKED)
        top = jnp.full((sizes.block_q,), sink)
        total = jnp.exp2(jnp.where(top > MASKED, 0.0, -jnp.inf))
    else:
        top, total = jnp.full((sizes.block_q,), MASKED, jnp.float32), jnp.zeros((sizes.block_q,), jnp.float32)

    def tile(masked: bool, column: Any, carry: tuple) -> tuple:
        acc, old, total = carry
        where = pl.ds(column * sizes.block_k, sizes.block_k)
        v = v_ref[where, :]
        s, _ = scores(call, q, k_ref[where, :])
        if masked:
            # A row that has seen no key has maximum MASKED and a wrong sum, which its first real score multiplies by 0.
            seen = visible(call, mask_refs, row, column)
            s, v = jnp.where(seen, s, MASKED), clear_unseen(v, seen)
        new = jnp.maximum(old, s.max(axis=1))
        p = jnp.exp2(s - new[:, None])
        decay = jnp.exp2(old - new)
        return acc * decay[:, None] + dot(p.astype(v.dtype), v, NN), new, total * decay + p.sum(axis=1)

    carry = (jnp.zeros((sizes.block_q, sizes.H), jnp.float32), top, total)
    acc, top, total = over_tiles(bounds_ref, counts_ref, tile, carry)
    seen = top > MASKED
    total = jnp.where(seen, total, 1.0)
    out_ref[...] = (acc * jnp.where(seen, 1.0 / total, 0.0)[:, None]).astype(out_ref.dtype)
    lse_ref[...] = jnp.where(seen, top + jnp.log2(total), -jnp.inf) * (1.0 / LOG2_E)
