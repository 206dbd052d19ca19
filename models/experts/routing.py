"""What a router decides, `Routing`, and what is read off it: choices, gates and masks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Routing(NamedTuple):
    """The choice of each token. Unused places of `index` hold -1, and their gate is 0."""

    logits: jax.Array  # [..., E]
    probs: jax.Array  # [..., E] what the balance losses read as probabilities
    index: jax.Array  # [..., K] int32
    gate: jax.Array  # [..., K]


def wide(x: Any) -> jax.Array:
    """`x` as a jax array in float32, or wider where it is wider; whole numbers in the widest float there is."""
    x = jnp.asarray(x)
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    dtype = jnp.promote_types(x.dtype, jnp.float32) if floating else jnp.result_type(float)
    return x if x.dtype == dtype else x.astype(dtype)


def select(scores: jax.Array, k: int) -> jax.Array:
    """The k experts with the largest scores, the largest first; of equal ones the lowest index first.

    Args:
      scores: `[..., E]`. An expert at -inf is never chosen. A row that holds a NaN chooses nothing.
      k: how many, at most E.

    Returns:
      `[..., k]` int32, -1 where there is no expert left to choose. Not differentiated.
    """
    scores = jax.lax.stop_gradient(wide(scores))
    scores = jnp.where(scores == 0, 0, scores)  # -0.0 and 0.0 are equal.
    best, index = jax.lax.top_k(scores, k)
    known = ~jnp.any(jnp.isnan(scores), axis=-1, keepdims=True)
    return jnp.where(known & (best > -jnp.inf), index, -1).astype(jnp.int32)


def unless_masked(scores: jax.Array, logits: jax.Array) -> jax.Array:
    """`scores`, and -inf where the logit is -inf: an expert that is masked has a score of 0 and must not be chosen."""
    return jnp.where(logits == -jnp.inf, logits, scores)


def take(values: jax.Array, index: jax.Array) -> jax.Array:
    """`values [..., E]` at `index [..., K]`, 0 where the index is -1: `[..., K]`."""
    taken = jnp.take_along_axis(jnp.asarray(values), jnp.maximum(index, 0), axis=-1)
    return jnp.where(index >= 0, taken, 0)


def normalised(gate: jax.Array) -> jax.Array:
    """`gate [..., K]` divided by its sum; 0 where the sum is 0."""
    total = jnp.sum(gate, axis=-1, keepdims=True)
    return jnp.where(total == 0, 0, gate / jnp.where(total == 0, 1, total))


def softmax_at(logits: jax.Array, index: jax.Array) -> jax.Array:
    """Softmax of `logits [..., E]` over the chosen experts alone, `[..., K]`: e^z_i / sum_j e^z_j, j chosen."""
    values, used = take(logits, index), index >= 0
    most = jnp.max(jnp.where(used, values, -jnp.inf), axis=-1, keepdims=True)
    most = jax.lax.stop_gradient(jnp.where(jnp.isfinite(most), most, 0))
    return normalised(jnp.where(used, jnp.exp(jnp.where(used, values - most, 0)), 0))


def mask(index: jax.Array, experts: int) -> jax.Array:
    """m_te: 1 where token t chose expert e, else 0. `index [..., K] -> [..., E]`."""
    return jnp.sum(jax.nn.one_hot(jnp.asarray(index), experts, dtype=jnp.result_type(float)), axis=-2)


def dense(index: jax.Array, gate: jax.Array, experts: int) -> jax.Array:
    """Gates by expert, 0 where an expert was not chosen: `index, gate [..., K] -> [..., E]`."""
    gate = jnp.asarray(gate)
    return jnp.sum(jax.nn.one_hot(jnp.asarray(index), experts, dtype=gate.dtype) * gate[..., None], axis=-2)


def reported(logits: jax.Array) -> jax.Array:
    """Whether a token's logits hold a NaN, `[..., E] -> [...]` bool: such a token is counted and goes to no expert."""
    return jnp.any(jnp.isnan(jnp.asarray(logits)), axis=-1)
