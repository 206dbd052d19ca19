"""H-Net's dynamic chunking: routing, chunks, smoothing and the ratio loss (Hwang et al. 2025, arXiv:2507.07955)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Routing(NamedTuple):
    """Where chunks begin."""

    probability: jax.Array  # [B, T] p
    boundary: jax.Array  # [B, T] bool, p >= 0.5
    chosen: jax.Array  # [B, T] probability of the choice, max(p, 1 - p)


def routing(hidden: jax.Array, query: jax.Array, key: jax.Array, first: jax.Array | None = None) -> Routing:
    """p_t = (1 - cos(W_q x_{t-1}, W_k x_t)) / 2; a document's first byte has p = 1.

    Args:
      hidden: `[B, T, D]`.
      query, key: `[D, D]` as x @ W; both the identity at first.
      first: `[B, T]` bool, first bytes of documents; None: the first of each row.

    A boundary is p > 0.5, as the released argmax of (1 - p, p) takes an even pair to be none.
    """
    q, k = _unit(hidden[:, :-1] @ query), _unit(hidden[:, 1:] @ key)
    p = jnp.clip((1 - jnp.sum(q * k, axis=-1)) / 2, 0.0, 1.0)
    p = jnp.concatenate([jnp.ones_like(p[:, :1]), p], axis=1)
    p = p if first is None else jnp.where(first, 1.0, p)
    return Routing(p, p > 0.5, jnp.maximum(p, 1 - p))


def _unit(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    # The maximum stands under the root, which has no gradient at 0.
    return x / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), eps**2))


def chunk(hidden: jax.Array, boundary: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """(the vectors at boundaries, packed to the left `[B, M, D]`; which of the M = `length` are chunks `[B, M]`)."""
    order = jnp.argsort(~boundary, axis=1, stable=True)[:, :length]
    valid = jnp.arange(length) < jnp.sum(boundary, axis=1, keepdims=True)
    return jnp.take_along_axis(hidden, order[..., None], axis=1), valid


def smooth(chunks: jax.Array, probability: jax.Array) -> jax.Array:
    """z_m = P_m c_m + (1 - P_m) z_{m-1}, z_{-1} = 0: an exponential moving average over chunks, `[B, M, D]`.

    Args:
      chunks: `[B, M, D]`.
      probability: `[B, M]` of their boundaries. The released code clamps them to 1e-4..1 - 1e-4, also the first.
    """

    def step(earlier: tuple, later: tuple) -> tuple:
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    keep = 1 - probability[..., None]
    _, made = jax.lax.associative_scan(
        step, (jnp.broadcast_to(keep, chunks.shape), probability[..., None] * chunks), axis=1
    )
    return made


def dechunk(chunks: jax.Array, routed: Routing, clamp: float = 1e-4) -> jax.Array:
    """Each byte reads the smoothed chunk that it is in, `[B, T, D]`; chunks `[B, M, D]`."""
    p = jnp.clip(routed.probability, clamp, 1 - clamp)
    of_chunks, valid = chunk(p[..., None], routed.boundary, chunks.shape[1])
    smoothed = smooth(chunks, jnp.where(valid, of_chunks[..., 0], 1.0))
    index = jnp.cumsum(routed.boundary, axis=1) - 1
    return jnp.take_along_axis(smoothed, index[..., None], axis=1)


def confident(upsampled: jax.Array, chosen: jax.Array) -> jax.Array:
    """upsampled * c with c = 1 forward and the gradient of `chosen [B, T]` backward, `[B, T, D]`."""
    return upsampled * (chosen + jax.lax.stop_gradient(1 - chosen))[..., None]


def ratio_loss(routed: Routing, ratio: float, mask: jax.Array | None = None) -> jax.Array:
    """N / (N - 1) * ((N - 1) F G + (1 - F)(1 - G)), N = `ratio` bytes a chunk; 1 where F = G = 1 / N.

    F is the share of boundaries (without a gradient), G the mean of p, over the bytes of `mask [B, T]`.
    """
    weight = jnp.ones(routed.probability.shape) if mask is None else mask.astype(routed.probability.dtype)
    total = jnp.sum(weight)
    F = jax.lax.stop_gradient(jnp.sum(routed.boundary * weight) / total)
    G = jnp.sum(routed.probability * weight) / total
    return ratio / (ratio - 1) * ((ratio - 1) * F * G + (1 - F) * (1 - G))
