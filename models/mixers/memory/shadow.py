"""Memories that tell: `Shadow` has the keys of all tokens beside a policy, so that what it keeps can be weighed, and
`Recorder` the queries and keys of a pass.

For evaluation alone; no name of `generate.memory`.
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp

from models.mixers import slots
from models.mixers.context import Context
from models.mixers.memory import Looks, Memory, View, scores


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shadow(Memory):
    """`inner` decides what is seen; after each pass of one token the sums below say what it was worth.

    Attributes:
      inner: the memory that is watched.
      k: `[B, K, S, H]` keys of all tokens, rotated at their positions.
      steps: `[B]` passes of one token.
      mass: `[B]` sum over them of the attention that the full cache would have given to what `inner` showed.
      best: `[B]` the same of as many tokens of the largest attention.
      seen: `[B, S]` share of the heads whose last query saw each token.
    """

    inner: Memory
    k: jax.Array
    steps: jax.Array
    mass: jax.Array
    best: jax.Array
    seen: jax.Array

    @property
    def rotary(self) -> str:
        return self.inner.rotary

    @property
    def looks(self) -> bool:
        return self.inner.looks

    @classmethod
    def of(cls, inner: Memory, size: int) -> Self:
        """An empty memory, watched over a text of at most `size` tokens."""
        B, K, _, H = inner.k.shape
        wide = jnp.promote_types(inner.k.dtype, jnp.float32)
        none = jnp.zeros((B,), wide)
        return cls(inner, jnp.zeros((B, K, size, H), inner.k.dtype), none, none, none, jnp.zeros((B, size), wide))

    def read(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> tuple[Self, View]:
        """See `Memory.read`."""
        inner, view = self.inner.read(q, k, v, context)
        if self.rotary == "slot":
            q, k = (context.rotate(x, context.positions) for x in (q, k))
        keys = slots.put(self.k, k.swapaxes(1, 2), context.start, axis=2)
        after = dataclasses.replace(self, inner=inner, k=keys)
        if k.shape[1] > 1:
            return after, view
        real = (context.positions[:, 0] >= 0).astype(self.mass.dtype)
        shown = _shown(view, self.k.shape[2])
        mass, best = jax.vmap(_weighed)(q[:, 0], keys, context.slots.position >= 0, shown)
        sums = {"steps": self.steps + real, "mass": self.mass + real * mass, "best": self.best + real * best}
        return dataclasses.replace(after, seen=shown.mean(1).astype(self.seen.dtype), **sums), view

    def looked(self, looks: Looks, context: Context) -> Self:
        """See `Memory.looked`."""
        return dataclasses.replace(self, inner=self.inner.looked(looks, context))


def _shown(view: View, size: int) -> jax.Array:
    """bool `[B, J, size]`: the tokens that the one query of a pass saw, by position; J heads."""
    held = view.position if view.position.ndim == 3 else view.position[:, None]
    if view.keep is not None:
        held = jnp.where(view.keep[:, :, 0], held, -1)
    B, J, _ = held.shape
    at = jnp.arange(B)[:, None, None], jnp.arange(J)[:, None], jnp.where(held >= 0, held, size)
    return jnp.zeros((B, J, size), bool).at[at].set(True, mode="drop")


def _weighed(q: jax.Array, k: jax.Array, held: jax.Array, shown: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(kept mass, the most that as many tokens could keep), means over heads, of one row's query `[N, H]`."""
    size = k.shape[1]
    held = jnp.pad(held, (0, max(0, size - held.shape[0])))[:size]
    p = scores.softmax(scores.logits(q[None], k.swapaxes(0, 1))[:, 0], held)  # [N, S]
    shown = jnp.broadcast_to(jnp.repeat(shown, p.shape[0] // shown.shape[0], axis=0), p.shape)
    ordered = jnp.cumsum(-jnp.sort(-p, axis=-1), axis=-1)
    count = jnp.maximum(shown.sum(-1, keepdims=True) - 1, 0)
    return scores.kept_mass(p, shown).mean(), jnp.take_along_axis(ordered, count, axis=-1).mean()


def shadowed(layers: Any, size: int) -> Any:
    """The layers of an empty decoding state with every memory watched."""
    watch = lambda leaf: Shadow.of(leaf, size) if isinstance(leaf, Memory) and hasattr(leaf, "k") else leaf  # noqa: E731
    return jax.tree.map(watch, layers, is_leaf=lambda leaf: isinstance(leaf, Memory))


def watched(layers: Any) -> list[Shadow]:
    """The watched memories of a decoding state, in order of depth."""
    leaves = jax.tree.leaves(layers, is_leaf=lambda leaf: isinstance(leaf, Shadow))
    return [leaf for leaf in leaves if isinstance(leaf, Shadow)]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recorder(Memory):
    """Of one fresh pass the queries `q [B, T, N, H]` and keys `k [B, T, K, H]`, rotated at their places."""

    q: jax.Array
    k: jax.Array

    def read(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> tuple[Self, View]:
        """See `Memory.read`."""
        return Recorder(q, k), View(k, v, context.positions, jnp.zeros_like(context.start))


def recording(layers: Any) -> Any:
    """The layers of an empty decoding state with a `Recorder` in place of every memory of keys."""
    make = lambda leaf: Recorder(leaf.k, leaf.k) if isinstance(leaf, Memory) and hasattr(leaf, "k") else leaf  # noqa: E731
    return jax.tree.map(make, layers, is_leaf=lambda leaf: isinstance(leaf, Memory))


def recorded(layers: Any) -> list[Recorder]:
    """The recorders of a decoding state, in order of depth."""
    leaves = jax.tree.leaves(layers, is_leaf=lambda leaf: isinstance(leaf, Recorder))
    return [leaf for leaf in leaves if isinstance(leaf, Recorder)]
