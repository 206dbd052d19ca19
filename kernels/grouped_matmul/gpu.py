"""Grouped matmul on an NVIDIA GPU: Pallas (Triton) kernels.

matmul   grid (tiles, F tiles), a tile being rows of one group that begin where the group does: at most M / tile + E of
         them whatever the sizes. Rows of a tile that lie past its group are neither read nor written.
outer    grid (E, D tiles, F tiles); a program walks over the rows of its group.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels import choices
from kernels.grouped_matmul.reference import accumulator

TILES = {2: (128, 128, 64), 4: (64, 64, 32)}  # rows, F (and D of an outer product), and a step of the sum, by bytes


def tiles(sizes: jax.Array, rows: int, tile: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Group, first row and the group's last + 1 row of each tile, `[rows / tile + E]`; those too many have no row."""
    sizes = sizes.astype(jnp.int32)
    end, number = jnp.cumsum(sizes), -(-sizes // tile)
    after = jnp.cumsum(number)
    at = jnp.arange(-(-rows // tile) + len(sizes))
    group = jnp.minimum(jnp.searchsorted(after, at, side="right"), len(sizes) - 1).astype(jnp.int32)
    start = (end - sizes)[group] + (at - (after - number)[group]) * tile
    return group, start.astype(jnp.int32), end[group]


def _load(ref, at: tuple, mask: jax.Array) -> jax.Array:
    """A tile, 0 where the mask is off."""
    return plgpu.load(ref.at[at], mask=mask, other=0)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    precision = None if a.dtype.itemsize < 4 else jax.lax.Precision.HIGHEST
    return jnp.dot(a, b, precision=precision, preferred_element_type=accumulator(a.dtype))


def _cut(product: str, M: int, groups: int, dtype: jnp.dtype) -> tuple[int, int, int]:
    """Rows, F and a step of the sum."""
    of = f"pallas_gpu {product}, {jnp.dtype(dtype).itemsize} bytes, M {choices.length(M)}, {groups} groups"
    tried = tuple((m, n, k) for m in (64, 128) for n in (64, 128, 256) for k in (32, 64))
    return choices.chosen("grouped_matmul", of, "gpu", TILES[jnp.dtype(dtype).itemsize], tried)


def grouped_matmul_gpu(
    x: jax.Array, w: jax.Array, sizes: jax.Array, transposed: bool = False, interpret: bool = False
) -> jax.Array:
    """See `grouped_matmul_reference`."""
    (M, D), F = x.shape, w.shape[1 if transposed else 2]
    tm, tn, tk = _cut("matmul", M, len(sizes), x.dtype)
    plan = tiles(sizes, M, tm)

    def kernel(group, start, end, x_ref, w_ref, y_ref, out):
        i, j = pl.program_id(0), pl.program_id(1)
        first, columns = start[i], pl.ds(j * tn, tn)
        rows, mine = pl.ds(first, tm), group[i]
        live, inside = first + jnp.arange(tm) < end[i], j * tn + jnp.arange(tn) < F

        def step(k, total):
            at, there = pl.ds(k * tk, tk), k * tk + jnp.arange(tk) < D
            a = _load(x_ref, (rows, at), live[:, None] & there[None])
            if transposed:
                b = _load(w_ref, (mine, columns, at), inside[:, None] & there[None]).T
            else:
                b = _load(w_ref, (mine, at, columns), there[:, None] & inside[None])
            return total + _dot(a, b)

        total = jax.lax.fori_loop(0, pl.cdiv(D, tk), step, jnp.zeros((tm, tn), accumulator(x.dtype)))
        plgpu.store(out.at[rows, columns], total.astype(out.dtype), mask=live[:, None] & inside[None])

    return pl.pallas_call(
        kernel,
        grid=(len(plan[0]), pl.cdiv(F, tn)),
        out_shape=jax.ShapeDtypeStruct((M, F), x.dtype),
        input_output_aliases={5: 0},  # rows of nobody are not written, and stay 0
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="grouped_matmul",
    )(*plan, x, w, jnp.zeros((M, F), x.dtype))


def grouped_outer_gpu(x: jax.Array, y: jax.Array, sizes: jax.Array, interpret: bool = False) -> jax.Array:
    """See `grouped_outer_reference`."""
    D, F = x.shape[1], y.shape[1]
    _, tn, step = _cut("outer", len(x), len(sizes), x.dtype)
    tm = tn
    end = jnp.cumsum(sizes.astype(jnp.int32))
    start = end - sizes.astype(jnp.int32)

    def kernel(start_ref, end_ref, x_ref, y_ref, out):
        e, i, j = (pl.program_id(axis) for axis in range(3))
        first, stop = start_ref[e], end_ref[e]
        left, right = pl.ds(i * tm, tm), pl.ds(j * tn, tn)
        of_x, of_y = i * tm + jnp.arange(tm) < D, j * tn + jnp.arange(tn) < F

        def more(k, total):
            at = first + k * step
            live = (at + jnp.arange(step) < stop)[:, None]
            a = _load(x_ref, (pl.ds(at, step), left), live & of_x[None])
            b = _load(y_ref, (pl.ds(at, step), right), live & of_y[None])
            return total + _dot(a.T, b)

        count = (stop - first + step - 1) // step
        total = jax.lax.fori_loop(0, count, more, jnp.zeros((tm, tn), accumulator(x.dtype)))
        plgpu.store(out.at[e, left, right], total.astype(out.dtype), mask=of_x[:, None] & of_y[None])

    return pl.pallas_call(
        kernel,
        grid=(len(sizes), pl.cdiv(D, tm), pl.cdiv(F, tn)),
        out_shape=jax.ShapeDtypeStruct((len(sizes), D, F), x.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="grouped_outer",
    )(start, end, x, y)
