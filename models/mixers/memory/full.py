"""Memory `full`: every token of the text, each in its slot."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from models.mixers import slots
from models.mixers.context import Context
from models.mixers.memory import Memory, Sizes, View


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Full(Memory):
    """Keys (rotated) and values of all tokens, `[B, K, S, H]` each; their positions stand in `context.slots`."""

    rewinds = True

    k: jax.Array
    v: jax.Array

    @classmethod
    def empty(cls, sizes: Sizes) -> Self:
        """S = `sizes.slots` empty slots a row."""
        shape = (sizes.batch, sizes.K, sizes.slots, sizes.H)
        return cls(jnp.zeros(shape, sizes.dtype), jnp.zeros(shape, sizes.dtype))

    def read(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> tuple[Self, View]:
        """See `Memory.read`. In a fresh pass no slot is read."""
        write = lambda old, new: slots.put(old, new.swapaxes(1, 2), context.start, axis=2)  # noqa: E731
        after = Full(write(self.k, k), write(self.v, v))
        if context.fresh:
            return after, View(k, v, context.positions, jnp.zeros_like(context.start))
        return after, View(after.k.swapaxes(1, 2), after.v.swapaxes(1, 2), context.slots.position, context.start)

    def holding(self, other: Self, start: jax.Array, size: int) -> Self:
        """With the `size` slots of `other` from `start` on in place of its first ones; rubbish behind the end of it."""

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            behind = jnp.pad(new, ((0, 0), (0, 0), (0, size), (0, 0)))
            part = jax.lax.dynamic_slice_in_dim(behind, start, size, axis=2)
            return jax.lax.dynamic_update_slice_in_dim(old, part, 0, axis=2)

        return Full(put(self.k, other.k), put(self.v, other.v))

    @classmethod
    def commit(
        cls, layers: tuple[Self, ...], path: jax.Array | None, count: jax.Array, start: jax.Array
    ) -> tuple[Self, ...]:
        """Moves the accepted drafts of a tree side by side. Those of a chain are: what lies behind has no position."""
        if path is None:
            return layers
        moved = slots.gathered([x for layer in layers for x in (layer.k, layer.v)], path, start, axis=2)
        return tuple(map(cls, moved[::2], moved[1::2]))


PARTS = {"full": Full}
