"""Memory `window`: the last W tokens, however long the text is. A query sees itself and the W - 1 tokens before it."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from models.mixers.context import Context
from models.mixers.memory import Memory, Sizes, View


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window(Memory):
    """The token of position p lies in slot p mod W.

    Attributes:
      cache: rotated keys, and values, `[B, W, 2, K, H]`.
      position: `[B, W]` int32, -1 = an empty slot.
      window: tokens that a query sees, itself included; W is the smaller of it and the longest text.
    """

    cache: jax.Array
    position: jax.Array
    window: int = dataclasses.field(metadata={"static": True})

    @property
    def k(self) -> jax.Array:
        """Rotated keys `[B, K, W, H]`."""
        return self.cache[:, :, 0].swapaxes(1, 2)

    @classmethod
    def empty(cls, sizes: Sizes, size: int) -> Self:
        """No token yet; `size` is `generate.window.size`."""
        W = min(size, sizes.length)
        cache = jnp.zeros((sizes.batch, W, 2, sizes.K, sizes.H), sizes.dtype)
        return cls(cache, jnp.full((sizes.batch, W), -1, jnp.int32), size)

    def read(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> tuple[Self, View]:
        """See `Memory.read`. Positions of a row count up by one over all calls."""
        B, T = k.shape[:2]
        positions = jnp.broadcast_to(context.positions, (B, T))
        new = jnp.stack([k, v], axis=2)
        after = self._keep(new, positions)
        if T == 1:
            start = jnp.maximum(positions[:, 0], 0) % self.position.shape[1]
            return after, View(after.cache[:, :, 0], after.cache[:, :, 1], after.position, start, self.window)
        # Tokens that the last new one no longer sees are still seen by the first.
        cache = jnp.concatenate([self.cache, new.astype(self.cache.dtype)], axis=1)
        held = jnp.concatenate([self.position, positions], axis=1)
        start = jnp.full((B,), self.position.shape[1], jnp.int32)
        return after, View(cache[:, :, 0], cache[:, :, 1], held, start, self.window)

    def _keep(self, new: jax.Array, positions: jax.Array) -> Self:
        """The state with those of T new tokens `[B, T, 2, K, H]` that lie in the window of the last one."""
        size = self.position.shape[1]
        kept = (positions >= 0) & (positions > jnp.max(positions, axis=1, keepdims=True) - size)
        place = (jnp.arange(positions.shape[0])[:, None], jnp.where(kept, positions % size, size))  # `size` is no slot
        write = lambda old, new: old.at[place].set(new.astype(old.dtype), mode="drop")  # noqa: E731
        return Window(write(self.cache, new), write(self.position, positions), self.window)


PARTS = {"window": Window}
