"""Many texts of one prompt: beam search, best of n, majority vote."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Beams(NamedTuple):
    """parent, token, score `[..., K]`: the K best continuations, best first."""

    parent: Array
    token: Array
    score: Array


def beam_step(score: Array, log_p: Array, done: Array, eos: int, beams: int) -> Beams:
    """The `beams` best of all continuations, score + log_p: score, done `[..., K]`, log_p `[..., K, V]`.

    A text that is done goes on with `eos` at no cost. Of equal scores the first.
    """
    log_p = jnp.asarray(log_p)
    V = log_p.shape[-1]
    stay = jnp.where(jnp.arange(V) == eos, 0.0, -jnp.inf).astype(log_p.dtype)
    total = jnp.asarray(score)[..., None] + jnp.where(jnp.asarray(done)[..., None], stay, log_p)
    best, index = jax.lax.top_k(total.reshape(*total.shape[:-2], -1), beams)
    return Beams(index // V, index % V, best)


def length_penalised(score: Array, length: Array, alpha: float) -> Array:
    """score / length^alpha, as transformers rank finished beams: alpha = 0 is the score, 1 the mean. `[...]`."""
    return score / jnp.asarray(length, jnp.result_type(score)) ** alpha


def best_of(score: Array, length: Array) -> Array:
    """Best of n: the text of the largest mean log-probability: score (a sum), length `[..., n]` -> `[...]`."""
    return jnp.argmax(length_penalised(score, length, 1.0), axis=-1)


def answer_start(tokens: Array, start: Array, end: Array, mark: Array) -> Array:
    """Where the answer of each text begins: behind the last `mark` among tokens start <= i < end; -1: there is none.

    Args:
      tokens: `[..., T]`.
      start, end: `[...]`.
      mark: `[K]` tokens, e.g. those of "Answer:"; none: the answer is all of it.
    """
    tokens, mark = jnp.asarray(tokens), jnp.asarray(mark)
    T, K = tokens.shape[-1], len(mark)
    if K == 0:
        return jnp.asarray(start)
    padded = jnp.concatenate([tokens, jnp.full((*tokens.shape[:-1], K), -1, tokens.dtype)], axis=-1)
    here = jnp.stack([padded[..., i : i + T] == mark[i] for i in range(K)]).all(axis=0)
    at = jnp.arange(T)
    inside = here & (at >= jnp.asarray(start)[..., None]) & (at + K <= jnp.asarray(end)[..., None])
    return jnp.max(jnp.where(inside, at + K, -1), axis=-1)


def votes(tokens: Array, begin: Array, end: Array) -> Array:
    """How many of n texts have each one's answer, tokens begin <= i < end, `[..., n]`.

    tokens `[..., n, T]`, ids from 0; begin, end `[..., n]`.

    A text with begin = -1 has no answer: it has no votes.
    """
    tokens, begin, end = jnp.asarray(tokens), jnp.asarray(begin), jnp.asarray(end)
    T, voted, length = tokens.shape[-1], begin >= 0, end - begin
    index = jnp.clip(begin[..., None] + jnp.arange(T), 0, T - 1)
    answer = jnp.where(jnp.arange(T) < length[..., None], jnp.take_along_axis(tokens, index, axis=-1), -1)
    same = (answer[..., :, None, :] == answer[..., None, :, :]).all(axis=-1)
    return jnp.sum(same & voted[..., :, None] & voted[..., None, :], axis=-1)


def majority(answers: Sequence[Hashable]) -> Hashable:
    """The answer that came most often, of equal ones the first (Wang et al. 2022, self-consistency).

    None does not vote; it is the result if there is no other answer.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=lambda answer: votes[answer]) if votes else None
