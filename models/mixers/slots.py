"""The slots of a decoding state: which token stands where, per row, so that masks can go by position."""

import dataclasses
import functools
from collections.abc import Sequence

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
    if slots.shape[0] == 1:  # without the row's dimension: see `models.decoding.rows.single`
        return jax.lax.dynamic_update_slice_in_dim(slots[0], new[0], start[0], axis - 1)[None]
    if slots.shape[0] > LOOPED_ROWS:
        update = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1)
        return jax.vmap(update)(slots, new, start)
    for b in range(slots.shape[0]):
        at = [jnp.int32(0)] * slots.ndim
        at[0], at[axis] = jnp.int32(b), start[b]
        slots = jax.lax.dynamic_update_slice(slots, new[b : b + 1], at)
    return slots


def gathered(caches: Sequence[jax.Array], path: jax.Array, start: jax.Array, axis: int) -> list[jax.Array]:
    """Moves entries `start[b] + path[b, j]` of row b along `axis` to `start[b] + j`, in each of `caches`.

    Args:
      caches: `[B, ...]` each.
      path: `[B, D]` which of the entries from `start` on, in any order. All of these are there.
      start: `[B]`.
      axis: of each, at least 1.
    """
    lie = jnp.broadcast_to(jnp.arange(path.shape[1], dtype=path.dtype), path.shape)

    def read(path: jax.Array) -> list[jax.Array]:
        at = start[:, None] + path
        wide = lambda cache: jnp.expand_dims(at, [i for i in range(1, cache.ndim) if i != axis])  # noqa: E731
        inside = {"axis": axis, "mode": "promise_in_bounds"}
        return [jnp.take_along_axis(cache, wide(cache), **inside) for cache in caches]

    def lying(path: jax.Array) -> list[jax.Array]:
        if len(path) > 1:
            return read(lie)
        return [jax.lax.dynamic_slice_in_dim(cache, start[0], path.shape[1], axis) for cache in caches]

    # A branch of its own, one for all: XLA would read and write a cache in one loop, and copy all of it for that.
    moved = jax.lax.cond(jnp.any(path != lie), read, lying, path)
    return [put(cache, new, start, axis) for cache, new in zip(caches, moved, strict=True)]


def ancestors(parents: jax.Array) -> jax.Array:
    """`[..., T, T]` bool: whether node j is node i or one of its ancestors; parents `[..., T]`, -1 = no parent.

    A parent stands before its children. log2 T products double the distance that is covered.
    """
    T = parents.shape[-1]
    step = jax.nn.one_hot(parents, T, dtype=jnp.float32) + jnp.eye(T, dtype=jnp.float32)
    reach, covered = step, 1
    while covered < T - 1:
        reach, covered = jnp.minimum(reach @ reach, 1), 2 * covered
    return reach > 0


def depths(parents: jax.Array) -> jax.Array:
    """Depth of each node, 0 for what has no parent: `[..., T]` parents -> `[..., T]` int32."""
    return jnp.sum(ancestors(parents), axis=-1, dtype=jnp.int32) - 1


def own_path(paths: jax.Array, start: jax.Array, length: int) -> jax.Array:
    """Slots that a draft may see as far as the tree decides it: `[B, T, S]` bool, to be joined with a causal mask.

    Slots outside start[b] .. start[b] + T - 1 hold the past, which all drafts share; of the T new ones a draft sees
    itself and its ancestors.

    Args:
      paths: `[1|B, T, T]` of each draft among the T its ancestors and itself (`ancestors`).
      start: `[B]` slot of the first draft.
      length: S.
    """
    B, T = start.shape[0], paths.shape[-1]
    own = jnp.broadcast_to(paths, (B, T, T))
    place = jnp.arange(length)[None] - start[:, None]  # [B, S] which draft stands there
    drafts = (place >= 0) & (place < T)
    seen = jnp.take_along_axis(own, jnp.clip(place, 0, T - 1)[:, None, :], axis=2)
    return seen | ~drafts[:, None, :]
