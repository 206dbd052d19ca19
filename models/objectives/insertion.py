"""Insertion language models (ILM): predict which token goes where, one softmax over slots x vocabulary, and when to
stop.

Slot s follows the s-th surviving token; slot 0 follows the start token. A noised row is [BOS, survivors, padding].
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Deletion(NamedTuple):
    """A batch with tokens removed: z [B, L+1] from BOS on, count [B] survivors, target [B, L+1, V], stop [B] bool,
    weight [B]."""

    z: Array
    count: Array
    target: Array
    stop: Array
    weight: Array


def target(x: Array, dropped: Array | Collection[int], vocab_size: int) -> Array:
    """Share of the dropped tokens that belong in each slot: [..., L+1, V], sum 1, or all 0 when nothing was dropped.

    Args:
      x: tokens [..., L]. dropped: bool [..., L], or the positions of the dropped tokens of one sequence.

    A dropped token's slot is that of the nearest survivor to its left, so target(slot, v) = count / n (ILM section 3).
    Slots are numbered by survivors; with m of them rows 0..m are in use and the rest are zero.
    """
    x = jnp.asarray(x)
    if isinstance(dropped, (set, frozenset, range)):
        dropped = sorted(dropped)
    dropped = jnp.asarray(dropped)
    if dropped.dtype != bool:
        dropped = jnp.zeros(x.shape, bool).at[dropped.astype(int)].set(True)
    slot = jnp.cumsum(~dropped, -1)
    dtype = jnp.result_type(float)
    places = jax.nn.one_hot(slot, x.shape[-1] + 1, dtype=dtype) * dropped[..., None]
    counts = jnp.einsum("...ls,...lv->...sv", places, jax.nn.one_hot(x, vocab_size, dtype=dtype))
    return counts / jnp.maximum(dropped.sum(-1), 1)[..., None, None]


def corrupt(
    key: Array,
    x: Array,
    lengths: Array | None = None,
    *,
    vocab_size: int,
    bos: int | None = None,
    pad: int | None = None,
    weighted: bool = False,
    frozen: Array | None = None,
) -> Deletion:
    """Removes n ~ U{0..L_x} uniformly chosen tokens from each row x [B, L] of `lengths` [B] (all L if None).

    weighted: weight L_x + 1 instead of 1 on both losses. With variable lengths and a sampled stop, the optimum of
    the plain losses samples P(x)/(L_x + 1) renormalised, too short; the weighted one samples P exactly. bos and pad
    default to V and V + 1. frozen: [B, L] bool, tokens never removed; n is then uniform over the removable ones.
    """
    batch, length = x.shape
    bos, pad = vocab_size if bos is None else bos, vocab_size + 1 if pad is None else pad
    lengths = jnp.full(batch, length) if lengths is None else jnp.asarray(lengths)
    real = jnp.arange(length) < lengths[:, None]
    free = real if frozen is None else real & ~jnp.asarray(frozen)
    count_key, place_key = jax.random.split(key)
    most = free.sum(-1)
    n = jnp.minimum(jnp.floor(jax.random.uniform(count_key, (batch,)) * (most + 1)).astype(int), most)
    noise = jnp.where(free, jax.random.uniform(place_key, x.shape), 2.0)
    dropped = free & (jnp.argsort(jnp.argsort(noise, -1), -1) < n[:, None])
    kept = real & ~dropped
    front = jnp.argsort(~kept, -1, stable=True)
    count = kept.sum(-1)
    tokens = jnp.where(jnp.arange(length) < count[:, None], jnp.take_along_axis(x, front, -1), pad)
    z = jnp.concatenate([jnp.full((batch, 1), bos, tokens.dtype), tokens], -1)
    weight = (lengths + 1 if weighted else jnp.ones_like(lengths)).astype(jnp.float32)
    return Deletion(z, count, target(jnp.where(real, x, 0), dropped, vocab_size), n == 0, weight)


def slot_log_probs(logits: Array, count: Array) -> Array:
    """log p(slot, v), one softmax over the count + 1 slots in use times the vocabulary: [B, S, V] from logits [B, S,
    V]."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    used = jnp.arange(logits.shape[1]) <= count[:, None]
    logits = jnp.where(used[..., None], logits, -jnp.inf)
    return logits - jax.nn.logsumexp(logits, axis=(1, 2), keepdims=True)


def token_loss(logits: Array, noised: Deletion) -> Array:
    """Cross-entropy of the insertion target, by slot: [B, S] from logits [B, S, V]; 0 for a row that lost nothing."""
    log_p = slot_log_probs(logits, noised.count)
    terms = jnp.where(noised.target > 0, noised.target * log_p, 0.0)
    return -terms.sum(-1) * noised.weight[:, None]


def stop_loss(stop_logits: Array, noised: Deletion) -> Array:
    """Cross-entropy of "nothing is missing" (class 1) against "go on" (class 0): [B] from logits [B, 2]."""
    log_p = jax.nn.log_softmax(stop_logits.astype(jnp.promote_types(stop_logits.dtype, jnp.float32)), -1)
    return -jnp.where(noised.stop, log_p[:, 1], log_p[:, 0]) * noised.weight


def strings(vocab_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Every string of up to `length` tokens, shortest first: rows [N, L+1] as in `Deletion.z`, and counts [N]."""
    rows, counts = [], []
    for count in range(length + 1):
        for index in range(vocab_size**count):
            digits = [index // vocab_size**i % vocab_size for i in reversed(range(count))]
            rows.append([vocab_size, *digits, *[vocab_size + 1] * (length - count)])
            counts.append(count)
    return np.array(rows), np.array(counts)
