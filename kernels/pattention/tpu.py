"""Pattention on a TPU: Pallas kernels tiled over tokens and over parameter tokens; no [T, P] array reaches HBM.

forward     grid (token tiles, phases, P tiles). l2_gelu needs the row norm before the first weight, hence two phases;
            phase one leaves its scores in VMEM when a tile row of them fits, else phase two computes them again.
            gelu_l2 divides at the end and softmax keeps a running maximum, so one phase is enough.
rows        grid (token tiles, P tiles): dx. For l2_gelu it sums dz K, a K and <a, dz> apart (see rules.py), which
            saves the extra pass over P that the coupling would need.
parameters  grid (P tiles, token tiles): dkeys and dvalues. Scores are computed transposed, [P tile, token tile], so
            that both products are plain ones and row numbers lie along lanes.

A tile that reaches beyond its array holds arbitrary numbers there, NaN included: they are zeroed before a sum.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import choices
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

SCORES_IN_VMEM = 16 * 2**20  # bytes that phase one may leave for phase two
VMEM_LIMIT = 56 * 2**20  # bytes; v5p and tpu7x have 64 MiB, v5e and v6e 128 MiB


def _tiles(length: int, size: int, itemsize: int) -> tuple[int, int]:
    """Tile lengths along tokens and parameter tokens: 512 at two bytes, 256 at four; short axes are one tile."""
    most, of = 512 if itemsize <= 2 else 256, f"pallas_tpu, {itemsize} bytes, P {choices.length(size)}"
    tried = tuple((t, p) for t in (128, 256, 512) for p in (128, 256, 512) if max(t, p) <= most)
    of_tokens, of_parameters = choices.chosen("pattention", of, "tpu", (most, most), tried)
    return min(length, of_tokens), min(size, of_parameters)


def _live(tile: Array, start: Array, size: int, axis: int = 0) -> Array:
    """The tile with everything at or past `size` along `axis` set to 0; nothing to do where tiles divide the axis."""
    if size % tile.shape[axis] == 0:
        return tile
    at = start + jax.lax.broadcasted_iota(jnp.int32, tile.shape, axis)
    return jnp.where(at < size, tile, jnp.zeros_like(tile))


def _call(body: Callable, grid: tuple, inputs: list, outputs: list, scratch: list, interpret: bool, cost: int) -> Any:
    """`pallas_call` from (array, block, index map) inputs and (shape struct, block, index map) outputs."""
    specs = [pl.BlockSpec(block, index) for _, block, index in inputs]
    call = pl.pallas_call(
        body,
        grid=grid,
        in_specs=specs,
        out_specs=[pl.BlockSpec(block, index) for _, block, index in outputs],
        out_shape=[shape for shape, _, _ in outputs],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) + ("arbitrary",) * (len(grid) - 1), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=pl.CostEstimate(flops=cost, transcendentals=0, bytes_accessed=0),
        interpret=pltpu.InterpretParams() if interpret else False,
    )
    return call(*(array for array, *_ in inputs))


def _finish(n: Array, peak: Array, tau: Array, rule: Rule) -> tuple[Array, Array | int]:
    """The row statistic from its running form, and the factor that the sum over P is still to be multiplied by."""
    if rule.normalization == "gelu_l2":
        n = jnp.sqrt(n)
        return n, row_factor(n, tau, rule)
    if rule.normalization == "softmax":
        return peak + jnp.log(n), tau * tau / n
    return n, 1


def _forward_body(*refs, rule: Rule, size: int, phases: int, masked: bool, given: bool, kept: bool):
    tau, x, keys, values, *refs = refs
    mask = refs.pop(0) if masked else None
    stat = refs.pop(0) if given else None
    out, n_out, total, n, peak = refs[:5]
    phase, j = pl.program_id(1) + 2 - phases, pl.program_id(2)
    start, tiles = j * keys.shape[0], pl.num_programs(2)

    def scores():
        a = dot(x[...], keys[...], "nt")
        if masked:
            a = jnp.where(mask[...] != 0, a, 0)
        return _live(a, start, size, axis=1)

    @pl.when((pl.program_id(1) == 0) & (j == 0))
    def _():
        total[...] = jnp.zeros_like(total)
        n[...] = stat[...] if given else jnp.zeros_like(n)
        peak[...] = jnp.full_like(peak, -jnp.inf)

    @pl.when(phase == 0)
    def _():
        a = scores()
        n[...] += jnp.sum(a * a, axis=1, keepdims=True)
        if kept:
            refs[5][j] = a

        @pl.when(j == tiles - 1)
        def _():
            n[...] = jnp.sqrt(n[...])

    @pl.when(phase == 1)
    def _():
        a = refs[5][j] if kept else scores()
        if rule.normalization == "l2_gelu":
            s = weights(a, row_factor(n[...], tau[0, 0], rule), rule)
        elif rule.normalization == "gelu_l2":
            s = gelu_slope(a, rule.gelu)[0]
            n[...] += jnp.sum(s * s, axis=1, keepdims=True)
        else:
            if size % keys.shape[0]:
                a = jnp.where(start + jax.lax.broadcasted_iota(jnp.int32, a.shape, 1) < size, a, -jnp.inf)
            new = jnp.maximum(peak[...], jnp.max(a, axis=1, keepdims=True))
            s, shrink = jnp.exp(a - new), jnp.exp(peak[...] - new)
            n[...] = n[...] * shrink + jnp.sum(s, axis=1, keepdims=True)
            total[...] = total[...] * shrink
            peak[...] = new
        total[...] += dot(s.astype(values.dtype), _live(values[...], start, size), "nn")

        @pl.when(j == tiles - 1)
        def _():
            n_out[...], scale = _finish(n[...], peak[...], tau[0, 0], rule)
            out[...] = (total[...] * scale).astype(out.dtype)


def forward(
    rows: Given, keys: Array, values: Array, tau: Array, *, rule: Rule, out_dtype: jnp.dtype
) -> tuple[Array, Array]:
    """Tokens [T, D] -> out [T, V] and the row statistic [T, 1]."""
    x, mask, stat = rows
    (length, width), (size, depth), wide = x.shape, values.shape, accumulator(x.dtype)
    two = rule.normalization == "l2_gelu" and stat is None
    bt, bp = _tiles(length, size, x.dtype.itemsize)
    tiles = pl.cdiv(size, bp)
    row_bytes = tiles * bp * wide.itemsize
    if two and bt * row_bytes > SCORES_IN_VMEM >= bt // 2 * row_bytes and bt % 32 == 0:
        bt //= 2  # half a tile of tokens, and no score is computed twice
    kept = two and bt * row_bytes <= SCORES_IN_VMEM

    def p_tile(phase, j):  # while the kept scores are read, the last tile of keys stays where it is
        return jnp.where(phase == 0, j, tiles - 1) if kept else j

    row = lambda i, phase, j: (i, 0)  # noqa: E731
    inputs = [
        (tau.reshape(1, 1), (1, 1), lambda i, phase, j: (0, 0)),
        (x, (bt, width), row),
        (keys, (bp, width), lambda i, phase, j: (p_tile(phase, j), 0)),
        (values, (bp, depth), lambda i, phase, j: (j * phase if two else j, 0)),
    ]
    if mask is not None:
        inputs.append((mask.astype(jnp.int8), (bt, bp), lambda i, phase, j: (i, p_tile(phase, j))))
    if stat is not None:
        inputs.append((stat, (bt, 1), row))
    scratch = [pltpu.VMEM((bt, depth), wide), pltpu.VMEM((bt, 1), wide), pltpu.VMEM((bt, 1), wide)]
    scratch += [pltpu.VMEM((tiles, bt, bp), wide)] * kept
    body = functools.partial(
        _forward_body,
        rule=rule,
        size=size,
        phases=1 + two,
        masked=mask is not None,
        given=stat is not None,
        kept=kept,
    )
    outputs = [
        (shape_like(x, (length, depth), out_dtype), (bt, depth), row),
        (shape_like(x, (length, 1), wide), (bt, 1), row),
    ]
    cost = 2 * length * size * (width * (1 + (two and not kept)) + depth)
    return _call(body, (pl.cdiv(length, bt), 1 + two, tiles), inputs, outputs, scratch, rule.interpret, cost)


def _rows_body(*refs, rule: Rule, size: int, masked: bool):
    x, keys, values, dout, r, coupling, *refs = refs
    mask = refs.pop(0) if masked else None
    two = rule.normalization == "l2_gelu"
    j = pl.program_id(1)
    start = j * keys.shape[0]
    sums = refs[len(refs) // 2 :]

    @pl.when(j == 0)
    def _():
        for ref in sums:
            ref[...] = jnp.zeros_like(ref)

    k = _live(keys[...], start, size)
    a = dot(x[...], k, "nt")
    if masked:
        a = jnp.where(mask[...] != 0, a, 0)
    ds = dot(dout[...], _live(values[...], start, size), "nt")
    if two:
        _, da = weights_and_slope(a, r[...], ds, rule)
        unit = a * coupling[...]
        sums[1][...] += dot(unit.astype(k.dtype), k, "nn")
        sums[2][...] += jnp.sum(da * unit, axis=1, keepdims=True)
    else:
        _, da = weights_and_gradient(a, r[...], ds, coupling[...], rule)
    if masked:
        da = jnp.where(mask[...] != 0, da, 0)
    # past the end a is 0, and exp(0 - r) may be infinite
    sums[0][...] += dot(_live(da, start, size, axis=1).astype(k.dtype), k, "nn")

    @pl.when(j == pl.num_programs(1) - 1)
    def _():
        for ref, total in zip(refs, sums, strict=False):
            ref[...] = total[...].astype(ref.dtype)


def _parameters_body(*refs, rule: Rule, length: int, masked: bool):
    x, keys, values, dout, r, coupling, *refs = refs
    mask = refs.pop(0) if masked else None
    dkeys, dvalues, dkeys_sum, dvalues_sum = refs
    i = pl.program_id(1)
    start = i * x.shape[0]

    @pl.when(i == 0)
    def _():
        dkeys_sum[...] = jnp.zeros_like(dkeys_sum)
        dvalues_sum[...] = jnp.zeros_like(dvalues_sum)

    rows, drows = _live(x[...], start, length), _live(dout[...], start, length)
    a = dot(keys[...], rows, "nt")
    if masked:
        a = jnp.where(mask[...] != 0, a, 0)
    ds = dot(values[...], drows, "nt")
    s, da = weights_and_gradient(a, r[...], ds, coupling[...], rule)
    if masked:
        da = jnp.where(mask[...] != 0, da, 0)
    s, da = _live(s, start, length, axis=1), _live(da, start, length, axis=1)
    dkeys_sum[...] += dot(da.astype(rows.dtype), rows, "nn")
    dvalues_sum[...] += dot(s.astype(drows.dtype), drows, "nn")

    @pl.when(i == pl.num_programs(1) - 1)
    def _():
        dkeys[...] = dkeys_sum[...].astype(dkeys.dtype)
        dvalues[...] = dvalues_sum[...].astype(dvalues.dtype)


def _inputs(rows: Returned, keys: Array, values: Array, tiles: tuple[int, int], *, by_parameters: bool) -> list:
    """What both backward kernels read, for `_call`.

    Args:
      tiles: tokens and parameter tokens of a tile.
      by_parameters: the grid is (P tiles, token tiles), and numbers of a token lie along lanes; else the other way.
    """
    x, mask, dout, r, coupling = rows
    (width, depth), (bt, bp) = (keys.shape[1], values.shape[1]), tiles

    def at(index: Callable) -> Callable:
        """An index map from one of (token tile, P tile)."""
        return (lambda j, i: index(i, j)) if by_parameters else index

    row, column = at(lambda i, j: (i, 0)), at(lambda i, j: (j, 0))
    inputs = [(x, (bt, width), row), (keys, (bp, width), column), (values, (bp, depth), column)]
    inputs.append((dout, (bt, depth), row))
    if by_parameters:
        inputs += [(number.T, (1, bt), at(lambda i, j: (0, i))) for number in (r, coupling)]
    else:
        inputs += [(number, (bt, 1), row) for number in (r, coupling)]
    if mask is not None:
        mask, block = (mask.T, (bp, bt)) if by_parameters else (mask, (bt, bp))
        inputs.append((mask.astype(jnp.int8), block, lambda one, two: (one, two)))
    return inputs


def _rows(rows: Returned, keys: Array, values: Array, rule: Rule) -> list[Array]:
    """dx; or, for l2_gelu, dz K, (a / n) K and <a, dz> / n, all in the accumulator's type."""
    x, masked = rows.x, rows.mask is not None
    (length, width), (size, depth), wide = x.shape, values.shape, accumulator(x.dtype)
    two = rule.normalization == "l2_gelu"
    bt, bp = _tiles(length, size, x.dtype.itemsize)
    inputs = _inputs(rows, keys, values, (bt, bp), by_parameters=False)
    widths = [width, width, 1] if two else [width]
    outputs = [(shape_like(x, (length, w), wide if two else x.dtype), (bt, w), lambda i, j: (i, 0)) for w in widths]
    scratch = [pltpu.VMEM((bt, w), wide) for w in widths]
    body = functools.partial(_rows_body, rule=rule, size=size, masked=masked)
    cost = 2 * length * size * (width * (2 + two) + depth)
    return _call(body, (pl.cdiv(length, bt), pl.cdiv(size, bp)), inputs, outputs, scratch, rule.interpret, cost)


