"""Rotary position embedding (Su et al. 2021), rotate-half form, over the first share of the head width."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def rotate(
    x: jax.Array,
    positions: jax.Array,
    *,
    theta: float = 10000.0,
    fraction: float = 1.0,
    scaling: Callable[[int, float, jax.Array], tuple[Any, float]] | None = None,
    within: int = 0,
    along: jax.Array | None = None,
) -> jax.Array:
    """Rotates the first `fraction` of H by angles `position * theta^(-2i/R)`, R the rotated width.

    Args:
      x: `[B, T, N, H]`.
      positions: `[B|1, T]` integers.
      theta: base of the frequencies.
      fraction: share of H that is rotated; the rest is returned unchanged. R is rounded down to an even number.
      scaling: (R, theta, positions) -> the R/2 rates in place of those, and what multiplies cos and sin; see
        models/rope_scaling.py.
      within: positions are 0 .. within - 1, many of them in many calls: cos and sin are looked up among those of all of
        these, which are computed once for all layers and steps. 0, or with `scaling`: they are computed.
      along: y `[B, 1|T, G N, H]`: only products with y are asked for, not what is rotated, which nobody then writes;
        head n of x meets heads n G .. n G + G - 1 of y.

    Returns:
      `[B, T, N, H]` in x's dtype; angles are computed in float32 (float64 for float64 x). With `along`
      `[B, T, G N, H - R/2]` in that type, whose sum over the last axis is the rotated x . y: cos (a c + b d) +
      sin (a d - b c) of each pair (a, b) of x and (c, d) of y, and the products of what is not rotated.
    """
    R = int(x.shape[-1] * fraction) // 2 * 2
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    if along is not None:
        x = jnp.repeat(x, along.shape[2] // x.shape[2], axis=2)
    if R == 0:
        return x if along is None else x.astype(dtype) * along.astype(dtype)
    factor = 1.0
    if scaling is None:
        with jax.ensure_compile_time_eval():  # a constant: equal tables of several layers are then computed once
            frequency = np.asarray(theta ** (-jnp.arange(0, R, 2, dtype=dtype) / R))
    else:
        frequency, factor = scaling(R, theta, positions)
        frequency = jnp.asarray(frequency, dtype)
    found = jnp.arange(within) if within and scaling is None else positions
    angle = found[..., None].astype(dtype) * frequency
    cos, sin = (_kept(f(angle)) for f in (jnp.cos, jnp.sin))
    if found is not positions:
        cos, sin = (table.at[positions].get(mode="clip") for table in (cos, sin))
    cos, sin = cos[..., None, :], sin[..., None, :]
    if factor != 1.0:
        cos, sin = cos * jnp.asarray(factor, dtype), sin * jnp.asarray(factor, dtype)
    pair = lambda x: (x[..., : R // 2].astype(dtype), x[..., R // 2 : R].astype(dtype))  # noqa: E731
    first, second = pair(x)
    if along is not None:
        c, d = pair(_kept(along))
        made = (first * c + second * d) * cos + (first * d - second * c) * sin
        rest = x[..., R:].astype(dtype) * along[..., R:].astype(dtype)
        return made if R == x.shape[-1] else jnp.concatenate([made, rest], axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return turned if R == x.shape[-1] else jnp.concatenate([turned, x[..., R:]], axis=-1)


def _kept(table: jax.Array) -> jax.Array:
    """`table [..., n]` times the identity: the same numbers, computed once a pass.

    XLA fuses cos and sin, or what turns a query, into each loop that reads them, and so evaluates them for every row,
    head and layer, forward and backward; on CPUs `optimization_barrier` does not stop it. It fuses no product, and
    merges equal ones.
    """
    eye = np.eye(table.shape[-1], dtype=table.dtype)
    return jnp.matmul(table, eye, precision=jax.lax.Precision.HIGHEST)
