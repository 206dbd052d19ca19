"""Pattention on an NVIDIA GPU: Pallas (Triton) kernels tiled over tokens and over parameter tokens.

A tile of [tokens, D] with D = 1536 does not fit in registers as an accumulator, so the flash-attention shape (weights
never leave the chip) would compute every score once per slice of D: six times the work at that width. Instead the
two kernels here are products with an epilogue, and the plain products around them are left to the library:

scores      grid (token tiles, P tiles): x K^T, the mask, the row statistic of the tile in float32, and one array
            [chunk, P] in the form that the next product needs (for gelu_l2, gelu(a): nothing is left to be done).
gradients   grid (token tiles, P tiles): x K^T and dout V^T side by side, the whole pointwise backward, and the arrays
            that the last three products need: s and da, or for l2_gelu s, dz and a / n with partial sums of their
            product, from which da follows by one fused pointwise pass.

Tokens go through in chunks, so [tokens, P] never stands whole; scores are never saved for the backward.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels.pattention.rules import (
    Given,
    Returned,
    Rule,
    accumulator,
    dot,
    gelu_slope,
    row_factor,
    shape_like,
    weights,
    weights_and_gradient,
    weights_and_slope,
)
from kernels.pattention.xla import over_chunks, row_products

CHUNK_BYTES = 128 * 2**20  # of one [chunk, P] array in the inputs' type


def _erf(z: Array) -> Array:
    """erf for float32, which Triton lacks: Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7 (+ rounding)."""
    if z.dtype == jnp.float64:
        return jax.lax.erf(z)  # only ever interpreted
    t = 1 / (1 + 0.3275911 * jnp.abs(z))
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return jnp.sign(z) * (1 - poly * jnp.exp(-z * z))


def _tiles(dtype: jnp.dtype) -> tuple[int, int, int]:
    """Tile lengths along tokens, parameter tokens and the summed width."""
    return (128, 128, 64) if dtype.itemsize <= 2 else (64, 64, 32)


def _edge(at: Array, size: int, tile: int) -> Array | None:
    """Which of the positions exist; None where tiles divide the axis."""
    return None if size % tile == 0 else at < size


def _both(rows: Array | None, columns: Array | None) -> Array | None:
    """The mask of a tile from those of its sides."""
    if rows is None and columns is None:
        return None
    rows = None if rows is None else rows[:, None]
    columns = None if columns is None else columns[None, :]
    return rows if columns is None else columns if rows is None else rows & columns


def _load(ref, rows, columns, mask: Array | None) -> Array:
    """A tile, 0 where the mask is off."""
    return plgpu.load(ref.at[rows, columns], mask=mask, other=None if mask is None else 0)


def _product(a_ref, b_ref, rows: tuple, columns: tuple, step: int) -> Array:
    """Tile of a b^T over the whole width in steps; `rows` and `columns` are (slice, edge) of a and of b."""
    width = a_ref.shape[1]

    def body(k, acc):
        at = pl.ds(k * step, step)
        live = _edge(k * step + jnp.arange(step), width, step)
        a = _load(a_ref, rows[0], at, _both(rows[1], live))
        b = _load(b_ref, columns[0], at, _both(columns[1], live))
        return acc + dot(a, b, "nt")

    zeros = jnp.zeros((rows[0].size, columns[0].size), accumulator(a_ref.dtype))
    return jax.lax.fori_loop(0, pl.cdiv(width, step), body, zeros)


def _sides(shape: tuple[int, int], tiles: tuple[int, int, int]) -> tuple[tuple, tuple]:
    """(slice, edge) of this program's tokens and parameter tokens."""
    sides = []
    for axis in range(2):
        start = pl.program_id(axis) * tiles[axis]
        sides.append((pl.ds(start, tiles[axis]), _edge(start + jnp.arange(tiles[axis]), shape[axis], tiles[axis])))
    return tuple(sides)


