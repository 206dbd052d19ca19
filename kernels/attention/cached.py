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

FEW_QUERIES = 24
KEYS_FIRST = "bksm"


def attend_cache(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Mask,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    implementation: str | None = None,
    made: bool = False,
) -> jax.Array:
    """Attention of q [B, T, N, H] over a cache k, v [B, S, K, H] in which every slot, seen or not, is finite.

    A few queries are one small product per head, whose scores are no more numbers than the cache holds; more of them go
    to `attention`. Returns [B, T, N, H] in q's type; every query must see at least one key. `softcap` and `sinks [N]`
    as in `attention`. `made`: keys are computed in this pass; they are then laid out token by token, as they come.
    """
    T, K = q.shape[1], k.shape[2]
    if implementation is not None or T > FEW_QUERIES:
        return attention(q, k, v, mask=mask, softcap=softcap, sinks=sinks, implementation=implementation)
    rows = _rows(q, K)
    order = KEYS_FIRST if made else _order(rows)
    return _weighed(_products(rows, k, order), order, v, mask, T, softcap, sinks).astype(q.dtype)


def attend_products(
    q: jax.Array,
    products: jax.Array,
    v: jax.Array,
    *,
    mask: Mask,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """As `attend_cache` of one query a row, q [B, 1, N, H], by its products with the keys: [B, 1, N, H] in q's type.

    score_s = sum_r products_sr / sqrt(H), `products` [B, S, N, R], finite in every slot. Where keys have to be rotated
    for a pass, products are formed without writing what was rotated (`models.rope.rotate`, `along`).
    """
    dtype = jnp.promote_types(products.dtype, jnp.float32)
    # A product with ones: XLA on a CPU adds up the last axis of an array number by number. Keys of a head lie side by
    # side, as in the caches: told otherwise, it turns the products over.
    ones = jnp.ones(products.shape[-1], products.dtype)
    products = products.swapaxes(1, 2)
    score = jnp.einsum("bnsr,r->bns", products, ones, precision="highest", preferred_element_type=dtype)
    score = score.reshape(len(v), v.shape[2], -1, v.shape[1]) / math.sqrt(q.shape[-1])
    return _weighed(score, "bkms", v, mask, 1, softcap, sinks).astype(q.dtype)


def attend_turned(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    turn: jax.Array,
    *,
    mask: Mask,
    first: int | None = None,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """As `attend_cache`, where every query comes in P forms and each key reads one of them.

    score_ts = q_(t, turn_s) . k_s / sqrt(H). Keys whose rotary positions change together, such as all those before a
    token that left, need not be rotated again: the query is turned the other way. All keys are read once, as by
    `attend_cache`.

    Args:
      q: [B, T, N, P * H], the forms of a query side by side.
      k, v: [B, S, K, H], finite in every slot.
      turn: [B, S] int32 within 0 .. P - 1.
      mask: of the T queries.
      first: keys that read form 0 are among the first so many, None: anywhere. Only these meet it.
      softcap, sinks: as in `attention`.

    Returns:
      [B, T, N, H] in q's type.
    """
    (B, T, N, _), (K, H) = q.shape, k.shape[2:]
    forms = [_rows(form, K) for form in jnp.unstack(q.reshape(B, T, N, -1, H), axis=3)]
    order = _order(forms[0])
    turn = turn[:, None, :, None] if order == KEYS_FIRST else turn[:, None, None]
    few = len(forms) * [None] if first is None else [first] + (len(forms) - 1) * [None]
    # One product of all forms is slower on a CPU: it lays the keys out anew.
    parts = [_products(form, k[:, :some], order) for form, some in zip(forms, few, strict=True)]
    axis, S = order.index("s"), k.shape[1]
    wide = [(0, 0)] * axis
    parts = [jnp.pad(x, [*wide, (0, S - x.shape[axis]), *[(0, 0)] * (x.ndim - axis - 1)]) for x in parts]
    score = sum(jnp.where(turn == p, x, 0) for p, x in enumerate(parts))
    return _weighed(score, order, v, mask, T, softcap, sinks).astype(q.dtype)


def _rows(q: jax.Array, K: int) -> jax.Array:
    """q [B, T, N, H] as the M = N / K * T rows that read each key head: [B, K, M, H]."""
    B, T, N, H = q.shape
    return q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)


def _order(rows: jax.Array) -> str:
    """How scores of rows [B, K, M, H] lie: S keys first, or last.

    XLA on a CPU reads the cache where it lies if its keys are the rows of the product; else it turns the values over,
    each token. Where each of several texts has one query it does not, and the softmax is faster along the last axis.
    """
    B, _, M, _ = rows.shape
    return KEYS_FIRST if B == 1 or M > 1 else "bkms"


def _products(rows: jax.Array, k: jax.Array, order: str) -> jax.Array:
    """q . k / sqrt(H) of rows [B, K, M, H] and k [B, S, K, H], in float32 or wider."""
    dtype = jnp.promote_types(rows.dtype, jnp.float32)
    return jnp.einsum(f"bskh,bkmh->{order}", k, rows, preferred_element_type=dtype) / math.sqrt(rows.shape[-1])


def _weighed(
    score: jax.Array, order: str, v: jax.Array, mask: Mask, T: int, softcap: float | None, sinks: jax.Array | None
) -> jax.Array:
    """Values by the softmax of scores that lie in `order` over the keys that are seen: [B, T, N, H], score's type."""
    (B, S, K, H), dtype, keys = v.shape, score.dtype, order.index("s")
    G = score.size // (B * S * K * T)
    if softcap is not None:
        score = softcap * jnp.tanh(score / softcap)
    seen = jnp.concatenate([mask.traced(T, S)] * G, axis=2)  # [1|B, 1|K, M, S]
    score = jnp.where(seen.swapaxes(2, 3) if order == KEYS_FIRST else seen, score, jnp.finfo(dtype).min)
    if sinks is not None:
        sink = jnp.repeat(sinks.astype(dtype).reshape(K, G), T, axis=1)
        sink = jnp.expand_dims(jnp.broadcast_to(sink, (B, K, G * T)), keys)
        score = jnp.concatenate([score, sink], axis=keys)
    weight = jax.lax.slice_in_dim(jax.nn.softmax(score, axis=keys), 0, S, axis=keys).astype(v.dtype)
    out = jnp.einsum(f"{order},bskh->bkmh", weight, v, preferred_element_type=dtype)
    return out.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, H)


def attend_looked(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array, bias: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attention that also returns what every query made of every key; all T x S numbers are formed.

    Args:
      q: [B, T, N, H]; k, v: [B, S, K, H], finite in every slot; G = N / K query heads share a key head.
      seen: [B, 1|K, 1|G, T, S] bool.
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
