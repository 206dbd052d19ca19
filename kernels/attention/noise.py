"""Noise that is a function of where it stands: the same numbers in a tile of a kernel, in a decoding step and alone."""

import jax
import jax.numpy as jnp
import numpy as np

_FIRST, _SECOND = np.int32(0x7FEB352D), np.int32(0x846CA68B - 2**32)  # a bijection of 32 bits that mixes them well
_STEP = np.int32(0x9E3779B9 - 2**32)


def mixed(x: jax.Array) -> jax.Array:
    """32 bits, well mixed: x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16 (int32)."""
    shifted = jax.lax.shift_right_logical
    x = (x ^ shifted(x, jnp.full_like(x, 16))) * _FIRST
    x = (x ^ shifted(x, jnp.full_like(x, 15))) * _SECOND
    return x ^ shifted(x, jnp.full_like(x, 16))


def bits(seed: jax.Array | int, head: jax.Array, query: jax.Array, key: jax.Array) -> jax.Array:
    """int32 of the four integers: h = 0; for each x of them: h = mixed(h ^ (x + 0x9e3779b9)), shapes broadcast."""
    h = jnp.int32(0)
    for x in (seed, head, query, key):
        h = mixed(h ^ (jnp.asarray(x, jnp.int32) + _STEP))
    return h


def gumbel(
    seed: jax.Array | int, head: jax.Array, query: jax.Array, key: jax.Array, dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """Standard Gumbel noise g = -log(-log u) as a function of four integers.

    Args:
      seed: an integer.
      head: query heads, integers.
      query: positions of the queries.
      key: positions of the keys; the shapes of the four broadcast.
      dtype: float32 or float64.

    Returns:
      g, of the shape that they broadcast to: u = (b + 1/2) 2^-23 with the upper 23 of `bits`, never 0 or 1.
    """
    upper = jax.lax.shift_right_logical(bits(seed, head, query, key), jnp.int32(9))
    u = (upper.astype(dtype) + 0.5) * 2.0**-23
    return -jnp.log(-jnp.log(u))
