"""Drawing tokens without truncating small probabilities, from keys that belong to a request and not to a batch slot.

Default float32 Gumbel noise stops at 15.94, so a class of probability 1e-7 comes out half as often as it should and
one of 1e-8 never. Here noise is float32 (or wider) whatever the logits, with a uniform of doubled resolution near zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

# What a key is for: folded in last, so that two draws of one row and step never share bits.
TOKEN, REVEAL, PLACE, ACCEPT, RESIDUAL, REMASK, STOP, START, DRAFT = range(9)


def row_keys(key: Array, batch: int, requests: Array | None = None) -> Array:
    """One key per row, folded from its request number: [B]. Requests default to 0..B-1.

    The same key and request number give the same tokens in any row of any batch.
    """
    requests = jnp.arange(batch) if requests is None else jnp.asarray(requests)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, requests)


def fold(keys: Array, when: Array | int, purpose: int) -> Array:
    """Row keys [B] for one step (a scalar, or [B] where rows keep their own count) and one purpose."""
    when = jnp.broadcast_to(when, keys.shape)
    return jax.vmap(lambda k, w: jax.random.fold_in(jax.random.fold_in(k, w), purpose))(keys, when)


def gumbel(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Standard Gumbel noise whose upper tail is not cut (largest float32 value about 32): shape `shape`."""
    return jax.random.gumbel(key, shape, jnp.promote_types(dtype, jnp.float32), mode="high")


def sample(keys: Array, logits: Array, temperature: float = 1.0, first: int = 0) -> Array:
    """Tokens from softmax(logits / temperature), argmax at temperature 0: [B] or [B, T].

    keys are [B], logits [B, V], or [B, T, V] of positions `first`, `first` + 1, ... A position's noise depends on its
    key and its number alone, not on how many others are drawn with it.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if temperature == 0:
        return jnp.argmax(logits, -1)
    if logits.ndim == 3:
        places = first + jnp.arange(logits.shape[1])
        keys = jax.vmap(lambda k: jax.vmap(jax.random.fold_in, (None, 0))(k, places))(keys)
    draw = lambda k: gumbel(k, logits.shape[-1:], logits.dtype)  # noqa: E731
    noise = (jax.vmap(jax.vmap(draw)) if logits.ndim == 3 else jax.vmap(draw))(keys)
    return jnp.argmax(logits / temperature + noise, -1)


def uniform(keys: Array, shape: tuple[int, ...] = (), dtype=jnp.float32) -> Array:
    """Uniform numbers in [0, 1): [B, *shape] from keys [B]."""
    return jax.vmap(lambda k: jax.random.uniform(k, shape, dtype))(keys)
