"""The field's everyday changes of logits, as in transformers and OpenAI's interface, from logits and counts of tokens.

Logits are `[..., V]`. A value is a number or one a row, `[...]`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from models.decoding.sampling import by_row

Array = jax.Array


def counts(tokens: Array, length: Array | int, size: int) -> Array:
    """How often each id came among the first `length` `[...]` of tokens `[..., T]`: `[..., size]` int32."""
    tokens = jnp.asarray(tokens)
    there = jnp.arange(tokens.shape[-1]) < jnp.asarray(length)[..., None]
    held = jnp.where(there, tokens, size)

    def one(held: Array) -> Array:
        return jnp.zeros(size, jnp.int32).at[held].add(1, mode="drop")

    return jax.vmap(one)(held.reshape(-1, held.shape[-1])).reshape(*held.shape[:-1], size)


def repetition(logits: Array, seen: Array, penalty: Any) -> Array:
    """Divides positive logits of tokens that came by the penalty, multiplies others (Keskar et al. 2019, CTRL).

    seen `[..., V]` bool; 1 changes nothing. Applied once a token, however often it came.
    """
    logits = jnp.asarray(logits)
    penalty = by_row(penalty, logits).astype(logits.dtype)
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def presence_frequency(logits: Array, count: Array, presence: Any = 0.0, frequency: Any = 0.0) -> Array:
    """logits - frequency count - presence [count > 0], as in OpenAI's interface: count `[..., V]`."""
    logits, count = jnp.asarray(logits), jnp.asarray(count)
    taken = by_row(frequency, logits) * count + jnp.where(count > 0, by_row(presence, logits), 0)
    return logits - taken.astype(logits.dtype)


def bias(logits: Array, added: Array) -> Array:
    """logits + added, -inf to rule a token out: `[..., V]`."""
    return logits + added


def min_length(logits: Array, length: Array | int, least: Any, eos: int) -> Array:
    """Rules the end out while fewer than `least` tokens were written: length `[...]`."""
    logits = jnp.asarray(logits)
    short = jnp.asarray(jnp.asarray(length) < least)[..., None] & (jnp.arange(logits.shape[-1]) == eos)
    return jnp.where(short, -jnp.inf, logits)
