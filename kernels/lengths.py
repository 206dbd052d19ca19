"""Norms of arrays, and arrays scaled to a length, with a gradient written by hand.

What autodiff keeps and computes of a norm, its test for zero and a division are several arrays as large as the input,
each a loop of its own for XLA on a CPU to compile.
"""

import functools

import jax
import jax.numpy as jnp


def norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The L2 norm over `axes`, kept with length 1, with gradient 0 (not NaN) where it is 0."""
    square = jnp.sum(x * x, axis=axes, keepdims=True)
    zero = square == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def scaled_to(x: jax.Array, length: jax.Array | None, axes: tuple[int, ...], epsilon: float) -> jax.Array:
    """n x / (||x|| + epsilon), the norm over `axes` of x, whose own gradient is 0 where it is 0; reverse mode only.

    length: n, of 1 along `axes` and of 1 or x's size along others; None: 1.
    """
    return _scaled(x, length, norm(x, axes), epsilon)


def _scaled(x: jax.Array, length: jax.Array | None, found: jax.Array, epsilon: float) -> jax.Array:
    unit = x / (found + epsilon)
    return unit if length is None else length * unit


def _forward(x, length, axes, epsilon):
    found = norm(x, axes)
    return _scaled(x, length, found, epsilon), (x, length, found)


def _backward(axes, epsilon, kept, g):
    """With r = ||x||, s = 1 / (r + epsilon) and p = <g, x>: n s g - n s^2 p x / r, and s p for n."""
    x, length, found = kept
    inverse, along = 1 / (found + epsilon), jnp.sum(g * x, axis=axes, keepdims=True)
    share = inverse * along
    scale = inverse if length is None else length * inverse
    bent = jnp.where(found == 0, 0, scale * share / jnp.where(found == 0, 1, found))
    if length is None:
        return scale * g - bent * x, None
    shared = tuple(i for i, n in enumerate(length.shape) if n == 1 and share.shape[i] > 1)
    return scale * g - bent * x, jnp.sum(share, axis=shared, keepdims=True)


scaled_to.defvjp(_forward, _backward)
