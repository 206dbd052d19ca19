"""What controls carry along a tree of drafts: each node's text, and a state that each token changes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from models.decoding.drafts import Seen, Tree
from models.mixers.slots import ancestors


def texts(p: Any, tree: Tree, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(tokens `[B, N, R]`, length `[B, N]`): the text that ends with each node; length 0 where there is no node."""
    N, R = tree.token.shape[1], p.text.shape[1]
    tokens, length = jnp.broadcast_to(p.text[:, None], (len(p.text), N, R)), position + 1
    if N == 1:
        return tokens, length
    on_path = jnp.broadcast_to(ancestors(tree.parent), (len(p.text), N, N))
    place = jnp.where(on_path & (position >= 0)[:, None], position[:, None], R)
    put = jax.vmap(jax.vmap(lambda text, at, new: text.at[at].set(new, mode="drop"), (0, 0, None)))
    return put(tokens, place, tree.token), length


def along(tree: Tree, first: Any, step: Callable[[Any, int], Any]) -> Any:
    """A state at every node, leaves `[B, N, ...]`: `first` at node 0; step(the parent's state, node) at the others.

    `first` and what `step` gives are pytrees with the batch in front. A step reads `tree.token[:, node]`.
    """
    made = [first]
    for node in range(1, tree.token.shape[1]):
        parent = jnp.maximum(tree.parent[:, node], 0)
        held = jax.tree.map(lambda *xs: jnp.stack(xs, axis=1), *made)
        made.append(step(taken(held, parent), node))
    return jax.tree.map(lambda *xs: jnp.stack(xs, axis=1), *made)


def taken(held: Any, node: jax.Array) -> Any:
    """The state `[B, ...]` of one node of each row: held leaves `[B, N, ...]`, node `[1|B]`."""

    def one(x: jax.Array) -> jax.Array:
        index = jnp.broadcast_to(node, x.shape[:1]).reshape(-1, *[1] * (x.ndim - 1))
        return jnp.take_along_axis(x, index, axis=1)[:, 0]

    return jax.tree.map(one, held)


def last(seen: Seen) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(node, token, live), `[B]` each: the last accepted node, the token that follows it, and whether there is one."""
    end = jnp.maximum(seen.count - 1, 0)[:, None]
    node = jnp.take_along_axis(seen.path, end, axis=1)[:, 0]
    return jnp.maximum(node, 0), jnp.take_along_axis(seen.token, end, axis=1)[:, 0], seen.count > 0
