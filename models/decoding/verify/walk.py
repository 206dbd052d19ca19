"""The walk along a tree of drafts: from the root into the child that stays, until none does.

Node 0 is the last token of the text; parent[i] < i, -1 for the root. A chain is the tree of parents i - 1. Random
numbers come as arrays, one per depth, so that a token depends on its position and not on the shape of the tree.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.decoding.verify.siblings import Rule

Array = jax.Array


class Walk(NamedTuple):
    """path `[D]`: drafts that stay, in order, -1 behind them; count: how many; token: what follows them."""

    path: Array
    count: Array
    token: Array


def chain(drafts: int) -> Array:
    """Parents `[drafts + 1]` of a root and `drafts` nodes in a row."""
    return jnp.arange(drafts + 1) - 1


def children_of(parent: Array, valid: Array | None = None, width: int | None = None) -> Array:
    """Children of every node in order of their index, `[N, width]`, -1 behind them: parent `[N]`, valid `[N]`.

    width: the most children that a node has; N - 1 by default. Nodes that are not valid are nobody's children.
    """
    parent = jnp.asarray(parent)
    N = len(parent)
    width = N - 1 if width is None else width
    there = (parent >= 0) if valid is None else (parent >= 0) & valid
    same = there[:, None] & there[None, :] & (parent[:, None] == parent[None, :])
    rank = jnp.sum(jnp.tril(same, -1), axis=1)
    table = jnp.full((N, width), -1, parent.dtype)
    row = jnp.where(there, parent, N)
    return table.at[row, rank].set(jnp.arange(N, dtype=parent.dtype), mode="drop")


def along(
    rule: Rule, p: Array, token: Array, table: Array, q: Array | None, uniform: Array
) -> tuple[Array, Array, Array]:
    """One row: goes along the tree by `rule`; (path `[D]`, count, the law `[V]` of the token that follows).

    Arguments and `path` as of `walk`. The law is p behind a leaf, and what the rule leaves where no child stays.
    """
    D = len(uniform)
    laws = jnp.zeros_like(p) if q is None else q

    def step(state: tuple, depth: Array) -> tuple[tuple, Array]:
        node, going, count, law = state
        nodes = table[node]
        valid = (nodes >= 0) & (depth < D)
        at = jnp.maximum(nodes, 0)
        found = rule(p[node], laws[at], token[at], valid)
        stays = valid & (uniform[jnp.minimum(depth, D - 1)] < found.accept)
        first, some = jnp.argmax(stays), jnp.any(stays)
        law = jnp.where(going & ~some, found.rest, law)
        node = jnp.where(going & some, at[first], node)
        return (node, going & some, count + (going & some), law), jnp.where(going & some, node, -1)

    start = (jnp.zeros((), table.dtype), jnp.ones((), bool), jnp.zeros((), jnp.int32), jnp.zeros_like(p[0]))
    (_, _, count, law), path = jax.lax.scan(step, start, jnp.arange(D + 1))
    return path[:D], count, law


def drawn(law: Array, noise: Array) -> Array:
    """The token of law `[V]` that maximises log(law) + noise `[V]`, standard Gumbel numbers; what has no mass never."""
    return jnp.argmax(jnp.where(law > 0, jnp.log(jnp.where(law > 0, law, 1)), -jnp.inf) + noise).astype(jnp.int32)


def walk(
    rule: Rule,
    p: Array,
    token: Array,
    table: Array,
    q: Array | None,
    uniform: Array,
    noise: Array,
) -> Walk:
    """One row: goes along the tree by `rule` (one of `siblings.RULES`) and draws the token that follows.

    Args:
      p: `[N, V]`, the target's law of the token after each node.
      token: `[N]`, the node's token.
      table: `[N, K]`, the children of each node (`children_of`).
      q: `[N, V]`, the law that each node was drawn from; None for rules that do not read it.
      uniform: `[D, K]` numbers of [0, 1): draft i of depth d stays iff uniform[d, i] is below its chance.
      noise: `[D + 1, V]`, standard Gumbel noise: the token at depth d maximises log(law) + noise[d].
    """
    path, count, law = along(rule, p, token, table, q, uniform)
    return Walk(path, count, drawn(law, noise[count]))


def longest_greedy_path(best: Array, token: Array, table: Array) -> Walk:
    """The path of drafts that are the target's likeliest tokens, and the token after it: best, token `[N]`, table
    `[N, K]`.

    best[i] is the likeliest token after node i. The path is unique, because the children of a node differ; of equal
    children the first is taken.
    """
    N = len(token)

    def step(state: tuple, _) -> tuple[tuple, Array]:
        node, going, count = state
        nodes = table[node]
        good = (nodes >= 0) & (token[jnp.maximum(nodes, 0)] == best[node])
        some = going & jnp.any(good)
        node = jnp.where(some, nodes[jnp.argmax(good)], node)
        return (node, some, count + some), jnp.where(some, node, -1)

    start = (jnp.zeros((), table.dtype), jnp.ones((), bool), jnp.zeros((), jnp.int32))
    (node, _, count), path = jax.lax.scan(step, start, None, length=max(1, N - 1))
    return Walk(path, count, best[node])


def commit_map(path: Array, count: Array, length: Array, slots: int) -> Array:
    """Where each slot of the cache is read from after a walk: `[..., slots]`; path `[..., D]`, count, length `[...]`.

    Node i stands in slot length + i. The root stays at `length`, accepted node path[j] moves to length + 1 + j, and all
    other slots stay where they are: what lies behind the new length (length + 1 + count) is hidden by it. Rotated keys
    move as they are, since a node's depth is its position in the text.
    """
    slot = jnp.arange(slots)
    rank = slot - (length[..., None] + 1)
    inside = (rank >= 0) & (rank < count[..., None])
    moved = jnp.take_along_axis(path, jnp.clip(rank, 0, path.shape[-1] - 1), axis=-1)
    return jnp.where(inside, length[..., None] + moved, slot)
