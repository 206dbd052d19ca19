"""Token Recycling: drafts from a table of each token's latest likeliest successors (Luo et al. 2024, arXiv:2408.08696).

matrix `[V, k]` starts as zeros, so that the first drafts are token 0; it may also start as one that was kept.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.drafts import Seen, Tree, templates
from models.decoding.drafts.none import last_token
from models.decoding.drafts.templated import Templated

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


def refreshed(matrix: Array, token: Array, logits: Array, valid: Array) -> Array:
    """`update` for logits that rules may have cut: what is ruled out takes no place, the old candidates stay there."""
    best, index = jax.lax.top_k(logits, matrix.shape[-1])
    kept = jnp.where(jnp.isfinite(best), index, matrix[token])
    ranks = jnp.arange(matrix.shape[-1])[::-1]
    scores = jnp.zeros(logits.shape, jnp.float32).at[jnp.arange(len(token))[:, None], kept].max(1.0 + ranks)
    return update(matrix, token, scores, valid)


@dataclasses.dataclass(frozen=True)
class Recycling(Templated):
    """Drafter `recycling`: see the module's docstring.

    `template`: the tree (`templates.named`). `shared`: rows that are under way together write into one matrix, which
    the rows that follow them find; else each request has its own. The side is the matrix `[B, V, k]`, and how often it
    was written, `[B]`.
    """

    shared: bool

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Drafter.init`."""
        V, k = models["model"].head_weights().shape[0], int(self.tree.rank.max()) + 1
        return {"matrix": jnp.zeros((batch, V, k), jnp.int32), "age": jnp.zeros((batch,), jnp.int32)}

    def propose(self, models: Mapping[str, Any], p: Any, parts: Any) -> tuple[Tree, Any]:
        """See `Drafter.propose`."""
        side = p.side["recycling"]
        if self.shared:
            eldest = jnp.argmax(side["age"])
            side = jax.tree.map(lambda x: jnp.broadcast_to(x[eldest], x.shape), side)
        tree, root = self.tree, last_token(p.text, p.length)[:, 0]
        token = draft(side["matrix"], root, tree.parent, tree.depth, tree.rank)
        return Tree(token, jnp.asarray(tree.parent)[None], None, jnp.ones(token.shape, bool)), side

    def observe(self, models: Mapping[str, Any], side: Any, seen: Seen) -> Any:
        """See `Drafter.observe`. Every node that was read gives a row, whether it stayed or not."""
        matrix, valid = side["matrix"], seen.position >= 0
        if self.shared:
            one = refreshed(matrix[0], *(x.reshape(-1, *x.shape[2:]) for x in (seen.tree.token, seen.logits, valid)))
            matrix = jnp.broadcast_to(one, matrix.shape)
        else:
            matrix = jax.vmap(refreshed)(matrix, seen.tree.token, seen.logits, valid)
        return {"matrix": matrix, "age": side["age"] + 1}

    def problems(self, config: Any) -> Iterator[str]:
        """See `Drafter.problems`."""
        yield from templates.problems("generate.recycling.template", self.template)


PARTS = {"recycling": Recycling}
