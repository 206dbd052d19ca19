"""Attention of new tokens over a cache of their own past.

Cache slots are always finite (zeros or written values), so unseen ones may be multiplied by zero. `attention` must
assume that unseen keys are NaN and replaces them first: a pass over all slots that costs more on a CPU than the
attention of one query itself.
"""

import math

import jax
import jax.numpy as jnp

from kernels.attention import attention
from kernels.masks import Mask

FEW_QUERIES = 16


def attend_cache(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Mask,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Attention of q [B, T, N, H] over a cache k, v [B, S, K, H] in which every slot, seen or not, is finite.

    A few queries are one small product per head, whose scores are no more numbers than the cache holds; more of them go
    to `attention`. Returns [B, T, N, H] in q's type; every query must see at least one key. `softcap` and `sinks [N]`
    as in `attention`.
    """
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    if implementation is not None or T > FEW_QUERIES:
        return attention(q, k, v, mask=mask, softcap=softcap, sinks=sinks, implementation=implementation)
    dtype, G = jnp.promote_types(q.dtype, jnp.float32), N // K
    grouped = q.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    # Keys as the rows of the product: XLA on a CPU then reads the cache where it lies. Else it first turns the values
    # over, each token, but where every row has one query: then only where there is one row.
    keys_first = B == 1 or G * T > 1
    scores, keys = ("bskh,bkmh->bksm", 2) if keys_first else ("bskh,bkmh->bkms", 3)
    score = jnp.einsum(scores, k, grouped, preferred_element_type=dtype) / math.sqrt(H)
    if softcap is not None:
        score = softcap * jnp.tanh(score / softcap)
    score = jnp.where(_beside(mask.traced(T, S), G, keys_first), score, jnp.finfo(dtype).min)
    if sinks is not None:
        sink = jnp.repeat(sinks.astype(dtype).reshape(K, G), T, axis=1)
        sink = jnp.expand_dims(jnp.broadcast_to(sink, (B, K, G * T)), keys)
        score = jnp.concatenate([score, sink], axis=keys)
    weight = jax.lax.slice_in_dim(jax.nn.softmax(score, axis=keys), 0, S, axis=keys).astype(v.dtype)
    out = jnp.einsum(f"{scores[-4:]},bskh->bkmh", weight, v, preferred_element_type=dtype)
    return out.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q.dtype)


def _beside(seen: jax.Array, G: int, keys_first: bool) -> jax.Array:
    """`[1|B, 1|K, S, G * T]` of seen `[1|B, 1|K, T, S]`, or `[1|B, 1|K, G * T, S]` where keys are not first."""
    seen = jnp.concatenate([seen] * G, axis=2)
    return seen.swapaxes(2, 3) if keys_first else seen


def attend_looked(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array, bias: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attention that also returns what every query made of every key; all T x S numbers are formed.

    Args:
      q: [B, T, N, H]; k, v: [B, S, K, H], finite in every slot; G = N / K query heads share a key head.
      seen: [B, 1|K, 1, T, S] bool.
      bias: [B, 1|K, 1, 1|T, S] added to the logits q.k / sqrt(H), or None.

    Returns:
      out [B, T, N, H] in q's type; weights [B, K, G, T, S], the softmax over the keys that are seen (zeros for a query
      that sees none); logits [B, K, G, T, S], -inf where a key is not seen. Both float32 or wider.
    """
    (B, T, N, H), K = q.shape, k.shape[2]
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    grouped = q.reshape(B, T, K, N // K, H)
    score = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=dtype) / math.sqrt(H)
    score = score if bias is None else score + bias.astype(dtype)
    seen = jnp.broadcast_to(seen, score.shape)
    weights = jax.nn.softmax(jnp.where(seen, score, jnp.finfo(dtype).min), axis=-1)
    weights = jnp.where(seen, weights, 0)
    out = jnp.einsum("bkgts,bskh->btkgh", weights.astype(v.dtype), v, preferred_element_type=dtype)
    return out.reshape(B, T, N, H).astype(q.dtype), weights, jnp.where(seen, score, -jnp.inf)
