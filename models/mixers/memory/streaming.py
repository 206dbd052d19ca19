"""Memory `streaming`: the first tokens and the last ones, whose places in the cache are their rotary positions.

Xiao et al. 2023 (StreamingLLM, arXiv:2309.17453).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from models.mixers import slots
from models.mixers.context import Context
from models.mixers.memory import Memory, Sizes, View, budgets
from models.mixers.memory.kept import budget_problems, of_prompt, whole
from models.mixers.memory.rules.evict import Streaming as Rule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Streaming(Memory):
    """Token p lies in slot p where it is a sink, else in s + (p - s) mod (S - 1 - s); the last slot is for padding.

    Attributes:
      k, v: keys and values, `[B, K, S, H]`. Where turns add up (`Context.steady`), keys are rotated by their slots:
        whoever leaves, a key keeps its turn, and the query is turned the other way. Else they are unrotated.
      position: `[B, S]` int32, -1 = an empty slot.
      length: `[B]` tokens so far; prompt: `[B]` those of them that were read in pieces.
      rule: static: `sinks`, `budget` tokens in all, and whether eviction is "before" or "after" a pass.
      limit: static: tokens that a row may come to have.
    """

    rotary: ClassVar[str] = "slot"
    pieces: ClassVar[bool] = False
    alone: ClassVar[bool] = True
    name: ClassVar[str] = "streaming"

    k: jax.Array
    v: jax.Array
    position: jax.Array
    length: jax.Array
    prompt: jax.Array
    rule: Rule = dataclasses.field(metadata={"static": True})
    limit: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def empty(cls, sizes: Sizes, **options: Any) -> Self:
        """No token yet: slots for the budget, the new token and padding."""
        size = options.pop("bytes", 0)
        rule = Rule(**{name: whole(value) for name, value in options.items()})
        if size:
            kw = {"layers": sizes.layers, "heads": sizes.K, "width": sizes.H}
            count = budgets.from_bytes(size, itemsize=jnp.dtype(sizes.dtype).itemsize, extra=4, **kw) - 2
            if count <= rule.sinks:
                raise ValueError(
                    f"generate.streaming.bytes={size} leaves {max(count, 0)} tokens a layer, no more than the "
                    f"{rule.sinks} sinks; use more bytes."
                )
            rule = dataclasses.replace(rule, budget=count)
        S = min(max(budgets.tokens(rule.budget, sizes.length), rule.sinks + 1), sizes.length) + 2
        shape = (sizes.batch, sizes.K, S, sizes.H)
        none = jnp.zeros((sizes.batch,), jnp.int32)
        empty = jnp.full((sizes.batch, S), -1, jnp.int32)
        return cls(jnp.zeros(shape, sizes.dtype), jnp.zeros(shape, sizes.dtype), empty, none, none, rule, sizes.length)

    def read(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> tuple[Self, View]:
        """See `Memory.read`."""
        B, T = k.shape[:2]
        positions = jnp.broadcast_to(context.positions, (B, T)).astype(jnp.int32)
        new = jnp.sum(positions >= 0, axis=1, dtype=jnp.int32)
        length, prompt = self.length + new, self.prompt + (new if T > 1 else 0)
        home = context.rotate(k, self._home(positions)) if context.steady else k
        k, v, home = (x.swapaxes(1, 2).astype(self.k.dtype) for x in (k, v, home))
        after = self._written(home, v, positions, length)
        budget = of_prompt(self.rule.budget, prompt, self.limit)
        stays = after._held(after.position, length, budget)
        kept = dataclasses.replace(
            after, position=jnp.where(stays, after.position, -1), length=length, prompt=prompt
        )  # fmt: skip
        if T == 1:
            one = 0 if self.rule.evict == "before" else 1
            seen = after._held(after.position, length, budget + one)
            held = jnp.where(seen, after.position, -1)
            view = self._turned if context.steady else self._view
            return kept, view(after.k, after.v, held, positions, length)
        if context.fresh:
            return kept, self._view(k, v, positions, positions, length)
        join = lambda old, new: jnp.concatenate([old, new], axis=2)  # noqa: E731
        held = jnp.concatenate([self.position, positions], axis=1)
        view = self._view(join(self.k, k), join(self.v, v), held, positions, length)
        if context.steady:  # Stored keys have a turn already.
            had = jnp.concatenate([self._home(self.position), jnp.zeros_like(positions)], axis=1)
            view = view._replace(key_place=view.key_place - had)
        return kept, view

    def _held(self, position: jax.Array, length: jax.Array, budget: jax.Array | int) -> jax.Array:
        """Which of the tokens are sinks or among the last budget - sinks."""
        near = jnp.maximum(jnp.broadcast_to(budget, length.shape) - self.rule.sinks, 0)
        return (position >= 0) & ((position < self.rule.sinks) | (position >= (length - near)[:, None]))

    def _home(self, positions: jax.Array) -> jax.Array:
        """The slots of tokens, whether they are kept or not; 0 of padding."""
        s, ring = self.rule.sinks, self.position.shape[1] - 1 - self.rule.sinks
        return jnp.maximum(jnp.where(positions < s, positions, s + (positions - s) % ring), 0)

    def _written(self, k: jax.Array, v: jax.Array, positions: jax.Array, length: jax.Array) -> Self:
        """The slots with T new tokens, of which the last ones take the places of older ones."""
        s, trash = self.rule.sinks, self.position.shape[1] - 1
        ring = trash - s
        stays = (positions >= 0) & ((positions < s) | (positions >= (length - ring)[:, None]))
        slot = jnp.where(stays, self._home(positions), trash)
        marked = jnp.where(slot < trash, positions, -1)
        if positions.shape[1] == 1:
            at = slot[:, 0]
            put = lambda old, new: slots.put(old, new, at, axis=2)  # noqa: E731
            position = slots.put(self.position, marked, at)
        else:
            row = jnp.arange(len(slot))[:, None]
            put = lambda old, new: old.swapaxes(1, 2).at[row, slot].set(new.swapaxes(1, 2)).swapaxes(1, 2)  # noqa: E731
            position = self.position.at[row, slot].set(marked)
        return dataclasses.replace(self, k=put(self.k, k), v=put(self.v, v), position=position)

    def _view(self, k: jax.Array, v: jax.Array, held: jax.Array, query: jax.Array, length: jax.Array) -> View:
        """Keys that are seen, and where they stand among them."""
        gap = length - jnp.sum(held >= 0, axis=1, dtype=jnp.int32)  # tokens that left, all behind the sinks
        place = lambda at: jnp.maximum(jnp.where(at < self.rule.sinks, at, at - gap[:, None]), 0)  # noqa: E731
        keys = {"key_place": place(held), "query_place": place(query)}
        return View(k.swapaxes(1, 2), v.swapaxes(1, 2), held, jnp.zeros_like(length), **keys)

    def _turned(self, k: jax.Array, v: jax.Array, held: jax.Array, query: jax.Array, length: jax.Array) -> View:
        """As `_view` of one query and of keys that are rotated by their slots.

        The query's three places: among the tokens that are held, for the sinks; its own slot, for what stands before it
        in the ring; and one ring further, for what stands behind it and is older.
        """
        s, trash = self.rule.sinks, self.position.shape[1] - 1
        gap = length - jnp.sum(held >= 0, axis=1, dtype=jnp.int32)
        home = self._home(query)
        turns = jnp.stack([query - gap[:, None], home, home + trash - s], axis=2)
        slot = jnp.arange(trash + 1)
        turn = jnp.where(slot < s, 0, jnp.where(slot <= home, 1, 2))
        places = {"turns": jnp.maximum(turns, 0), "turn": turn.astype(jnp.int32), "first": s}
        return View(k.swapaxes(1, 2), v.swapaxes(1, 2), held, jnp.zeros_like(length), **places)

    @classmethod
    def problems(cls, options: Mapping[str, Any]) -> Iterator[str]:
        """See `Memory.problems`."""
        yield from budget_problems(cls.name, {key: value for key, value in options.items() if key != "recent"})


PARTS = {"streaming": Streaming}
