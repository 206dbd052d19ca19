"""Token Recycling: drafts from a table of each token's latest likeliest successors (Luo et al. 2024, arXiv:2408.08696).

matrix `[V, k]` starts as zeros, so that the first drafts are token 0; it may also start as one that was kept.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def draft(matrix: Array, root: Array, parent: np.ndarray, depth: np.ndarray, rank: np.ndarray) -> Array:
    """Tokens `[..., N]` of a template: the root's own, then matrix[token of the parent, rank], level by level.

    root `[...]`; parent, depth, rank `[N]` as of `trees.template`; matrix `[V, k]`, or `[..., V, k]` one for each root.
    """
    root = jnp.asarray(root)
    token = jnp.broadcast_to(root[..., None], (*root.shape, len(parent)))
    flat = jnp.asarray(matrix).reshape(*jnp.shape(matrix)[:-2], -1)
    k = jnp.shape(matrix)[-1]
    for level in range(1, int(depth.max()) + 1):
        nodes = np.flatnonzero(depth == level)
        entry = token[..., parent[nodes]] * k + rank[nodes]
        found = flat[entry] if flat.ndim == 1 else jnp.take_along_axis(flat, entry, axis=-1)
        token = token.at[..., nodes].set(found.astype(token.dtype))
    return token


def update(matrix: Array, token: Array, logits: Array, valid: Array | None = None) -> Array:
    """The matrix with the row of EVERY node's token set to its k likeliest successors: token `[N]`, logits `[N, V]`.

    Of nodes with one token the last one counts (a scatter of equal indices has no order of its own). valid `[N]` leaves
    nodes out.
    """
    V, k = jnp.shape(matrix)
    token = jnp.asarray(token)
    N = len(token)
    valid = jnp.ones(N, bool) if valid is None else valid
    later = jnp.triu((token[:, None] == token[None, :]) & valid[None, :], 1)
    row = jnp.where(valid & ~jnp.any(later, axis=1), token, V)
    best = jax.lax.top_k(logits, k)[1]
    return jnp.asarray(matrix).at[row].set(best.astype(jnp.asarray(matrix).dtype), mode="drop")
