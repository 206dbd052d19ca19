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


def majority(answers: Sequence[Hashable]) -> Hashable:
    """The answer that came most often, of equal ones the first (Wang et al. 2022, self-consistency).

    None does not vote; it is the result if there is no other answer.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=lambda answer: votes[answer]) if votes else None