def _scores_body(x, keys, *refs, rule: Rule, tiles: tuple, masked: bool, given: bool):
    refs = list(refs)
    mask = refs.pop(0) if masked else None
    r = refs.pop(0) if given else None
    out, partial = refs[:2]
    rows, columns = _sides(out.shape, tiles)
    both = _both(rows[1], columns[1])
    a = _product(x, keys, rows, columns, tiles[2])
    if masked:
        a = jnp.where(_load(mask, rows[0], columns[0], both) != 0, a, 0)
    if given:
        a = weights(
            a, plgpu.load(r.at[rows[0]], mask=rows[1], other=None if rows[1] is None else 0)[:, None], rule, _erf
        )
    elif rule.normalization == "gelu_l2":
        a = gelu_slope(a, rule.gelu, _erf)[0]
    plgpu.store(out.at[rows[0], columns[0]], a.astype(out.dtype), mask=both)
    here = (pl.program_id(1), rows[0])
    if rule.normalization == "softmax":
        if columns[1] is not None:
            a = jnp.where(columns[1][None, :], a, -jnp.inf)
        peak = jnp.max(a, axis=1)
        plgpu.store(partial.at[here], jnp.sum(jnp.exp(a - peak[:, None]), axis=1), mask=rows[1])
        plgpu.store(refs[2].at[here], peak, mask=rows[1])
    else:  # positions that do not exist have a = gelu(a) = 0
        plgpu.store(partial.at[here], jnp.sum(a * a, axis=1), mask=rows[1])


def _gradients_body(*refs, rule: Rule, tiles: tuple, masked: bool):
    x, keys, values, dout, r, coupling, *refs = refs
    mask = refs.pop(0) if masked else None
    s_out, da_out = refs[:2]
    rows, columns = _sides(s_out.shape, tiles)
    both = _both(rows[1], columns[1])
    a = _product(x, keys, rows, columns, tiles[2])
    ds = _product(dout, values, rows, columns, tiles[2])
    live = None
    if masked:
        live = _load(mask, rows[0], columns[0], both) != 0
        a = jnp.where(live, a, 0)
    other = None if rows[1] is None else 0
    r, b = (plgpu.load(ref.at[rows[0]], mask=rows[1], other=other)[:, None] for ref in (r, coupling))
    if rule.normalization == "l2_gelu":
        s, da = weights_and_slope(a, r, ds, rule, _erf)
        unit = a * b
        plgpu.store(refs[2].at[rows[0], columns[0]], unit.astype(refs[2].dtype), mask=both)
        plgpu.store(refs[3].at[pl.program_id(1), rows[0]], jnp.sum(da * unit, axis=1), mask=rows[1])
    else:
        s, da = weights_and_gradient(a, r, ds, b, rule, _erf)
    if masked:
        da = jnp.where(live, da, 0)
    plgpu.store(s_out.at[rows[0], columns[0]], s.astype(s_out.dtype), mask=both)
    plgpu.store(da_out.at[rows[0], columns[0]], da.astype(da_out.dtype), mask=both)


def _call(body: Callable, inputs: list, outputs: list, shape: tuple[int, int], tiles: tuple, interpret: bool) -> list:
    """`pallas_call` over tiles of `shape`; kernels read whole arrays at the places they compute."""
    return pl.pallas_call(
        body,
        grid=(pl.cdiv(shape[0], tiles[0]), pl.cdiv(shape[1], tiles[1])),
        out_shape=[shape_like(inputs[0], shape, dtype) for shape, dtype in outputs],
        compiler_params=plgpu.CompilerParams(num_warps=8 if tiles[0] == 128 else 4, num_stages=3),
        interpret=interpret,
    )(*inputs)


