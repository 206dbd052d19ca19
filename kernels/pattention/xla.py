"""Pattention by XLA alone: the formulas of rules.py, in chunks of tokens so that [tokens, P] never stands whole."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kernels.pattention.rules import (
    Given,
    Returned,
    Rule,
    accumulator,
    dot,
    row_factor,
    row_statistic,
    vary_over,
    varying,
    weights,
    weights_and_gradient,
    weights_and_slope,
)

CHUNK_BYTES = 64 * 2**20  # of scores, in the accumulator's type, per chunk


def over_chunks(fn: Callable, rows: Any, score_bytes: int, limit: int) -> tuple[Any, Any]:
    """Applies `fn(rows) -> (row results, sums)` to chunks of tokens (axis -2 of every leaf), one after the other.

    Row results are put together again, sums are added. Only the token axis is cut, so that leading axes stay sharded
    as they are. The last chunk is filled up with zero rows, whose contribution to every sum is 0.
    """
    chunks = -(-score_bytes // limit)
    length = jax.tree.leaves(rows)[0].shape[-2]
    chunks = min(chunks, length)
    if chunks <= 1:
        return fn(rows)
    size = -(-length // chunks)
    chunks = -(-length // size)

    def cut(leaf):
        pad = [(0, 0)] * leaf.ndim
        pad[-2] = (0, chunks * size - length)
        leaf = jnp.pad(leaf, pad)
        return jnp.moveaxis(leaf.reshape(*leaf.shape[:-2], chunks, size, leaf.shape[-1]), -3, 0)

    def glue(leaf):
        leaf = jnp.moveaxis(leaf, 0, -3)
        return leaf.reshape(*leaf.shape[:-3], chunks * size, leaf.shape[-1])[..., :length, :]

    rows = jax.tree.map(cut, rows)
    _, sums = jax.eval_shape(fn, jax.tree.map(lambda leaf: leaf[0], rows))
    axes = varying(jax.tree.leaves(rows)[0])
    zeros = jax.tree.map(lambda leaf: vary_over(jnp.zeros(leaf.shape, leaf.dtype), axes), sums)

    def step(total, chunk):
        result, part = fn(chunk)
        return jax.tree.map(jnp.add, total, part), result

    sums, results = jax.lax.scan(step, zeros, rows)
    return jax.tree.map(glue, results), sums


def score_bytes(x: Array, keys: Array) -> int:
    """Size of all the scores in the accumulator's type."""
    return x.size // x.shape[-1] * keys.shape[0] * accumulator(x.dtype).itemsize


def scores(x: Array, keys: Array, mask: Array | None) -> Array:
    """a = x K^T, 0 where the mask drops a parameter token."""
    a = dot(x, keys, "nt")
    return a if mask is None else jnp.where(mask, a, 0)


def statistic(rows: Given, keys: Array, *, rule: Rule, limit: int = CHUNK_BYTES) -> Array:
    """The row statistic alone, [.., 1]."""

    def chunk(rows):
        return row_statistic(scores(rows.x, keys, rows.mask), rule), ()

    return over_chunks(chunk, rows, score_bytes(rows.x, keys), limit)[0]


def forward(
    rows: Given,
    keys: Array,
    values: Array,
    tau: Array,
    *,
    rule: Rule,
    out_dtype: jnp.dtype,
    limit: int = CHUNK_BYTES,
) -> tuple[Array, Array]:
    """Tokens [.., T, D] -> out [.., T, V] and the row statistic [.., T, 1]."""

    def chunk(rows):
        a = scores(rows.x, keys, rows.mask)
        n = row_statistic(a, rule) if rows.stat is None else rows.stat
        s = weights(a, row_factor(n, tau, rule), rule).astype(values.dtype)
        return (dot(s, values, "nn").astype(out_dtype), n), ()

    return over_chunks(chunk, rows, score_bytes(rows.x, keys), limit)[0]


def backward(
    rows: Returned,
    keys: Array,
    values: Array,
    *,
    rule: Rule,
    total: Callable = lambda c: c,
    limit: int = CHUNK_BYTES,
) -> tuple[Array, Array, Array, Array]:
    """dx [.., T, D], dkeys [P, D], dvalues [P, V] and, for l2_gelu, <a, dz> / n [.., T, 1] (else zeros).

    `total` adds a row sum over shards of P.
    """

    def chunk(rows):
        x, mask, dout, r, b = rows
        a = scores(x, keys, mask)
        ds = dot(dout, values, "nt")
        if rule.normalization == "l2_gelu":
            s, dz = weights_and_slope(a, r, ds, rule)
            unit = a * b
            c = jnp.sum(dz * unit, axis=-1, keepdims=True)
            da = r * (dz - unit * total(c))
        else:
            s, da = weights_and_gradient(a, r, ds, b, rule)
            c = jnp.zeros_like(r)
        if mask is not None:
            da = jnp.where(mask, da, 0)
        return row_products(x, keys, dout, s, da, c)

    (dx, c), (dkeys, dvalues) = over_chunks(chunk, rows, score_bytes(rows.x, keys), limit)
    return dx, dkeys.astype(keys.dtype), dvalues.astype(values.dtype), c


def row_products(x: Array, keys: Array, dout: Array, s: Array, da: Array, c: Array) -> tuple[Any, Any]:
    """The three matrix products that end the backward of a chunk, in the form that `over_chunks` wants."""
    s, da = s.astype(x.dtype), da.astype(x.dtype)
    dx = dot(da, keys, "nn").astype(x.dtype)
    return (dx, c), (dot(da, x, "tn"), dot(s, dout, "tn"))
