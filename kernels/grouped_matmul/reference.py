"""Grouped matmul in plain jnp: the specification of the op. Every group's product is computed for every row."""

import jax
import jax.numpy as jnp


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The type of sums: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def product(x: jax.Array, w: jax.Array, over: tuple[int, int]) -> jax.Array:
    """`x` times `w`, both 2-D, summed over the axes `over` in the accumulator's type; float32 factors stay exact."""
    precision = None if x.dtype.itemsize < 4 else jax.lax.Precision.HIGHEST
    dimensions = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(x, w, dimensions, precision=precision, preferred_element_type=accumulator(x.dtype))


def rows_of(sizes: jax.Array, rows: int) -> jax.Array:
    """Which rows belong to which group, `[E, rows]` bool."""
    end = jnp.cumsum(sizes)[:, None]
    at = jnp.arange(rows)[None]
    return (at >= end - sizes[:, None]) & (at < end)


def grouped_matmul_reference(x: jax.Array, w: jax.Array, sizes: jax.Array, transposed: bool = False) -> jax.Array:
    """`y_m = x_m w_g(m)`, 0 where no group has row m: x `[M, D]`, w `[E, D, F]` (`[E, F, D]` transposed): `[M, F]`."""
    mine = rows_of(sizes, x.shape[0])
    y = jnp.zeros((x.shape[0], w.shape[1 if transposed else 2]), accumulator(x.dtype))
    for e in range(w.shape[0]):
        y = jnp.where(mine[e, :, None], product(x, w[e], (1, 1 if transposed else 0)), y)
    return y.astype(x.dtype)


def grouped_outer_reference(x: jax.Array, y: jax.Array, sizes: jax.Array) -> jax.Array:
    """`sum over the rows m of group e of x_m^T y_m`: x `[M, D]`, y `[M, F]`: `[E, D, F]`; 0 for an empty group."""
    mine = rows_of(sizes, x.shape[0])
    # Both are zeroed: rows of no group may hold NaN.
    each = [product(jnp.where(m[:, None], x, 0), jnp.where(m[:, None], y, 0), (0, 0)) for m in mine]
    return jnp.stack(each).astype(x.dtype)
