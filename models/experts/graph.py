"""Routing by a graph of tokens: probabilities of the experts averaged over similar tokens.

Source: Nguyen et al. 2025, arXiv:2505.00792. p'_i = sum_j S_ij p_j, then the choice by p'. S is a row-stochastic
matrix over the tokens of a row; for causal models S_ij = 0 for j > i. S = I is the router without a graph.
"""

from typing import Any

import jax
import jax.numpy as jnp

from models.experts.routing import Routing, normalised, select, take, wide


def visible(length: int, segment_ids: Any = None, causal: bool = True) -> jax.Array:
    """Which token j a token i may average over, `[T, T]` or `[B, T, T]` bool: its document, itself and before."""
    seen = jnp.tril(jnp.ones((length, length), bool)) if causal else jnp.ones((length, length), bool)
    if segment_ids is None:
        return seen
    ids = jnp.asarray(segment_ids)
    return seen & (ids[..., :, None] == ids[..., None, :])


def similarity(u: Any, seen: Any, temperature: float = 1.0) -> jax.Array:
    """S_ij = softmax over the visible j of u_i . u_j / temperature: u `[..., T, D]`, seen `[..., T, T]`."""
    u = wide(u)
    scores = jnp.einsum("...id,...jd->...ij", u, u, precision=jax.lax.Precision.HIGHEST) / temperature
    return jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)


def attention(weights: Any) -> jax.Array:
    """S = the mean over heads of attention weights `[..., N, T, T]`: `[..., T, T]`."""
    return jnp.mean(wide(weights), axis=-3)


def averaged(graph: Any, probs: Any) -> jax.Array:
    """p'_i = sum_j S_ij p_j: S `[..., T, T]`, p `[..., T, E]`."""
    return jnp.einsum("...ij,...je->...ie", wide(graph), wide(probs), precision=jax.lax.Precision.HIGHEST)


def graph_of_tokens(logits: Any, graph: Any, k: int, *, renormalise: bool = True) -> Routing:
    """p = softmax(z), p' = S p, the k largest p', g = p' (over their sum).

    Args:
      logits: `[..., T, E]`.
      graph: S `[..., T, T]`.
      k: chosen experts.
      renormalise: False leaves g = p'.

    Returns:
      The routing; `probs` is p'.
    """
    z = wide(logits)
    p = averaged(graph, jax.nn.softmax(z, axis=-1))
    index = select(p, k)
    gate = take(p, index)
    return Routing(z, p, index, normalised(gate) if renormalise else gate)
