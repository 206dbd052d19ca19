"""HAMburger: several tokens in one step of the model (Liu et al. 2025, arXiv:2505.20438). Plain functions of arrays.

`models/hamburger.py` is the model of them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.products import by_rows

Linear = tuple[jax.Array, jax.Array]  # (kernel [in, out], bias [out])


def merge(
    embedded: jax.Array,
    position: jax.Array,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: int,
    count: jax.Array | None = None,
) -> jax.Array:
    """One vector of up to S tokens, `[..., D]`: mean + out(attention of the mean over the tokens); one token stays as
    it is.

    Args:
      embedded: `[..., s, D]`, s <= S tokens.
      position: `[S, D / 2]` learned vector of each place; joined to the tokens for keys and values.
      query: of the mean, `[D, D]`. key, value: `[D + D / 2, D]`. out: `[D, D]`.
      heads: N; logits are divided by sqrt(D / N).
      count: `[...]` how many of the s tokens there are, from the front, at least 1; None: all.
    """
    s, D = embedded.shape[-2:]
    number = jnp.full(embedded.shape[:-2], s) if count is None else count
    there = jnp.arange(s) < number[..., None]
    rows = lambda x, linear: by_rows(lambda x: x @ linear[0], x) + linear[1]  # noqa: E731
    flat = embedded.reshape(-1, s, D)
    present = there.reshape(-1, s)
    mean = jnp.sum(jnp.where(present[..., None], flat, 0), axis=1) / number.reshape(-1, 1).astype(flat.dtype)
    placed = jnp.concatenate([flat, jnp.broadcast_to(position[:s], (len(flat), s, D // 2))], axis=-1)
    split = lambda x: x.reshape(*x.shape[:-1], heads, D // heads)  # noqa: E731
    q, k, v = split(rows(mean, query)), split(rows(placed, key)), split(rows(placed, value))
    scores = jnp.einsum("gnh,gsnh->gns", q, k) / math.sqrt(D // heads)
    weights = jax.nn.softmax(jnp.where(present[:, None], scores, -jnp.inf), axis=-1)
    joined = jnp.einsum("gns,gsnh->gnh", weights, v).reshape(-1, D)
    made = (mean + rows(joined, out)).reshape(*embedded.shape[:-2], D)
    return jnp.where((number == 1)[..., None], embedded[..., 0, :], made)


class Groups(NamedTuple):
    """Where the steps of rows are, after each token."""

    ends: jax.Array  # [B, T] bool, tokens that end their group: a step of the model is made of it
    size: jax.Array  # [B, T] tokens of the group up to each, itself included
    number: jax.Array  # [B, T] groups of the document that have ended


def groups(
    wants: jax.Array, first: jax.Array, live: jax.Array, place: jax.Array, most: int, least: int, before: Groups
) -> Groups:
    """Groups of at most `most` tokens; a document's first token is one by itself.

    A token ends its group where it `wants` to, or where it is the last that fits, and nowhere else; but of a document's
    tokens up to place p at most 1 + floor(p / least) do.

    Args:
      wants: `[B, T]` bool.
      first, live: `[B, T]` bool; see `cuts.limited`.
      place: `[B, T]` of a token in its document.
      most: of one group, at least `least`.
      least: tokens a group at least, on average over every beginning of a document; 1: no limit.
      before: entries `[B]` of the group and the document that the rows go on with: tokens of a group that has not
        ended (`size`), and `number`.
    """

    def step(carry: tuple, token: tuple) -> tuple[tuple, tuple]:
        (size, number), (want, first, live, place) = carry, token
        longer, counted = jnp.where(first, 1, size + 1), jnp.where(first, 0, number)
        ends = live & (first | (want | (longer >= most)) & (counted < 1 + place // least))
        size = jnp.where(live, jnp.where(ends, 0, longer), size)
        number = jnp.where(live, counted + ends, number)
        return (size, number), (ends, longer, number)

    rows = tuple(x.T for x in (wants, first, live, place.astype(jnp.int32)))
    _, found = jax.lax.scan(step, (before.size, before.number), rows, unroll=16)
    return Groups(*(x.T for x in found))


def largest_entropy(confidence: float, vocab_size: int) -> float:
    """Entropy in nats of one token with `confidence` and the rest spread evenly over the V - 1 others.

    -(p log p + (1 - p) log((1 - p) / (V - 1))); 0 at p = 1 (HAMburger's thresholds: 0.7 and 0.95).
    """
    if not 0 < confidence <= 1 or vocab_size < 2:
        raise ValueError(f"confidence={confidence!r} must be in 0..1 and vocab_size at least 2; use 0.7 and 128256.")
    p = confidence
    return 0.0 if p == 1 else -(p * math.log(p) + (1 - p) * math.log((1 - p) / (vocab_size - 1)))


def positions(instruction: int, groups: Sequence[int]) -> np.ndarray:
    """Positions of the steps: 0..n - 1 for an instruction, then the last position plus the size of each group."""
    return np.concatenate([np.arange(instruction), instruction - 1 + np.cumsum(groups)]).astype(int)


def stop_targets(groups: Sequence[int]) -> np.ndarray:
    """1 at the last token of each group, else 0, `[sum(groups)]`: when the small decoder is to stop."""
    targets = np.zeros(int(np.sum(groups)), int)
    targets[np.cumsum(groups) - 1] = 1
    return targets


def emitted(stop: Sequence[float], most: int = 4, confidence: float | None = 0.9) -> int:
    """Tokens of one step: it ends behind the first whose 1 - stop is below `confidence` (None: stop > 0.5), or at most.

    Args:
      stop: probability of stopping after each token, in order.
    """
    for count, p in enumerate(stop[:most], start=1):
        if (1 - p < confidence) if confidence is not None else p > 0.5:
            return count
    return min(most, len(stop))
