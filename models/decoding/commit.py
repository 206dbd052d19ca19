"""What a decoding state becomes when a verifier has judged the drafts that the model just read."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from models.mixers.memory import Memory
from models.mixers.slots import Slots


def rewinds(state: Any) -> bool:
    """Whether every layer of a model's state can drop drafts: memories that say so; a recurrence cannot."""
    leaves = jax.tree.leaves(state["layers"], is_leaf=lambda x: isinstance(x, Memory))
    return all(isinstance(leaf, Memory) and leaf.rewinds for leaf in leaves)


def commit(
    again: Callable[..., Any],
    before: Any,
    made: Any,
    *,
    tokens: jax.Array,
    position: jax.Array,
    path: jax.Array | None,
    count: jax.Array,
) -> tuple[Any, jax.Array]:
    """The state with the accepted drafts alone, and how often the model was called for it, `[]`.

    Where every layer rewinds, accepted tokens move side by side (those of a chain lie so already) and the others lose
    their positions. Else the accepted tokens are read again from the state before, unless all were accepted.

    Args:
      again: `(tokens, positions, state=before) -> Pass`, the model as it read the drafts.
      before, made: the state before the drafts were read, and after.
      tokens: `[B, N]` ids of the drafts, or vectors `[B, N, D]` in place of embedded ones.
      position: `[B, N]` of each, -1 where it was not read.
      path: `[B, D]` accepted ones in order of depth; None: they are a chain, the first ones.
      count: `[B]` how many are.
    """
    order = jnp.arange(tokens.shape[1])[None] if path is None else path
    own = jnp.broadcast_to(order, (tokens.shape[0], order.shape[1]))
    lie = jnp.arange(own.shape[1])
    stay = lie < count[:, None]
    at = jnp.where(stay, jnp.take_along_axis(position, own, axis=1), -1)
    if rewinds(made):
        kept = None if path is None else jnp.where(stay, path, lie)  # What is dropped need not move.
        slots: Slots = before["slots"].append(at)
        return {"slots": slots, "layers": _moved(made["layers"], kept, count, before["slots"].length)}, jnp.int32(0)

    def replay() -> tuple[Any, jax.Array]:
        kept = jnp.take_along_axis(tokens, own if tokens.ndim == 2 else own[..., None], axis=1)
        return again(kept, at, state=before).state, jnp.int32(1)

    if path is not None:
        return replay()
    whole = jnp.all(count == jnp.sum(position >= 0, axis=1))
    return jax.lax.cond(whole, lambda: (made, jnp.int32(0)), replay)


def _moved(layers: Any, path: jax.Array | None, count: jax.Array, start: jax.Array) -> Any:
    """The layers' memories with the accepted drafts, those of a kind together."""
    memories, structure = jax.tree.flatten(layers, is_leaf=lambda x: isinstance(x, Memory))
    for kind in dict.fromkeys(map(type, memories)):
        own = [i for i, memory in enumerate(memories) if type(memory) is kind]
        after = kind.commit(tuple(memories[i] for i in own), path, count, start)
        for i, memory in zip(own, after, strict=True):
            memories[i] = memory
    return jax.tree.unflatten(structure, memories)
