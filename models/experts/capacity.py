"""Capacity: how many tokens an expert takes, and which of those that chose it. Tokens beyond it are dropped.

A dropped choice has no output; the gates of the others stay as they are.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from models.experts.routing import wide


def switch(tokens: int, experts: int, k: int, factor: float) -> int:
    """int(factor K T / E) (Switch, GShard; and MegaBlocks for the tokens of all its ranks)."""
    return int(factor * k * tokens / experts)


def megablocks(tokens: int, experts: int, k: int, factor: float, ranks: int = 1) -> int:
    """int(factor K T W / E), T tokens on each of W ranks."""
    return int(factor * k * tokens * ranks / experts)


def megatron(tokens: int, experts: int, k: int, factor: float) -> int:
    """ceil(K T / E factor)."""
    return math.ceil(tokens * k / experts * factor)


def tutel(tokens: int, experts: int, k: int, factor: float, most: int = 0, multiple: int = 1) -> int:
    """K int(factor ceil(T / E)), then rounded up to a multiple (the degree of pipelining).

    factor 0 takes `most`, the largest number of tokens that an expert was chosen by (nothing is dropped); a negative
    factor takes the smaller of `most` and the capacity of its size.
    """
    each = -(-tokens // experts)
    if factor > 0:
        found = k * int(factor * each)
    else:
        found = most if factor == 0 else min(most, k * int(-factor * each))
    return -(-found // multiple) * multiple


def maxtext(length: int, experts: int, k: int, factor: float) -> int:
    """max(ceil(K S / E) factor, factor) as a whole number, for each row of S tokens by itself."""
    return int(max(math.ceil(k * length / experts) * factor, factor))


def moepp(tokens: int, kinds: tuple[int, int], factor: float = 1.1, tau: float = 0.75) -> tuple[float, float]:
    """MoE++'s capacities of an FFN expert and of one without cost: gamma tau T / (tau N_F + N_Z), gamma T / (...).

    `tokens`: T as the paper prints it; with K = 2 there are 2 T choices, so hand in K T to drop as few as gamma says.
    `kinds`: (N_F, N_Z). Source: Jin et al. 2024, arXiv:2410.07348, equation 9.
    """
    total = tau * kinds[0] + kinds[1]
    return factor * tau * tokens / total, factor * tokens / total


RULES = {"switch": switch, "megatron": megatron, "tutel": tutel, "maxtext": maxtext}


def _places(index: jax.Array, order: jax.Array) -> jax.Array:
    """The place of each choice in its expert's queue when choices come in `order` (flat, first to last): `[T, K]`."""
    flat = index.reshape(-1)
    # Stable by expert, so that choices of one expert keep their order; unused ones go to the end.
    queue = order[jnp.argsort(jnp.where(flat[order] < 0, jnp.iinfo(flat.dtype).max, flat[order]), stable=True)]
    sorted_index = flat[queue]
    first = jnp.searchsorted(jnp.where(sorted_index < 0, jnp.iinfo(flat.dtype).max, sorted_index), sorted_index)
    place = jnp.zeros(len(flat), jnp.int32).at[queue].set((jnp.arange(len(flat)) - first).astype(jnp.int32))
    return jnp.where(flat < 0, -1, place).reshape(index.shape)


def fifo(index: Any, gate: Any = None) -> jax.Array:
    """All first choices by token, then all second ones (GShard, flaxformer, Tutel). `index [T, K] -> places [T, K]`.

    A place counts from 0; -1 where the index is -1. A later token's first choice comes before an earlier one's second:
    not causal.
    """
    index = jnp.asarray(index)
    T, K = index.shape
    return _places(index, jnp.arange(T * K).reshape(T, K).T.reshape(-1))


def token_major(index: Any, gate: Any = None) -> jax.Array:
    """Token by token, the choices of each by rank (maxtext). Causal: no token takes an earlier one's place."""
    index = jnp.asarray(index)
    return _places(index, jnp.arange(index.size))


def probability(index: Any, gate: Any) -> jax.Array:
    """The largest gate of an expert first (Megatron's "probs"); of equal ones the earlier token. Not causal."""
    index, gate = jnp.asarray(index), wide(gate)
    return _places(index, jnp.argsort(-gate.reshape(-1), stable=True))


def batch_prioritised(index: Any, gate: Any) -> jax.Array:
    """Tokens by their best gate, all first choices, then all second ones (V-MoE, Riquelme et al. 2021). Not causal."""
    index, gate = jnp.asarray(index), wide(gate)
    T, K = index.shape
    rank = jnp.argsort(-jnp.max(gate, axis=-1), stable=True)
    return _places(index, (rank[None, :] * K + jnp.arange(K)[:, None]).reshape(-1))


ORDERS = {
    "fifo": fifo,
    "token": token_major,
    "probability": probability,
    "batch_prioritised": batch_prioritised,
}


def keep(index: Any, places: Any, capacity: Any) -> jax.Array:
    """`index [T, K]` with -1 where a choice's place is not below the capacity (a number, or one an expert `[E]`)."""
    index, places = jnp.asarray(index), jnp.asarray(places)
    limit = jnp.asarray(capacity)
    limit = limit[jnp.maximum(index, 0)] if limit.ndim else limit
    return jnp.where(places < limit, index, -1)


def dropped(before: Any, after: Any) -> jax.Array:
    """How many choices were dropped between two indices `[T, K]`."""
    return jnp.sum((jnp.asarray(before) >= 0) & (jnp.asarray(after) < 0))


def priority_scores(logits: Any) -> jax.Array:
    """A token's priority, its best p: max of softmax(z), `[..., E] -> [...]` (batch-prioritised routing)."""
    return jnp.max(jax.nn.softmax(wide(logits), axis=-1), axis=-1)
