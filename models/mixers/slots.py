"""The slots of a decoding state: which token stands where, per row, so that masks can go by position."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

LOOPED_ROWS = 16  # Up to so many rows one update each is cheaper than a scatter.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """S slots for each of B rows, filled from the front.

    `position [B, S]`: the position of the token in each slot, -1 = empty. `length [B]`: slots in use.
    """

    position: jax.Array
    length: jax.Array

    @classmethod
    def empty(cls, batch: int, length: int) -> "Slots":
        """Slots without a token."""
        return cls(jnp.full((batch, length), -1, jnp.int32), jnp.zeros((batch,), jnp.int32))

    def append(self, positions: jax.Array) -> "Slots":
        """The slots with T more tokens at `positions [B, T]`; -1 is padding at a row's end, overwritten later."""
        used = jnp.sum(positions >= 0, axis=1, dtype=self.length.dtype)
        return Slots(put(self.position, positions, self.length), self.length + used)


def put(slots: jax.Array, new: jax.Array, start: jax.Array, axis: int = 1) -> jax.Array:
    """Writes `new` into each row of `slots` along `axis`, row b from slot `start[b]` on; B is the first dimension."""
    new = new.astype(slots.dtype)
    if slots.shape[0] > LOOPED_ROWS:
        update = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1)
        return jax.vmap(update)(slots, new, start)
    for b in range(slots.shape[0]):
        at = [jnp.int32(0)] * slots.ndim
        at[0], at[axis] = jnp.int32(b), start[b]
        slots = jax.lax.dynamic_update_slice(slots, new[b : b + 1], at)
    return slots
