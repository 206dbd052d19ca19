"""Superposed Decoding: k texts in one stream of the model (Shen et al. 2024, arXiv:2405.18400).

The model reads the mean of the embeddings of the texts' last tokens, weighed by the texts' probabilities; each text's
next tokens are weighed by an n-gram model of its own; the k best of all continuations stay.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
FINISHED = 1e7  # What the released code takes off the score of a text that ended.


class Superposed(NamedTuple):
    """parent, token, log_p `[k]`: the text that each of the k best goes on from, with which token, and their scores."""

    parent: Array
    token: Array
    log_p: Array


def keep_top(p: Array, n: int) -> Array:
    """The n largest probabilities, normalised, zeros elsewhere; of equal ones the first: `[..., V]`."""
    p = jnp.asarray(p)
    rank = jnp.argsort(jnp.argsort(-p, axis=-1, stable=True), axis=-1)
    kept = jnp.where(rank < n, p, 0)
    return kept / jnp.sum(kept, axis=-1, keepdims=True)


def ngram_law(
    tables: Sequence[Mapping[tuple[int, ...], Mapping[int, float]]],
    weights: Sequence[float],
    text: Sequence[int],
    V: int,
) -> np.ndarray:
    """sum_i weights[i] count(token after the last i + 1 tokens) / total, `[V]`: tables[i] maps i + 1 tokens to counts.

    A table that lacks the tokens, or a text too short for it, adds nothing: the sum is then below 1, as in the code.
    """
    law = np.zeros(V)
    for i, (table, weight) in enumerate(zip(tables, weights, strict=True)):
        found = table.get(tuple(text[len(text) - i - 1 :])) if len(text) > i else None
        if found:
            total = sum(found.values())
            for token, count in found.items():
                law[token] += weight * count / total
    return law


def text_law(reference: Array, many: Array | int, text: Array, length: Array | int, weights: Array, V: int) -> Array:
    """`ngram_law` of the n-grams of a text, `[V]`, in one pass over it and nothing but arrays.

    Args:
      reference: `[M]` tokens, of which the first `many` count.
      text: `[R]`, of which the first `length` are the draft.
      weights: `[N]`; weights[i] is of the law of the token behind the last i + 1 tokens.
      V: ids.
    """
    reference, M = jnp.asarray(reference), len(reference)
    law, at = jnp.zeros(V, jnp.result_type(float)), jnp.arange(M)
    agrees = at < many
    for i in range(len(weights)):
        mine = jnp.asarray(text)[jnp.maximum(length - 1 - i, 0)]
        before = jnp.where(at > i, jnp.roll(reference, i + 1), -1)
        agrees = agrees & (before == mine) & (length > i)
        count = jnp.zeros(V, law.dtype).at[reference].add(agrees.astype(law.dtype))
        law = law + weights[i] * count / jnp.maximum(jnp.sum(count), 1)
    return law


def mixed(p: Array, ngram: Array, alpha: float, penalty: float = 200.0) -> Array:
    """(1 - alpha) log p + alpha log p_ngram for each text, `[k, V]`: p `[V]` (`keep_top`), ngram `[k, V]`.

    -inf where either is 0; a text all of whose tokens are gets (1 - alpha) log p - penalty. alpha = 0: log p, where the
    released code, which multiplies 0 by -inf, has nan.
    """
    p, ngram = jnp.asarray(p), jnp.asarray(ngram)
    log_p = jnp.broadcast_to(jnp.log(p), ngram.shape)
    if alpha == 0:
        return log_p
    both = (p > 0) & (ngram > 0)
    part = jnp.where(p > 0, (1 - alpha) * jnp.log(jnp.where(p > 0, p, 1)), -jnp.inf)
    each = jnp.where(both, part + alpha * jnp.log(jnp.where(ngram > 0, ngram, 1)), -jnp.inf)
    return jnp.where(jnp.any(both, axis=-1, keepdims=True), each, part - penalty)


def step(score: Array, log_p: Array, *, first: bool, eos: int | None = None) -> Superposed:
    """The k best of k V continuations: score `[k]` of the texts, log_p `[k, V]`.

    At the first step all texts are one, and its k best tokens are taken. Of the 2 k best continuations those that end
    (`eos`) come behind all that do not.
    """
    score, log_p = jnp.asarray(score), jnp.asarray(log_p)
    k, V = log_p.shape
    total = score[:1, None] + log_p[:1] if first else score[:, None] + log_p
    many = min(2 * k, total.size)
    best, index = jax.lax.top_k(total.reshape(-1), many)
    if eos is not None:
        best = jnp.where(index % V == eos, best - FINISHED, best)
    best, order = jax.lax.top_k(best, k)
    return Superposed(index[order] // V, index[order] % V, best)


def superposition(log_p: Array, token: Array, V: int) -> Array:
    """Weights `[V]` of the embeddings that are read: softmax(log_p `[k]`), added up by the texts' last token `[k]`."""
    weight = jax.nn.softmax(jnp.asarray(log_p))
    return jnp.zeros(V, weight.dtype).at[jnp.asarray(token)].add(weight)


def perplexity(log_p: Array, tokens: int) -> Array:
    """exp(-log_p / tokens) of texts that gained so many tokens: `[k]`."""
    return jnp.exp(-jnp.asarray(log_p) / tokens)
