"""Rules that leave out unlikely tokens, beside those of `models.decoding.sampling`: typical, top-n-sigma, mirostat.

Logits are `[..., V]`; a value is a number or one a row, `[...]`. Tokens that are ruled out already have -inf.
"""

from typing import Any

import jax
import jax.numpy as jnp

from models.decoding.sampling import by_row

Array = jax.Array


def typical(logits: Array, mass: Any) -> Array:
    """Keeps the tokens whose surprise is nearest to the entropy, as many as reach `mass` (Meister et al. 2022).

    Sorted by |-log p - H|, those up to and with the first at which the probability reaches the mass, and what is as
    near as that one, as in transformers; 1 keeps all.
    """
    logits = jnp.asarray(logits)
    mass = by_row(mass, logits)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    entropy = -jnp.sum(jnp.where(p > 0, p * log_p, 0), axis=-1, keepdims=True)
    far = jnp.abs(-log_p - entropy)
    order = jnp.argsort(far, axis=-1)
    reached = jnp.cumsum(jnp.take_along_axis(p, order, axis=-1), axis=-1)
    last = jnp.minimum(jnp.sum(reached < mass, axis=-1, keepdims=True), logits.shape[-1] - 1)
    bar = jnp.take_along_axis(jnp.take_along_axis(far, order, axis=-1), last, axis=-1)
    return jnp.where((far > bar) & (mass < 1), -jnp.inf, logits)


def top_n_sigma(logits: Array, n: Any) -> Array:
    """Keeps logits at least max - n sigma (Tang et al. 2024, arXiv:2411.07641); 0 keeps all.

    sigma is the deviation of the finite logits, divided by their number, as in llama.cpp.
    """
    logits = jnp.asarray(logits)
    n = by_row(n, logits)
    there = jnp.isfinite(logits)
    many = jnp.sum(there, axis=-1, keepdims=True)
    finite = jnp.where(there, logits, 0)
    mean = jnp.sum(finite, axis=-1, keepdims=True) / many
    sigma = jnp.sqrt(jnp.sum(jnp.where(there, (finite - mean) ** 2, 0), axis=-1, keepdims=True) / many)
    least = jnp.max(logits, axis=-1, keepdims=True) - n * sigma
    return jnp.where((logits < least) & (n > 0), -jnp.inf, logits)


def mirostat(logits: Array, mu: Array) -> Array:
    """Mirostat 2: keeps tokens whose surprise -log2 p is at most mu, at least the likeliest: `[..., V]`, mu `[...]`.

    (Basu et al. 2021, arXiv:2007.14966; as in llama.cpp.) mu starts at 2 tau.
    """
    logits = jnp.asarray(logits)
    surprise = -jax.nn.log_softmax(logits, axis=-1) / jnp.log(2.0)
    likeliest = jnp.arange(logits.shape[-1]) == jnp.argmax(logits, axis=-1)[..., None]
    return jnp.where((surprise <= by_row(mu, logits)) | likeliest, logits, -jnp.inf)


def mirostat_v1(logits: Array, mu: Array, m: int = 100) -> Array:
    """Mirostat 1: keeps the k likeliest, with k from a Zipf exponent s that is fitted to the m likeliest: mu `[...]`.

    s = sum t_i b_i / sum t_i^2 with t_i = log((i + 2) / (i + 1)), b_i = log(p_i / p_(i+1)); with e = s - 1,
    k = (e 2^mu / (1 - V^-e))^(1/s), cut to a whole number, at least 1.
    """
    logits = jnp.asarray(logits)
    V = logits.shape[-1]
    log_p = jnp.sort(jax.nn.log_softmax(logits, axis=-1), axis=-1, descending=True)
    many = min(m, V) - 1
    i = jnp.arange(many, dtype=logits.dtype)
    t, b = jnp.log((i + 2) / (i + 1)), log_p[..., :many] - log_p[..., 1 : many + 1]
    s = jnp.sum(t * b, axis=-1) / jnp.sum(t * t)
    e = s - 1
    k = jnp.maximum(((e * 2 ** jnp.asarray(mu)) / (1 - float(V) ** -e)) ** (1 / s), 1).astype(jnp.int32)
    rank = jnp.argsort(jnp.argsort(-logits, axis=-1), axis=-1)
    return jnp.where(rank < k[..., None], logits, -jnp.inf)


def mirostat_mu(mu: Array, probability: Array, tau: Any, rate: Any) -> Array:
    """mu - rate (-log2 p - tau): `[...]`; p is the drawn token's probability among those that were kept."""
    return mu - rate * (-jnp.log2(probability) - tau)
