"""Drawing tokens without truncating small probabilities, from keys that belong to a request and not to a batch slot.

Default float32 Gumbel noise stops at 15.94, so a class of probability 1e-7 comes out half as often as it should and
one of 1e-8 never. Here noise is float32 (or wider) whatever the logits, with a uniform of doubled resolution near zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

# What a key is for: folded in last, so that two draws of one row and step never share bits.
TOKEN, REVEAL, PLACE, ACCEPT, RESIDUAL, REMASK, STOP, START = range(8)


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


def sample(keys: Array, logits: Array, temperature: float = 1.0) -> Array:
    """Tokens from softmax(logits / temperature): [B, ...] from keys [B] and logits [B, ..., V]; argmax at
    temperature 0."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if temperature == 0:
        return jnp.argmax(logits, -1)
    noise = jax.vmap(lambda k: gumbel(k, logits.shape[1:], logits.dtype))(keys)
    return jnp.argmax(logits / temperature + noise, -1)


def uniform(keys: Array, shape: tuple[int, ...] = (), dtype=jnp.float32) -> Array:
    """Uniform numbers in [0, 1): [B, *shape] from keys [B]."""
    return jax.vmap(lambda k: jax.random.uniform(k, shape, dtype))(keys)
