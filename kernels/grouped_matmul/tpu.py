"""Grouped matmul on a TPU: Pallas kernels over visits, a visit being a tile of rows and a group that has rows in it.

A tile that holds the border of two groups is visited by both, one after the other, while it stays in VMEM; each writes
its own rows. So rows are neither padded nor moved, and there are at most tiles + E - 1 visits whatever the sizes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import choices
from kernels.grouped_matmul.reference import accumulator, product

TILES = {2: (512, 512, 1024), 4: (256, 512, 512)}  # rows, D and F, by the bytes of a number


class Visits(NamedTuple):
    """For each visit `[V]`: its group, its tile of rows, and the group's first and last + 1 row; `count [1]` real ones.

    Those past the count repeat the last.
    """

    group: jax.Array
    tile: jax.Array
    start: jax.Array
    end: jax.Array
    count: jax.Array


def visits(sizes: jax.Array, rows: int, tile: int) -> Visits:
    """The visits to the tiles of `rows` rows, in the order of the rows."""
    sizes = sizes.astype(jnp.int32)
    end = jnp.cumsum(sizes)
    start = end - sizes
    first, last = start // tile, (end - 1) // tile
    number = jnp.where(sizes > 0, last - first + 1, 0)
    after = jnp.cumsum(number)
    most = -(-rows // tile) + len(sizes) - 1
    at = jnp.minimum(jnp.arange(most), jnp.maximum(after[-1] - 1, 0))
    group = jnp.minimum(jnp.searchsorted(after, at, side="right"), len(sizes) - 1).astype(jnp.int32)
    where = first[group] + at - (after - number)[group]
    # A start of nobody's may lie behind the last tile.
    where = jnp.clip(where, 0, -(-rows // tile) - 1)
    return Visits(group, where.astype(jnp.int32), start[group], end[group], after[-1:])


def _mine(start, end, tile, v, rows: int) -> jax.Array:
    """Which rows `[rows, 1]` of the tile of visit v belong to its group."""
    at = tile[v] * rows + jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0)
    return (at >= start[v]) & (at < end[v])


def _live(block: jax.Array, k: jax.Array, size: int, axis: int) -> jax.Array:
    """A block of D with what lies past the array set to 0."""
    if size % block.shape[axis] == 0:
        return block
    at = k * block.shape[axis] + jax.lax.broadcasted_iota(jnp.int32, block.shape, axis)
    return jnp.where(at < size, block, jnp.zeros_like(block))


def _cut(M: int, D: int, F: int, groups: int, dtype: jnp.dtype) -> tuple[int, int, int]:
    """Rows, D and F of a tile: whole registers, no longer than the axes."""
    of = f"pallas_tpu, {jnp.dtype(dtype).itemsize} bytes, M {choices.length(M)}, {groups} groups"
    tried = tuple((m, k, n) for m in (128, 256, 512) for k in (512, 1024) for n in (512, 1024))
    tm, tk, tn = choices.chosen("grouped_matmul", of, "tpu", TILES[jnp.dtype(dtype).itemsize], tried)
    return _multiple(M, tm, 16), _multiple(D, tk, 128), _multiple(F, tn, 128)


def _multiple(size: int, tile: int, unit: int) -> int:
    return min(tile, -(-size // unit) * unit)


def grouped_matmul_tpu(
    x: jax.Array, w: jax.Array, sizes: jax.Array, transposed: bool = False, interpret: bool = False
) -> jax.Array:
    """See `grouped_matmul_reference`. Grid (F tiles, visits, D tiles)."""
    (M, D), F = x.shape, w.shape[1 if transposed else 2]
    tm, tk, tn = _cut(M, D, F, len(sizes), x.dtype)
    plan = visits(sizes, M, tm)
    steps = -(-D // tk)

    def kernel(group, tile, start, end, count, x_ref, w_ref, out, total):
        v, k = pl.program_id(1), pl.program_id(2)

        @pl.when(k == 0)
        def _():
            total[...] = jnp.zeros_like(total)

        @pl.when(v < jnp.maximum(count[0], 1))
        def _():
            a, b = _live(x_ref[...], k, D, 1), _live(w_ref[...], k, D, 1 if transposed else 0)
            total[...] += product(a, b, (1, 1 if transposed else 0))

            @pl.when(k == steps - 1)
            def _():
                fresh = (v == 0) | (tile[v] != tile[jnp.maximum(v - 1, 0)])
                before = jnp.where(fresh, jnp.zeros_like(out[...]), out[...])
                out[...] = jnp.where(_mine(start, end, tile, v, tm), total[...].astype(out.dtype), before)

    block = (None, tn, tk) if transposed else (None, tk, tn)
    place = (lambda j, v, k, g, *_: (g[v], j, k)) if transposed else (lambda j, v, k, g, *_: (g[v], k, j))
    y = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(-(-F // tn), len(plan.group), steps),
            in_specs=[pl.BlockSpec((tm, tk), lambda j, v, k, g, t, *_: (t[v], k)), pl.BlockSpec(block, place)],
            out_specs=pl.BlockSpec((tm, tn), lambda j, v, k, g, t, *_: (t[v], j)),
            scratch_shapes=[pltpu.VMEM((tm, tn), accumulator(x.dtype))],
        ),
        out_shape=jax.ShapeDtypeStruct((M, F), x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
        interpret=pltpu.InterpretParams() if interpret else False,
        name="grouped_matmul",
    )(*plan, x, w)
    return jnp.where((jnp.arange(M) < jnp.sum(sizes))[:, None], y, 0)  # Tiles of nobody are not visited.


def grouped_outer_tpu(x: jax.Array, y: jax.Array, sizes: jax.Array, interpret: bool = False) -> jax.Array:
    """See `grouped_outer_reference`. Grid (D tiles, F tiles, visits)."""
    (M, D), F = x.shape, y.shape[1]
    tm, tk, tn = _cut(M, D, F, len(sizes), x.dtype)
    plan = visits(sizes, M, tm)
    last = len(plan.group) - 1

    def kernel(group, tile, start, end, count, x_ref, y_ref, out, total):
        v = pl.program_id(2)

        @pl.when(v < count[0])
        def _():
            @pl.when((v == 0) | (group[v] != group[jnp.maximum(v - 1, 0)]))
            def _():
                total[...] = jnp.zeros_like(total)

            mine = _mine(start, end, tile, v, tm)
            a, b = (jnp.where(mine, ref[...], jnp.zeros_like(ref[...])) for ref in (x_ref, y_ref))
            total[...] += product(a, b, (0, 0))

            @pl.when((v == count[0] - 1) | (group[v] != group[jnp.minimum(v + 1, last)]))
            def _():
                out[...] = total[...].astype(out.dtype)

    found = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(-(-D // tk), -(-F // tn), len(plan.group)),
            in_specs=[
                pl.BlockSpec((tm, tk), lambda i, j, v, g, t, *_: (t[v], i)),
                pl.BlockSpec((tm, tn), lambda i, j, v, g, t, *_: (t[v], j)),
            ],
            out_specs=pl.BlockSpec((None, tk, tn), lambda i, j, v, g, *_: (g[v], i, j)),
            scratch_shapes=[pltpu.VMEM((tk, tn), accumulator(x.dtype))],
        ),
        out_shape=jax.ShapeDtypeStruct((len(sizes), D, F), x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=pltpu.InterpretParams() if interpret else False,
        name="grouped_outer",
    )(*plan, x, y)
    return jnp.where((sizes > 0)[:, None, None], found, 0)  # Empty groups are not visited.
