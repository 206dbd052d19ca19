"""Rotary position embedding (Su et al. 2021), rotate-half form, over the first share of the head width."""

import jax
import jax.numpy as jnp


def rotate(x: jax.Array, positions: jax.Array, *, theta: float = 10000.0, fraction: float = 1.0) -> jax.Array:
    """Rotates the first `fraction` of H by angles `position * theta^(-2i/R)`, R the rotated width.

    Args:
      x: `[B, T, N, H]`.
      positions: `[B|1, T]` integers.
      theta: base of the frequencies.
      fraction: share of H that rotates; the rest passes unchanged. R is rounded down to an even number.

    Returns:
      `[B, T, N, H]` in x's dtype; angles are computed in float32 (float64 for float64 x).
    """
    R = int(x.shape[-1] * fraction) // 2 * 2
    if R == 0:
        return x
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    frequency = theta ** (-jnp.arange(0, R, 2, dtype=dtype) / R)
    angle = positions[..., None, None].astype(dtype) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = x[..., : R // 2].astype(dtype), x[..., R // 2 : R].astype(dtype)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return turned if R == x.shape[-1] else jnp.concatenate([turned, x[..., R:]], axis=-1)
