"""Where a sequence of bytes is cut into segments, as plain functions of arrays: how many, where, and what they hold.

A byte may give rise to a token of the backbone (it is marked). The first byte of each document does. A byte reads the
newest token of its own document, so that everything is causal where marks and tokens are made of bytes up to there.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

_MANY = 1 << 24  # More than the bytes of a row.
LOW = -1e30  # Below every score.


def limited(
    proposed: jax.Array, first: jax.Array, live: jax.Array, place: jax.Array, least: int, before: jax.Array
) -> jax.Array:
    """Marks of the document up to each byte, of which there are at most 1 + floor(place / least), `[B, T]` int32.

    n_t = min(n_{t-1} + proposed_t, 1 + floor(place_t / least)), and 1 at a document's first byte: a document by itself
    decides its own. Computed in parallel, since such steps n -> min(n + a, c) compose to steps of the same form.

    Args:
      proposed: `[B, T]` bool.
      first: `[B, T]` bool, first bytes of documents.
      live: `[B, T]` bool, False for padding.
      place: `[B, T]` of a byte in its document.
      least: bytes a segment at least, on average over every beginning of a document; 1: no limit.
      before: `[B]` marks of the document that the row goes on with; 0 where it begins one.
    """
    add = jnp.where(live, jnp.where(first, _MANY, proposed), 0)
    most = jnp.where(live, jnp.where(first, 1, 1 + place // least), _MANY)

    def behind(earlier: tuple, later: tuple) -> tuple:
        (a, c), (b, d) = earlier, later
        return jnp.minimum(a + b, _MANY), jnp.minimum(jnp.minimum(c + b, d), _MANY)

    add, most = jax.lax.associative_scan(behind, (add, most), axis=1)
    return jnp.minimum(before[:, None] + add, most).astype(jnp.int32)


def marked(number: jax.Array, first: jax.Array, live: jax.Array, before: jax.Array) -> jax.Array:
    """Bytes at which the count `number [B, T]` of `limited` grew or began, `[B, T]` bool."""
    earlier = jnp.concatenate([before[:, None], number[:, :-1]], axis=1)
    return live & (first | (number > earlier))


def places(marks: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """(the bytes that are marked, packed to the left `[B, S]`; which of the S = `length` there are `[B, S]`).

    Marks beyond S are left out.
    """
    order = jnp.argsort(~marks, axis=1, stable=True)[:, :length]
    return order, jnp.arange(length) < jnp.sum(marks, axis=1, keepdims=True)


def at(rows: jax.Array, index: jax.Array) -> jax.Array:
    """`rows [B, T, ...]` at `index [B, S]`, `[B, S, ...]`."""
    return jnp.take_along_axis(rows, index.reshape(*index.shape, *(1,) * (rows.ndim - 2)), axis=1)


def straight_marks(marks: jax.Array, soft: jax.Array, free: jax.Array) -> jax.Array:
    """`marks [B, T]` as numbers, with the gradient of `soft [B, T]` where `free [B, T]` holds."""
    return marks.astype(soft.dtype) + jnp.where(free, soft - jax.lax.stop_gradient(soft), 0)


def segment_of(marks: jax.Array, delayed: bool) -> jax.Array:
    """Number of the token that each byte belongs to, `[B, T]`: the next one that is marked.

    `delayed`: the token of a mark holds the bytes BEFORE it; else it is the last of its own bytes.
    """
    counted = jnp.cumsum(marks, axis=1)
    return counted if delayed else counted - marks


def members(segment: jax.Array, length: int) -> jax.Array:
    """`[B, T, S]`: 1 where byte t belongs to token s = `segment[b, t]`, else 0; S = `length`.

    The gradient with respect to numbers that are no integers by type is that of MAGNET's released pools.
    """
    apart = jnp.arange(length, dtype=segment.dtype) - segment[..., None]
    return jnp.where(apart == 0, 1 - apart, 0)


def mean(
    hidden: jax.Array, member: jax.Array, total: jax.Array, count: jax.Array, none: jax.Array
) -> jax.Array:  # fmt: skip
    """Mean of the bytes of each token, `[B, S, D]`; `none [D]` where it has no byte.

    Args:
      hidden: `[B, T, D]`.
      member: `[B, T, S]` which bytes are whose.
      total, count: `[B, D]` and `[B]`: sum and number of the first token's bytes that were read before.
      none: `[D]`.
    """
    sums = jnp.einsum("btd,bts->bsd", hidden, member.astype(hidden.dtype))
    sums = sums.at[:, 0].add(total.astype(sums.dtype))
    counts = jnp.sum(member, axis=1).at[:, 0].add(count)
    held = counts > 0.5
    divided = sums / jnp.where(held, counts, 1)[..., None].astype(sums.dtype)
    return jnp.where(held[..., None], divided, none.astype(sums.dtype))


class Softmax(NamedTuple):
    """A softmax of Q queries that is not divided yet: the result is total / weight."""

    peak: jax.Array  # [..., Q] the largest score, `LOW` of none
    weight: jax.Array  # [..., Q] sum of exp(score - peak)
    total: jax.Array  # [..., Q, H] sum of exp(score - peak) value


def attended(
    scores: jax.Array, values: jax.Array, member: jax.Array, segment: jax.Array, held: Mapping[str, jax.Array]
) -> Softmax:  # fmt: skip
    """Attention of Q queries to the bytes of each token alone, `[B, S, Q]` and `[B, S, Q, H]`.

    Args:
      scores: `[B, T, Q]` of the bytes.
      values: `[B, T, Q, H]`.
      member: `[B, T, S]` which bytes are whose; its gradient is that of a byte's weight.
      segment: `[B, T]` number of each byte's token, as `segment_of` has it.
      held: `peak`, `weight` `[B, Q]` and `total` `[B, Q, H]` of the first token's bytes that were read before.
    """
    S = member.shape[2]
    own = jnp.sum(jax.lax.stop_gradient(member), axis=2, keepdims=True) > 0.5
    index = jax.lax.stop_gradient(segment).astype(jnp.int32)
    most = jax.vmap(lambda s, i: jax.ops.segment_max(s, i, num_segments=S))
    peak = jnp.maximum(most(jax.lax.stop_gradient(jnp.where(own, scores, LOW)), index), LOW)
    peak = peak.at[:, 0].max(held["peak"])
    mine = at(peak, jnp.clip(index, 0, S - 1))
    e = jnp.exp(jnp.where(own, scores - mine, LOW))
    weight = jnp.einsum("btq,bts->bsq", e, member.astype(e.dtype))
    total = jnp.einsum("btqh,bts->bsqh", e[..., None] * values, member.astype(e.dtype))
    before = jnp.exp(held["peak"] - peak[:, 0])
    return Softmax(
        peak, weight.at[:, 0].add(before * held["weight"]), total.at[:, 0].add(before[..., None] * held["total"])
    )


def going_on(
    scores: jax.Array, values: jax.Array, rest: jax.Array, goes_on: jax.Array, held: Mapping[str, jax.Array]
) -> Softmax:  # fmt: skip
    """The same of the bytes `rest [B, T]` whose token is still to come, with `held` where the row `goes_on [B]`."""
    old = jnp.where(goes_on[:, None], held["peak"], LOW)
    peak = jnp.maximum(jnp.max(jnp.where(rest[..., None], scores, LOW), axis=1), old)
    e = jnp.where(rest[..., None], jnp.exp(jnp.minimum(scores - peak[:, None], 0)), 0)
    before = jnp.where(goes_on[:, None], jnp.exp(old - peak), 0)
    weight = jnp.sum(e, axis=1) + before * held["weight"]
    return Softmax(peak, weight, jnp.einsum("btq,btqh->bqh", e, values) + before[..., None] * held["total"])


def smoothed(tokens: jax.Array, share: jax.Array, first: jax.Array, before: jax.Array) -> jax.Array:
    """z_m = p_m c_m + (1 - p_m) z_{m-1} over tokens, `[B, S, D]`; behind a document's first, z_{m-1} is 0 for it.

    Args:
      tokens: `[B, S, D]` c.
      share: `[B, S]` p, clamped by the caller.
      first: `[B, S]` bool, first tokens of documents.
      before: `[B, D]` z before the first.

    `models.segments.hnet.smooth` is the case of one document.
    """
    keep = jnp.where(first, 0, 1 - share).astype(tokens.dtype)
    made = share[..., None].astype(tokens.dtype) * tokens
    made = made.at[:, 0].add(keep[:, 0, None] * before.astype(tokens.dtype))

    def step(earlier: tuple, later: tuple) -> tuple:
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    return jax.lax.associative_scan(step, (jnp.broadcast_to(keep[..., None], made.shape), made), axis=1)[1]


def read(tokens: jax.Array, marks: jax.Array, before: jax.Array) -> jax.Array:
    """What each byte reads, `[B, T, D]`: the newest of `tokens [B, S, D]`, `before [B, D]` where none is marked yet.

    Bytes whose newest token is beyond S read 0.
    """
    number = jnp.cumsum(marks, axis=1)
    known = jnp.concatenate([before[:, None].astype(tokens.dtype), tokens], axis=1)
    found = at(known, jnp.minimum(number, tokens.shape[1]))
    return jnp.where((number > tokens.shape[1])[..., None], 0, found)
