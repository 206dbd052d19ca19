"""Verifiers without a rule of their own: a draft stays where it is the token that would have been drawn in its place.

The randomness of a token is a function of its request and position alone (`models.decoding.keys`), so the token of a
position is a function of its logits, and drafts change no text at any temperature.
"""

import dataclasses

import jax
import jax.numpy as jnp

from models.decoding import keys as key_scheme
from models.decoding.drafts import Tree
from models.decoding.verify import Verdict, Verifier
from models.mixers.slots import depths


def follow(token: jax.Array, parent: jax.Array, valid: jax.Array, drawn: jax.Array, depth: int) -> Verdict:
    """Walks from node 0 to the child that holds the token drawn at its parent, as far as there is one.

    Siblings differ, or the first of equal ones is taken.

    Args:
      token: `[B, N]` of the nodes; parent: `[1|B, N]`; valid: `[B, N]`.
      drawn: `[B, N]` the token behind each node.
      depth: D, nodes of the longest path.
    """
    B, N = token.shape
    parent = jnp.broadcast_to(parent, (B, N))
    here, alive = jnp.zeros((B,), jnp.int32), jnp.ones((B,), bool)
    path, count = [here], jnp.ones((B,), jnp.int32)
    at = lambda x, i: jnp.take_along_axis(x, i[:, None], axis=1)[:, 0]  # noqa: E731
    for _ in range(depth - 1):
        right = (parent == here[:, None]) & valid & (token == at(drawn, here)[:, None])
        alive = alive & jnp.any(right, axis=1)
        here = jnp.where(alive, jnp.argmax(right, axis=1).astype(jnp.int32), here)
        count = count + alive
        path.append(here)
    return Verdict(jnp.stack(path, axis=1), count, at(drawn, here))


def drawn_at(keys: jax.Array, logits: jax.Array, position: jax.Array) -> jax.Array:
    """The token behind each node, from its request and its position: keys `[B]`, `[B, N, V]`, `[B, N]` -> `[B, N]`."""

    def one(key: jax.Array, logits: jax.Array, position: jax.Array) -> jax.Array:
        own = jnp.broadcast_to(key, position.shape)
        return key_scheme.sample(key_scheme.fold(own, position + 1, key_scheme.TOKEN), logits)

    return jax.vmap(one)(keys, logits, position).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class SameDraw(Verifier):
    """Each node's token is drawn with the key of its request and position; a draft stays where it is that token."""

    def __call__(self, keys: jax.Array, logits: jax.Array, tree: Tree, position: jax.Array, depth: int) -> Verdict:
        """See `Verifier.__call__`."""
        N = tree.token.shape[1]
        down = depths(tree.parent) if N > 1 else jnp.zeros((1, 1), jnp.int32)
        drawn = drawn_at(keys, logits, position[:, None] + down)
        return follow(tree.token, tree.parent, tree.valid, drawn, depth)


@dataclasses.dataclass(frozen=True)
class Greedy(Verifier):
    """The likeliest token behind each node, whatever the temperature, without a random number."""

    def draw(self, keys: jax.Array, logits: jax.Array) -> jax.Array:
        """See `Verifier.draw`."""
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def candidates(self, keys: jax.Array, logits: jax.Array) -> jax.Array:
        """See `Verifier.candidates`."""
        return logits

    def __call__(self, keys: jax.Array, logits: jax.Array, tree: Tree, position: jax.Array, depth: int) -> Verdict:
        """See `Verifier.__call__`."""
        drawn = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return follow(tree.token, tree.parent, tree.valid, drawn, depth)


PARTS = {"same_draw": SameDraw, "greedy": Greedy}
