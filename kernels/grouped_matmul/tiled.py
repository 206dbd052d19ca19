"""Grouped matmul as loops over tiles of rows, each of one group: what a CPU runs.

`jax.lax.ragged_dot` computes every group for every row on XLA's CPU backend. Here a loop over groups holds a loop over
the tiles of the group, as many as it needs: an empty group costs nothing. The last tile of a group reaches into the
rows of the next; what it computes for them is not written.
"""

import functools

import jax
import jax.numpy as jnp

from kernels import choices
from kernels.grouped_matmul.reference import accumulator, product

ROWS = 128  # of a tile: padding costs half a tile a group, and a matmul of fewer rows is slower
STEP, MOST = 64, 512  # rows of a sum over rows: multiples of STEP up to MOST


def _window(at: jax.Array, count: int, rows: int, end: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First of `count` rows inside `rows` that hold row `at`, and which of them lie in at..end: `[count]` bool."""
    first = jnp.minimum(at, rows - count)
    place = first + jnp.arange(count)
    return first, (place >= at) & (place < end)


def tile_rows(M: int, groups: int) -> int:
    """Rows of a tile where M rows belong to so many groups."""
    of = f"tiled, M {choices.length(M)}, {groups} groups"
    return min(M, *choices.chosen("grouped_matmul", of, "cpu", (ROWS,), ((32,), (64,), (256,), (512,))))


def grouped_matmul_tiled(x: jax.Array, w: jax.Array, sizes: jax.Array, transposed: bool = False) -> jax.Array:
    """See `grouped_matmul_reference`."""
    (M, _), end = x.shape, jnp.cumsum(sizes)
    F, tile = w.shape[1 if transposed else 2], tile_rows(M, len(sizes))

    def group(e: jax.Array, y: jax.Array) -> jax.Array:
        matrix = jax.lax.dynamic_index_in_dim(w, e, keepdims=False)  # here, so that it is read once a group

        def step(j: jax.Array, y: jax.Array) -> jax.Array:
            first, mine = _window(end[e] - sizes[e] + j * tile, tile, M, end[e])
            new = product(jax.lax.dynamic_slice_in_dim(x, first, tile), matrix, (1, 1 if transposed else 0))
            old = jax.lax.dynamic_slice_in_dim(y, first, tile)
            return jax.lax.dynamic_update_slice_in_dim(y, jnp.where(mine[:, None], new.astype(y.dtype), old), first, 0)

        return jax.lax.fori_loop(0, -(-sizes[e] // tile), step, y)

    return jax.lax.fori_loop(0, w.shape[0], group, jnp.zeros((M, F), x.dtype))


def grouped_outer_tiled(x: jax.Array, y: jax.Array, sizes: jax.Array) -> jax.Array:
    """See `grouped_outer_reference`.

    A sum over rows is read and written once for every tile, so tiles are long; the last one of a group is as short as
    a multiple of `STEP` can be.
    """
    (M, D), F, end = x.shape, y.shape[1], jnp.cumsum(sizes)
    step = min(STEP, M)
    lengths = range(step, min(MOST, -(-M // step) * step) + 1, step)

    def part(count: int, at: jax.Array, stop: jax.Array) -> jax.Array:
        count = min(count, M)
        first, mine = _window(at, count, M, stop)
        a, b = (jnp.where(mine[:, None], jax.lax.dynamic_slice_in_dim(z, first, count), 0) for z in (x, y))
        return product(a, b, (0, 0))

    branches = [functools.partial(part, count) for count in lengths]

    def group(e: jax.Array, out: jax.Array) -> jax.Array:
        def more(j: jax.Array, total: jax.Array) -> jax.Array:
            at = end[e] - sizes[e] + j * lengths[-1]
            left = jnp.minimum(lengths[-1], end[e] - at)
            return total + jax.lax.switch((left - 1) // step, branches, at, end[e])

        zeros = jnp.zeros((D, F), accumulator(x.dtype))
        total = jax.lax.fori_loop(0, -(-sizes[e] // lengths[-1]), more, zeros)
        return jax.lax.dynamic_update_index_in_dim(out, total.astype(out.dtype), e, 0)

    return jax.lax.fori_loop(0, len(sizes), group, jnp.zeros((len(sizes), D, F), x.dtype))
