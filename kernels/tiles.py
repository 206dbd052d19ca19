"""Mathematics of one tile inside a kernel: products with their gradients, turned rows, a triangular inverse.

Everything takes two-dimensional values and is made of what Mosaic and Triton can lower, so that `jax.vjp` of a function
written with them is a kernel's backward pass.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_DIMS = {"nn": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}
# Of a product by its form: how each side's gradient is made of the result's (0), the left (1) and the right (2) side.
_GRADIENTS = {
    "nn": ((0, 2, "nt"), (1, 0, "tn")),
    "nt": ((0, 2, "nn"), (0, 1, "tn")),
    "tn": ((2, 0, "nt"), (1, 0, "nn")),
}


def _dot(a: jax.Array, b: jax.Array, form: str, low: jnp.dtype) -> jax.Array:
    exact = jax.lax.Precision.DEFAULT if jnp.dtype(low).itemsize <= 2 else jax.lax.Precision.HIGHEST
    wide = jnp.promote_types(low, jnp.float32)
    a, b = a.astype(low), b.astype(low)
    return jax.lax.dot_general(a, b, (_DIMS[form], ((), ())), precision=exact, preferred_element_type=wide)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(a: jax.Array, b: jax.Array, form: str, low: jnp.dtype) -> jax.Array:
    """a b (form "nn"), a b^T ("nt") or a^T b ("tn"), operands rounded to `low`, sums float32 (float64 for float64).

    Its gradients are products of the same kind: the result's gradient is rounded to `low`, too.
    """
    return _dot(a, b, form, low)


def _product_forward(a, b, form, low):
    return _dot(a, b, form, low), (a, b)


def _product_backward(form, low, saved, gradient):
    given = (gradient, *saved)
    sides = [_dot(given[i], given[j], of, low) for i, j, of in _GRADIENTS[form]]
    return tuple(side.astype(x.dtype) for side, x in zip(sides, saved, strict=True))


product.defvjp(_product_forward, _product_backward)


def value(function: Callable, *args: Any) -> Any:
    """function(*args) by the forward rules of its `custom_vjp`s, which Triton's lowering has no name for."""
    return jax.vjp(function, *args)[0]


def places(size: int) -> tuple[jax.Array, jax.Array]:
    """Row and column numbers of a square tile, `[size, size]` int32 each."""
    return tuple(jax.lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))


def column(row: jax.Array) -> jax.Array:
    """`[1, C]` as `[C, 1]`, by a sum over the diagonal: no chip turns a row for less."""
    i, j = places(row.shape[1])
    return jnp.sum(jnp.where(i == j, row, 0), axis=1, keepdims=True)


def last(row: jax.Array) -> jax.Array:
    """The last number of `[1, C]`, as `[1, 1]`."""
    at = jax.lax.broadcasted_iota(jnp.int32, row.shape, 1)
    return jnp.sum(jnp.where(at == row.shape[1] - 1, row, 0), axis=1, keepdims=True)


@jax.custom_vjp
def inverse(below: jax.Array) -> jax.Array:
    """(I + below)^-1 of one `[C, C]` tile that is zero on and above the diagonal, as in `linear_attention.chunked`.

    A level joins neighbouring blocks of the inverse: where X holds the inverses of the diagonal blocks and B the blocks
    that join them, X - X B X holds those of blocks twice as long.
    """
    return _inverse(below)


def _inverse(below):
    size, dtype = below.shape[0], below.dtype
    i, j = places(size)
    found = jnp.where(i == j, jnp.ones_like(below), 0)
    level = 0
    while (1 << level) < size:
        joins = (i >> level + 1 == j >> level + 1) & (i >> level != j >> level)
        corner = jnp.where(joins, below, 0)
        if level:
            corner = _dot(_dot(found, corner, "nn", dtype), found, "nn", dtype)
        found = found - corner
        level += 1
    return found


def _inverse_forward(below):
    found = _inverse(below)
    return found, found


def _inverse_backward(found, gradient):
    dtype = found.dtype
    return (-_dot(_dot(found, gradient, "tn", dtype), found, "nt", dtype),)


inverse.defvjp(_inverse_forward, _inverse_backward)


@jax.custom_vjp
def inverted(below: jax.Array, found: jax.Array) -> jax.Array:
    """`found`, which is `inverse(below)` computed before; the gradient goes to `below`."""
    return found


inverted.defvjp(
    lambda below, found: (found, found), lambda found, gradient: (*_inverse_backward(found, gradient), None)
)
