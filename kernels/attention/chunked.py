"""Attention by tiles in pure JAX: linear memory and no empty tile on any platform; the default on CPU.

Lanes (a few rows of the batch times a few key/value heads) are walked one after another, so that one tile of scores
stays in the processor's cache. In a lane each block of queries walks the tiles that its mask does not leave empty, the
full ones first, with an online softmax. The backward pass recomputes probabilities from lse.
Source: Dao 2023, "FlashAttention-2", algorithms 1 and 2.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kernels.attention import tiling
from kernels.attention.scoring import Result, Scoring
from kernels.attention.tiling import Lane, Tiling


def forward(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring) -> tuple[jax.Array, jax.Array]:
    """As `reference.forward`, in memory linear in T and S."""
    cut = tiling.plan(q.shape, k.shape, scoring.mask, scoring.softcap)
    dtype = accumulator(q, k, v)
    extra, lists = tiling.extra_of(cut, scoring.bias, dtype), tiling.visits(cut)
    queries = tiling.to_queries(cut, q.astype(dtype) * scoring.scale)
    keys = [tiling.to_keys(cut, x.astype(dtype)) for x in (k, v)]
    heads = tiling.to_heads(cut, scoring.sinks, dtype, q.shape[0])

    def lane(_, args):
        at, q, (k, v), sink = args
        here = tiling.lane_of(cut, extra, lists, at)

        def row(carry, i):
            return carry, _forward_row(cut, here, q[i], k, v, i, sink)

        return None, tiling.scan_rows(cut, here, row, None)[1]

    at = jnp.arange(queries.shape[0])
    out, lse = lax.scan(lane, None, (at, queries, keys, heads))[1]
    lse = tiling.from_queries(cut, lse[..., None])[..., 0].swapaxes(1, 2)
    return tiling.from_queries(cut, out).astype(q.dtype), lse


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, result: Result, cotangent: Result
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """Gradients (dq, dk, dv, dbias, dsinks) from the results of `forward` and their cotangents."""
    cut = tiling.plan(q.shape, k.shape, scoring.mask, scoring.softcap, backward=True)
    dtype = accumulator(q, k, v)
    extra, lists = tiling.extra_of(cut, scoring.bias, dtype), tiling.visits(cut)
    delta, lse, d_sinks = row_terms(result, cotangent, scoring.sinks, dtype)
    queries = tiling.to_queries(cut, q.astype(dtype) * scoring.scale)
    keys = [tiling.to_keys(cut, x.astype(dtype)) for x in (k, v)]
    rows = [tiling.to_queries(cut, cotangent.out.astype(dtype))]
    rows += [tiling.to_queries(cut, x.swapaxes(1, 2)[..., None])[..., 0] for x in (lse, delta)]

    def lane(d_bias, args):
        at, q, (k, v), (d_out, lse, delta) = args
        here = tiling.lane_of(cut, extra, lists, at)

        def row(carry, i):
            return _backward_row(cut, here, (q[i], d_out[i], lse[i], delta[i]), k, v, i, carry)

        (dk, dv, d_bias), dq = tiling.scan_rows(cut, here, row, (jnp.zeros_like(k), jnp.zeros_like(v), d_bias))
        return d_bias, (dq, dk, dv)

    d_bias = None if scoring.bias is None else jnp.zeros(extra.bias.shape, dtype)
    d_bias, (dq, dk, dv) = lax.scan(lane, d_bias, (jnp.arange(queries.shape[0]), queries, keys, rows))
    dq = (tiling.from_queries(cut, dq) * scoring.scale).astype(q.dtype)
    dk, dv = (tiling.from_keys(cut, d).astype(x.dtype) for d, x in ((dk, k), (dv, v)))
    if scoring.bias is not None:
        d_bias = tiling.from_bias(cut, d_bias, scoring.bias)
    return dq, dk, dv, d_bias, d_sinks


def accumulator(*arrays: jax.Array) -> Any:
    """float64 when any array is, else float32."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def row_terms(
    result: Result, cotangent: Result, sinks: jax.Array | None, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Per query: delta = out . d_out - d_lse, and lse with 0 where nothing is seen, [B, N, T]; and dsinks [N].

    d score = p (d p - delta): the one place where the gradient of lse enters.
    """
    alive = result.lse > -jnp.inf
    delta = jnp.einsum("btnh,btnh->bnt", result.out.astype(dtype), cotangent.out.astype(dtype))
    delta = delta - cotangent.lse.astype(dtype)
    delta, lse = jnp.where(alive, delta, 0), jnp.where(alive, result.lse, 0).astype(dtype)
    if sinks is None:
        return delta, lse, None
    weight = jnp.where(alive, jnp.exp(sinks.astype(dtype)[:, None] - lse), 0)
    return delta, lse, -(weight * delta).sum((0, 2))


def _forward_row(cut: Tiling, here: Lane, q: jax.Array, k: jax.Array, v: jax.Array, i: Any, sink: Any) -> tuple:
    """One block of queries q [b, k, G block_q, H] of a lane against all its keys: out and lse of the block."""

    def visit(partial: bool) -> Callable:
        def step(n, carry):
            top, total, out = carry
            j = here.columns[i][n]
            k_tile, v_tile = (tiling.part(x, 2, j, cut.block_k) for x in (k, v))
            score, seen, _ = tiling.scores(cut, here, q, k_tile, i, j, partial)
            if partial:
                v_tile = jnp.where(seen.any((2, 3))[..., None], v_tile, 0)
            new = jnp.maximum(top, score.max(-1))
            pivot = jnp.where(new == -jnp.inf, 0, new)
            weight, keep = jnp.exp(score - pivot[..., None]), jnp.exp(top - pivot)
            out = out * keep[..., None] + tiling.dot(weight, v_tile, "bkrs,bksh->bkrh")
            return new, total * keep + weight.sum(-1), out

        return step

    rows = q.shape[:3]
    top = jnp.full(rows, -jnp.inf, q.dtype) if sink is None else jnp.broadcast_to(tiling.per_row(cut, sink), rows)
    total = jnp.zeros(rows, q.dtype) if sink is None else jnp.ones(rows, q.dtype)
    carry = (top, total, jnp.zeros((*rows, v.shape[-1]), q.dtype))
    carry = tiling.each(0, here.full[i], visit(False), carry)
    top, total, out = tiling.each(here.full[i], here.total[i], visit(True), carry)
    some = (total > 0) & (top > -jnp.inf)
    total = jnp.where(some, total, 1)
    return out / total[..., None], jnp.where(some, top + jnp.log(total), -jnp.inf)


def _backward_row(cut: Tiling, here: Lane, row: tuple, k: jax.Array, v: jax.Array, i: Any, carry: tuple) -> tuple:
    """One block of queries: adds to dk, dv [b, k, S, H] and dbias, and returns its own dq (before the scale)."""
    q, d_out, lse, delta = row

    def visit(partial: bool) -> Callable:
        def step(n, carry):
            dq, (dk, dv, d_bias) = carry
            j = here.columns[i][n]
            k_tile, v_tile = (tiling.part(x, 2, j, cut.block_k) for x in (k, v))
            score, seen, slope = tiling.scores(cut, here, q, k_tile, i, j, partial)
            q_tile = q
            if partial:
                some_q, some_k = seen.any(-1), seen.any((2, 3))
                some_q = jnp.broadcast_to(some_q, (*some_q.shape[:2], cut.group, cut.block_q))
                q_tile = jnp.where(some_q.reshape(*some_q.shape[:2], -1, 1), q, 0)
                k_tile, v_tile = (jnp.where(some_k[..., None], x, 0) for x in (k_tile, v_tile))
            weight = jnp.exp(score - lse[..., None])
            d_score = weight * (tiling.dot(d_out, v_tile, "bkrh,bksh->bkrs") - delta[..., None])
            d_score = d_score if slope is None else d_score * slope
            dv = tiling.add(dv, tiling.dot(weight, d_out, "bkrs,bkrh->bksh"), j)
            dk = tiling.add(dk, tiling.dot(d_score, q_tile, "bkrs,bkrh->bksh"), j)
            d_bias = None if d_bias is None else tiling.add_bias(cut, here, d_bias, d_score, i, j)
            return dq + tiling.dot(d_score, k_tile, "bkrs,bksh->bkrh"), (dk, dv, d_bias)

        return step

    carry = tiling.each(0, here.full[i], visit(False), (jnp.zeros_like(q), carry))
    dq, carry = tiling.each(here.full[i], here.total[i], visit(True), carry)
    return carry, dq
