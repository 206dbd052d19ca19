"""Memory `quest`: nothing leaves; each query head reads the pages whose bound on q . k is the largest.

Tang et al. 2024 (Quest, arXiv:2406.10774).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from models.mixers import slots
from models.mixers.context import Context
from models.mixers.memory import Memory, Sizes, View, budgets, scores, selection
from models.mixers.memory.kept import budget_problems, of_prompt, whole
from models.mixers.memory.rules.select import Quest as Rule
from models.mixers.memory.token_select import best_slots

FEW = 128  # pages


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quest(Memory):
    """Every token in its slot, and each page's least and greatest number of every channel. Pieces of a prompt read all.

    Attributes:
      k, v: rotated keys, and values, `[B, K, S, H]`, S a multiple of the page.
      position: `[B, S]` int32, -1 = an empty slot.
      low, high: `[B, K, P, H]`, (inf, -inf) of an empty page.
      prompt: `[B]` tokens that were read in pieces.
      rule: static; limit: static: tokens that a row may come to have; dense: static: whether every page is read.
    """

    alone: ClassVar[bool] = True
    name: ClassVar[str] = "quest"

    k: jax.Array
    v: jax.Array
    position: jax.Array
    low: jax.Array
    high: jax.Array
    prompt: jax.Array
    rule: Rule = dataclasses.field(metadata={"static": True})
    limit: int = dataclasses.field(metadata={"static": True})
    dense: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def empty(cls, sizes: Sizes, dense: int = 0, **options: Any) -> Self:
        """`sizes.slots` empty slots a row, in whole pages; the first `dense` layers read every page."""
        rule = Rule(**{name: whole(value) for name, value in options.items()})
        P = -(-sizes.slots // rule.page)
        shape = (sizes.batch, sizes.K, P * rule.page, sizes.H)
        bounds = jnp.full((sizes.batch, sizes.K, P, sizes.H), jnp.inf, sizes.dtype)
        return cls(
            jnp.zeros(shape, sizes.dtype),
            jnp.zeros(shape, sizes.dtype),
            jnp.full((sizes.batch, shape[2]), -1, jnp.int32),
            bounds, -bounds, jnp.zeros((sizes.batch,), jnp.int32), rule, sizes.length, sizes.layer < dense,
        )  # fmt: skip

    def read(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> tuple[Self, View]:
        """See `Memory.read`."""
        B, T = k.shape[:2]
        positions = jnp.broadcast_to(context.positions, (B, T)).astype(jnp.int32)
        write = lambda old, new: slots.put(old, new.swapaxes(1, 2), context.start, axis=2)  # noqa: E731
        position = jnp.pad(
            context.slots.position, ((0, 0), (0, self.k.shape[2] - context.slots.position.shape[1])), constant_values=-1
        )
        new = jnp.sum(positions >= 0, axis=1, dtype=jnp.int32)
        after = dataclasses.replace(
            self, k=write(self.k, k), v=write(self.v, v), position=position, prompt=self.prompt + (new if T > 1 else 0)
        )
        after = after._bounded(k, positions, context)
        if T == 1 and not self.dense:
            return after, after._paged(q[:, 0]) if 2 * after._most <= after.low.shape[2] else after._in_place(q[:, 0])
        if context.fresh:
            return after, View(k, v, positions, jnp.zeros_like(context.start))
        return after, View(after.k.swapaxes(1, 2), after.v.swapaxes(1, 2), position, context.start)

    def _bounded(self, k: jax.Array, positions: jax.Array, context: Context) -> Self:
        """The bounds with the new keys: of one, its page's; of more, all pages'."""
        page = self.rule.page
        if k.shape[1] > 1:
            bounds = lambda k, held: selection.quest_pages(k.swapaxes(0, 1), held, page)  # noqa: E731
            low, high = (x.swapaxes(1, 2) for x in jax.vmap(bounds)(self.k, self.position >= 0))
            return dataclasses.replace(self, low=low, high=high)
        at = context.start // page
        real = (positions >= 0)[..., None, None]
        key = k.swapaxes(1, 2).astype(self.low.dtype)
        had = lambda x: jnp.take_along_axis(x, at[:, None, None, None], axis=2, mode="clip")  # noqa: E731
        low = jnp.minimum(had(self.low), jnp.where(real, key, jnp.inf))
        high = jnp.maximum(had(self.high), jnp.where(real, key, -jnp.inf))
        write = lambda x, new: slots.put(x, new, at, axis=2)  # noqa: E731  (a scatter would turn all bounds over)
        return dataclasses.replace(self, low=write(self.low, low), high=write(self.high, high))

    @property
    def _most(self) -> int:
        """Pages that a query head reads, at most."""
        pages = budgets.tokens(self.rule.budget, self.limit) // self.rule.page
        return min(max(self.rule.least, pages), self.low.shape[2])

    def _count(self) -> jax.Array:
        """`[B]` pages that a query head of each row reads."""
        budget = of_prompt(self.rule.budget, self.prompt, self.limit)
        return jnp.broadcast_to(jnp.maximum(self.rule.least, budget // self.rule.page), self.prompt.shape)

    def _in_place(self, q: jax.Array) -> View:
        """All tokens, of which each query head sees those of its pages: less than to copy more than half of them."""
        bound = jax.vmap(selection.quest_bound)(q, self.low.swapaxes(1, 2), self.high.swapaxes(1, 2))  # [B, N, P]
        keep = jnp.repeat(_best(bound, self._count()), self.rule.page, axis=2)[:, :, None]
        start = jnp.zeros_like(self.prompt)
        return View(self.k.swapaxes(1, 2), self.v.swapaxes(1, 2), self.position, start, keep=keep)

    def _paged(self, q: jax.Array) -> View:
        """The pages of each query head, `[B, N, H]`, side by side."""
        (B, K, S, H), N, page = self.k.shape, q.shape[1], self.rule.page
        P, most, count = S // page, self._most, self._count()

        def chosen(q, low, high, count):
            bound = selection.quest_bound(q, low.swapaxes(0, 1), high.swapaxes(0, 1))
            pick = lambda row: best_slots(row, ~jnp.isneginf(row), most, count)  # noqa: E731
            return jax.vmap(pick)(bound)  # [N, most]

        pages = jax.vmap(chosen)(q, self.low, self.high, count)
        index = jnp.maximum(pages, 0).reshape(B, K, -1)

        def taken(x: jax.Array) -> jax.Array:
            whole = x.reshape(B, K, P, page * H)
            found = jnp.take_along_axis(whole, index[..., None], axis=2, mode="promise_in_bounds")
            return found.reshape(B, N, most * page, H).swapaxes(1, 2)

        slot = (pages[..., None] * page + jnp.arange(page)).reshape(B, N, -1)
        held = jnp.take_along_axis(self.position[:, None], jnp.maximum(slot, 0), axis=2)
        position = jnp.where(slot >= 0, held, -1)
        return View(taken(self.k), taken(self.v), position, jnp.zeros((B,), jnp.int32))

    @classmethod
    def problems(cls, options: Mapping[str, Any]) -> Iterator[str]:
        """See `Memory.problems`."""
        yield from budget_problems(cls.name, {"budget": options["budget"]})


def _best(bound: jax.Array, count: jax.Array) -> jax.Array:
    """bool `[B, N, P]`: the `count [B]` pages of the largest bounds, of equal ones the latest; none that is empty.

    Of few pages each is compared with all others, which is less than to sort them.
    """
    P = bound.shape[-1]
    some = bound > -jnp.inf
    if P > FEW:
        return jax.vmap(scores.keep_best)(bound, some, jnp.broadcast_to(count[:, None], bound.shape[:2]))
    later = jnp.arange(P) > jnp.arange(P)[:, None]
    here, other = bound[..., :, None], bound[..., None, :]
    better = (other > here) | ((other == here) & later)
    return some & (better.sum(-1, dtype=jnp.int32) < count[:, None, None])


PARTS = {"quest": Quest}
