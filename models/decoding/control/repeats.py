"""What a text would write again: no-repeat n-grams (as in transformers) and DRY (as in text-generation-webui).

A text is tokens `[..., T]` of which the first `length` `[...]` count; what lies behind them is not read.
"""

from typing import Any

import jax
import jax.numpy as jnp

from models.decoding.sampling import by_row

Array = jax.Array


def repeats_ngram(tokens: Array, length: Array | int, n: int, size: int) -> Array:
    """Ids that would write an n-gram of the text a second time, `[..., size]` bool: tokens `[..., T]`; n = 0: none.

    With n = 1 all ids that came.
    """
    tokens = jnp.asarray(tokens)
    T = tokens.shape[-1]
    length = jnp.broadcast_to(jnp.asarray(length), tokens.shape[:-1])
    if n == 0 or n > T:
        return jnp.zeros((*tokens.shape[:-1], size), bool)
    start = jnp.arange(T - n + 1)
    same = start + n <= length[..., None]
    for i in range(n - 1):
        last = jnp.take_along_axis(tokens, jnp.maximum(length - (n - 1) + i, 0)[..., None], axis=-1)
        same = same & (tokens[..., start + i] == last)
    found = marked(jnp.where(same, tokens[..., start + n - 1], size), size)
    return found & (length >= n - 1)[..., None]


def no_repeat_ngram(logits: Array, tokens: Array, length: Array | int, n: int) -> Array:
    """-inf for the ids that `repeats_ngram` finds: logits `[..., V]`."""
    return jnp.where(repeats_ngram(tokens, length, n, logits.shape[-1]), -jnp.inf, logits)


def marked(ids: Array, size: int) -> Array:
    """Which ids of 0..size - 1 are among `ids [..., K]`: `[..., size]` bool; others are passed over."""

    def one(ids: Array) -> Array:
        return jnp.zeros(size, bool).at[ids].set(True, mode="drop")

    return jax.vmap(one)(ids.reshape(-1, ids.shape[-1])).reshape(*ids.shape[:-1], size)


def longest_matches(tokens: Array, length: Array | int, size: int, breaks: Array | None = None) -> Array:
    """By id, how many tokens of the text's end it would repeat with it behind them, `[..., size]`: tokens `[..., T]`.

    For every earlier place of the last token: how far the text before it equals the text's end, up to a breaker (breaks
    `[size]` bool); the id behind that place gets the longest. 0 where the last token, or the id, is a breaker.
    """
    tokens = jnp.asarray(tokens)
    T = tokens.shape[-1]
    length = jnp.broadcast_to(jnp.asarray(length), tokens.shape[:-1])
    breaks = jnp.zeros(size, bool) if breaks is None else jnp.asarray(breaks)
    place = jnp.arange(T)

    def further(carry: tuple) -> tuple:
        j, going, match = carry
        last = jnp.take_along_axis(tokens, jnp.maximum(length - 1 - j, 0)[..., None], axis=-1)
        here = jnp.take(tokens, jnp.maximum(place - j, 0), axis=-1)
        going = going & (place >= j) & (here == last) & ~breaks[last] & (length > j)[..., None]
        return j + 1, going, match + going

    start = (jnp.int32(0), jnp.broadcast_to(place < (length - 1)[..., None], tokens.shape), jnp.zeros_like(tokens))
    match = jax.lax.while_loop(lambda carry: jnp.any(carry[1]), further, start)[2]
    follows = jnp.take(tokens, jnp.minimum(place + 1, T - 1), axis=-1)

    def one(follows: Array, match: Array) -> Array:
        return jnp.zeros(size, match.dtype).at[follows].max(match, mode="drop")

    flat = (follows.reshape(-1, T), match.reshape(-1, T))
    return jax.vmap(one)(*flat).reshape(*tokens.shape[:-1], size) * ~breaks


def dry(logits: Array, match: Array, multiplier: Any, base: Any = 1.75, allowed: Any = 2) -> Array:
    """Don't repeat yourself: logits - multiplier base^(match - allowed) where match >= allowed: `[..., V]` each.

    match is from `longest_matches`; multiplier 0 changes nothing. As in text-generation-webui; breakers are single ids.
    """
    logits = jnp.asarray(logits)
    multiplier, base, allowed = (by_row(value, logits) for value in (multiplier, base, allowed))
    taken = multiplier * jnp.power(base, (match - allowed).astype(logits.dtype))
    return jnp.where((match >= allowed) & (multiplier != 0), logits - taken.astype(logits.dtype), logits)