def _parameters(rows: Returned, keys: Array, values: Array, rule: Rule) -> list[Array]:
    """dkeys and dvalues, the coupling b known for every normalisation."""
    x, masked = rows.x, rows.mask is not None
    (length, width), (size, depth), wide = x.shape, values.shape, accumulator(x.dtype)
    bt, bp = _tiles(length, size, x.dtype.itemsize)
    inputs = _inputs(rows, keys, values, (bt, bp), by_parameters=True)
    outputs = [(shape_like(x, y.shape, y.dtype), (bp, y.shape[1]), lambda j, i: (j, 0)) for y in (keys, values)]
    scratch = [pltpu.VMEM((bp, width), wide), pltpu.VMEM((bp, depth), wide)]
    body = functools.partial(_parameters_body, rule=rule, length=length, masked=masked)
    cost = 4 * length * size * (width + depth)
    return _call(body, (pl.cdiv(size, bp), pl.cdiv(length, bt)), inputs, outputs, scratch, rule.interpret, cost)


def backward(
    rows: Returned, keys: Array, values: Array, *, rule: Rule, total: Callable = lambda c: c
) -> tuple[Array, Array, Array, Array]:
    """As `xla.backward`, for two-dimensional x [T, D]."""
    sums = _rows(rows, keys, values, rule)
    if rule.normalization != "l2_gelu":
        return (*sums, *_parameters(rows, keys, values, rule), jnp.zeros_like(rows.r))
    direct, along, c = sums
    summed = total(c)
    dx = (rows.r * (direct - along * summed)).astype(rows.x.dtype)
    dkeys, dvalues = _parameters(rows._replace(coupling=rows.coupling * summed), keys, values, rule)
    return dx, dkeys, dvalues, c