def _scores(x: Array, keys: Array, mask: Array | None, r: Array | None, rule: Rule) -> list[Array]:
    """What the next product needs, [T, P], and the row statistic by P tile (see the top); r given: the weights."""
    (length, _), size, wide = x.shape, keys.shape[0], accumulator(x.dtype)
    tiles = _tiles(x.dtype)
    inputs = [x, keys]
    if mask is not None:
        inputs.append(mask.astype(jnp.int8))
    if r is not None:
        inputs.append(r[:, 0])
    parts = (pl.cdiv(size, tiles[1]), length)
    softmax = rule.normalization == "softmax"  # a rounded exponent would not be a rounded weight: keep it wide
    outputs = [((length, size), wide if softmax else x.dtype), (parts, wide)] + [(parts, wide)] * softmax
    body = functools.partial(_scores_body, rule=rule, tiles=tiles, masked=mask is not None, given=r is not None)
    return _call(body, inputs, outputs, (length, size), tiles, rule.interpret)


def _statistic(parts: list[Array], rule: Rule) -> Array:
    """The row statistic [T, 1] from those of the P tiles."""
    if rule.normalization == "softmax":
        return jax.nn.logsumexp(parts[1], axis=0, b=parts[0])[:, None]
    return jnp.sqrt(jnp.sum(parts[0], axis=0))[:, None]


def _limits(x: Array, keys: Array) -> tuple[int, int]:
    """Bytes of all the scores, and of those in one chunk."""
    return x.shape[0] * keys.shape[0] * x.dtype.itemsize, CHUNK_BYTES


def forward(
    rows: Given, keys: Array, values: Array, tau: Array, *, rule: Rule, out_dtype: jnp.dtype
) -> tuple[Array, Array]:
    """Tokens [T, D] -> out [T, V] and the row statistic [T, 1]."""

    def chunk(rows):
        if rows.stat is not None:
            s, _ = _scores(rows.x, keys, rows.mask, row_factor(rows.stat, tau, rule), rule)
            return (dot(s, values, "nn").astype(out_dtype), rows.stat), ()
        a, *parts = _scores(rows.x, keys, rows.mask, None, rule)
        n = _statistic(parts, rule)
        r = row_factor(n, tau, rule)
        if rule.normalization == "gelu_l2":
            return ((dot(a, values, "nn") * r).astype(out_dtype), n), ()
        s = weights(a.astype(n.dtype), r, rule).astype(values.dtype)
        return (dot(s, values, "nn").astype(out_dtype), n), ()

    return over_chunks(chunk, rows, *_limits(rows.x, keys))[0]


def backward(
    rows: Returned, keys: Array, values: Array, *, rule: Rule, total: Callable = lambda c: c
) -> tuple[Array, Array, Array, Array]:
    """As `xla.backward`, for two-dimensional x [T, D]."""
    two, wide, tiles, size = rule.normalization == "l2_gelu", rows.r.dtype, _tiles(rows.x.dtype), keys.shape[0]

    def chunk(rows):
        x, mask, dout, r, coupling = rows
        inputs = [x, keys, values, dout, r[:, 0], coupling[:, 0]]
        if mask is not None:
            inputs.append(mask.astype(jnp.int8))
        shape = (x.shape[0], size)
        outputs = [(shape, x.dtype)] * (3 if two else 2)
        if two:
            outputs.append(((pl.cdiv(size, tiles[1]), shape[0]), wide))
        body = functools.partial(_gradients_body, rule=rule, tiles=tiles, masked=mask is not None)
        s, da, *rest = _call(body, inputs, outputs, shape, tiles, rule.interpret)
        c = jnp.zeros_like(r)
        if two:
            c = jnp.sum(rest[1], axis=0)[:, None]
            da = r * (da.astype(wide) - rest[0].astype(wide) * total(c))
        return row_products(x, keys, dout, s, da, c)

    (dx, c), (dkeys, dvalues) = over_chunks(chunk, rows, *_limits(rows.x, keys))
    return dx, dkeys.astype(keys.dtype), dvalues.astype(values.dtype), c
