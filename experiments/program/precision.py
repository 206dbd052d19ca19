"""Sums over many updates in float32, whatever type the parameters are stored in: `optimizer.rounding` says how.

bfloat16 keeps 8 bits: an update below 1/512 of a parameter is rounded away, and so is an average's step towards it.
Gradients of microbatches, moments, averages and the parameters that updates are added to are therefore float32 (or
wider); what is stored and computed with is their rounding.
"""

from typing import Any

import jax
import jax.numpy as jnp

ROUNDINGS = ("master", "stochastic", "nearest")


def wide(dtype: Any) -> Any:
    """The type that sums over values of `dtype` are kept in: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)


def widened(tree: Any) -> Any:
    """The arrays of a pytree (or their shapes), each of type `wide`; those that are wide already are left as they
    are."""
    return jax.tree.map(lambda x: _cast(x, wide(x.dtype)), tree)


def like(tree: Any, stored: Any) -> Any:
    """The arrays of `tree`, rounded to the types of `stored` (arrays or shapes of the same structure)."""
    return jax.tree.map(lambda x, s: _cast(x, s.dtype), tree, stored)


def narrow(tree: Any) -> bool:
    """Whether any array of a pytree is narrower than float32."""
    return any(x.dtype != wide(x.dtype) for x in jax.tree.leaves(tree))


def rounded_at_random(tree: Any, stored: Any, key: jax.Array) -> Any:
    """`like`, but each value becomes one of its two neighbours in the stored type, on average itself.

    Args:
      tree: float32 arrays.
      stored: arrays or shapes of the same structure; where they are bfloat16, values are rounded at random.
      key: of this update; each array folds in its number.
    """
    leaves, structure = jax.tree.flatten(tree)
    types = [s.dtype for s in jax.tree.leaves(stored)]
    keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
    return structure.unflatten(
        _at_random(x, k) if dtype == jnp.bfloat16 else _cast(x, dtype)
        for x, dtype, k in zip(leaves, types, keys, strict=True)
    )


def _at_random(x: jax.Array, key: jax.Array) -> jax.Array:
    """bfloat16 neighbours of float32 values: 16 random bits are added to the 16 that rounding towards zero drops."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    up = bits + (jax.random.bits(key, x.shape, jnp.uint32) >> 16)
    kept = jax.lax.bitcast_convert_type((up >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), kept, x.astype(jnp.bfloat16))


def _cast(x: Any, dtype: Any) -> Any:
    if x.dtype == dtype:
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
    return x.astype(dtype)
