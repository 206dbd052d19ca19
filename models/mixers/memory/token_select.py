"""Memory `token_select`: nothing leaves; a query reads the first tokens, the last ones and those of the most votes.

Wu et al. 2024 (TokenSelect, arXiv:2411.02886).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from models.mixers import slots
from models.mixers.context import Context
from models.mixers.memory import Memory, Sizes, View, budgets, selection
from models.mixers.memory.kept import budget_problems, of_prompt, whole
from models.mixers.memory.rules.select import TokenSelect as Rule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Near:
    """Copies of what a query reads: the local tokens as a ring, the initial and chosen ones in order, one free slot.

    Local keys are rotated by their positions, the others by their ranks, so that a step turns no key but its own. While
    a row has no more tokens than a query reads, token p stands at place p of the second part, too. `k`, `v`:
    `[B, K, local + M + 1, H]`; `built [B]`: whether the copies are those of the row's last choice.
    """

    k: jax.Array
    v: jax.Array
    built: jax.Array

    @classmethod
    def empty(cls, sizes: Sizes, n: int) -> Self:
        """No copy yet."""
        shape = (sizes.batch, sizes.K, n, sizes.H)
        return cls(jnp.zeros(shape, sizes.dtype), jnp.zeros(shape, sizes.dtype), jnp.zeros((sizes.batch,), bool))

    def unbuilt(self, rows: jax.Array) -> Self:
        """Without the copies of these rows, bool `[B]`."""
        return dataclasses.replace(self, built=self.built & ~rows)

    def row(self, b: jax.Array, k: jax.Array, v: jax.Array, t: jax.Array, some: jax.Array, context: Context) -> Self:
        """With the last tokens up to t, and those in the slots `some [M]` of `k` and `v [K, S, H]`, in row b."""
        local, S = self.k.shape[2] - 1 - some.shape[0], k.shape[1]
        last = in_ring(t, local)
        index = jnp.concatenate([last, some, t[None]])
        place = jnp.maximum(jnp.concatenate([last, jnp.arange(some.shape[0]), t[None]]), 0)
        k, v = (jnp.take(x, index, axis=1, mode="clip") for x in (k, v))
        k = context.rotate(k[:, :, None], place[None], within=S)[:, :, 0].astype(self.k.dtype)
        write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new[None], b, axis=0)  # noqa: E731
        return dataclasses.replace(self, k=write(self.k, k), v=write(self.v, v))

    def put(self, k: jax.Array, v: jax.Array, at: jax.Array) -> Self:
        """With one token of each row, `[B, 1, K, H]`, at `[B]`."""
        k, v = (slots.put(old, new.swapaxes(1, 2), at, axis=2) for old, new in ((self.k, k), (self.v, v)))
        return dataclasses.replace(self, k=k, v=v)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenSelect(Memory):
    """Every token in its slot. A single query reads `initial` + budget + `local` of them; pieces of a prompt read all.

    Attributes:
      k, v: unrotated keys, and values, `[B, K, S, H]`; their positions stand in `context.slots`.
      asked: `[B, N, H]` the query whose choice was used last; chosen: `[B, most]` its slots, -1 = none.
      prompt: `[B]` tokens that were read in pieces.
      near: where choices are used again (`rule.least` below 1), else None: what the last query read.
      rule: static; limit: static: tokens that a row may come to have.
    """

    rotary: ClassVar[str] = "slot"
    alone: ClassVar[bool] = True
    name: ClassVar[str] = "token_select"

    k: jax.Array
    v: jax.Array
    asked: jax.Array
    chosen: jax.Array
    prompt: jax.Array
    near: Near | None
    rule: Rule = dataclasses.field(metadata={"static": True})
    limit: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def empty(cls, sizes: Sizes, **options: Any) -> Self:
        """S = `sizes.slots` empty slots a row."""
        rule = Rule(**{name: whole(value) for name, value in options.items()})
        shape = (sizes.batch, sizes.K, sizes.slots, sizes.H)
        most = min(budgets.tokens(rule.budget, sizes.length), sizes.length)
        return cls(
            jnp.zeros(shape, sizes.dtype),
            jnp.zeros(shape, sizes.dtype),
            jnp.zeros((sizes.batch, sizes.N, sizes.H), sizes.dtype),
            jnp.full((sizes.batch, most), -1, jnp.int32),
            jnp.zeros((sizes.batch,), jnp.int32),
            Near.empty(sizes, rule.local + rule.initial + most + 1) if rule.least < 1 and rule.local else None,
            rule, sizes.length,
        )  # fmt: skip

    def read(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> tuple[Self, View]:
        """See `Memory.read`."""
        T = k.shape[1]
        positions = jnp.broadcast_to(context.positions, k.shape[:2]).astype(jnp.int32)
        write = lambda old, new: slots.put(old, new.swapaxes(1, 2), context.start, axis=2)  # noqa: E731
        new = jnp.sum(positions >= 0, axis=1, dtype=jnp.int32)
        after = dataclasses.replace(
            self, k=write(self.k, k), v=write(self.v, v), prompt=self.prompt + (new if T > 1 else 0)
        )
        if T == 1:
            again = self.near is not None and context.steady
            return after._again(q, k, v, context) if again else after._chosen(q, positions, context)
        if self.near is not None:
            after = dataclasses.replace(after, near=self.near.unbuilt(new > 0))
        keys = (k, v, positions) if context.fresh else (
            after.k.swapaxes(1, 2), after.v.swapaxes(1, 2), context.slots.position
        )  # fmt: skip
        return after, View(*keys, context.start, key_place=jnp.maximum(keys[2], 0), query_place=positions)

    def _chosen(self, q: jax.Array, positions: jax.Array, context: Context) -> tuple[Self, View]:
        rule, S, most, t = self.rule, self.k.shape[2], self.chosen.shape[1], positions[:, 0]
        asking = context.rotate(q, jnp.full_like(positions, rule.local))[:, 0]
        count = jnp.broadcast_to(of_prompt(rule.budget, self.prompt, self.limit), t.shape)
        few = rule.initial + count + rule.local >= t + 1
        candidates = (jnp.arange(S) >= rule.initial) & (jnp.arange(S) <= t[:, None] - rule.local)
        size = min(rule.initial + most + rule.local, S)
        in_place = 2 * size > S and rule.least >= 1
        best = best_of if in_place else best_slots

        def voted(q: jax.Array, k: jax.Array, candidates: jax.Array, count: jax.Array) -> jax.Array:
            return best(self._votes(q, k, candidates), candidates, most, count)

        # Where no row has more tokens than a query reads there is nothing to choose: keys are not read for votes.
        none = jnp.zeros(candidates.shape, bool) if in_place else jnp.full_like(self.chosen, -1)
        found = jax.lax.cond(few.all(), lambda: none, lambda: jax.vmap(voted)(asking, self.k, candidates, count))
        if in_place:
            return self, self._in_place((jnp.arange(S) <= t[:, None]) & (few[:, None] | found | ~candidates), context)
        pick = lambda *row: self._picked(*row, size=size)  # noqa: E731
        slot, asked, chosen = jax.vmap(pick)(asking, found, few, t, self.asked, self.chosen)
        idle = positions < 0
        after = dataclasses.replace(
            self,
            asked=jnp.where(idle[..., None], self.asked, asked.astype(self.asked.dtype)),
            chosen=jnp.where(idle, self.chosen, chosen),
        )
        index = jnp.maximum(slot, 0)
        taken = lambda x: jnp.take_along_axis(x, index[:, None, :, None], axis=2).swapaxes(1, 2)  # noqa: E731
        seen = slot >= 0
        rank = selection.ranks(seen)
        last = jnp.sum(seen, axis=1, keepdims=True) - 1
        held = jnp.where(seen, jnp.take_along_axis(context.slots.position, index, axis=1), -1)
        places = {"key_place": rank, "query_place": jnp.maximum(last, 0)}
        return after, View(taken(self.k), taken(self.v), held, jnp.zeros_like(slot[:, 0]), **places)

    def _again(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> tuple[Self, View]:
        """As `_chosen`, from the copies in `near`: they are made anew in the rows whose choice is made anew."""
        rule, local, M = self.rule, self.rule.local, self.near.k.shape[2] - 1 - self.rule.local
        positions = jnp.broadcast_to(context.positions, k.shape[:2]).astype(jnp.int32)
        t = positions[:, 0]
        asking = context.rotate(q, jnp.full_like(positions, local))[:, 0]
        count = jnp.broadcast_to(of_prompt(rule.budget, self.prompt, self.limit), t.shape)
        few = rule.initial + count + local >= t + 1
        alike = jax.vmap(lambda q, asked: selection.same_query(q, asked, rule.least))(asking, self.asked)
        again = few | ((self.chosen >= 0).any(-1) & alike)
        stale = (t >= 0) & ~(self.near.built & again)
        at = lambda place: jnp.where(t >= 0, place, local + M)  # noqa: E731
        key = context.rotate(k, jnp.maximum(positions, 0))
        near = self.near.put(key, v, at(t % local)).put(key, v, at(jnp.where(few & (t < M), local + t, local + M)))

        def anew(b: jax.Array, carried: tuple) -> tuple:
            near, asked, chosen = carried
            k, v = (x if len(t) == 1 else x[b] for x in whole)
            place = jnp.arange(k.shape[1])
            candidates = (place >= rule.initial) & (place <= t[b] - local)
            best = best_slots(self._votes(asking[b], k, candidates), candidates, chosen.shape[1], count[b])
            best = jnp.where(again[b], chosen[b], best)
            query = jnp.where(again[b], asked[b], asking[b].astype(asked.dtype))
            some = jnp.where(few[b], jnp.arange(M), jnp.concatenate([jnp.arange(rule.initial), best]))
            near = near.row(b, k, v, t[b], some, context)
            return near, asked.at[b].set(query), chosen.at[b].set(best)

        # Of one row without the row's dimension: XLA would write the new token into a second copy of all keys.
        whole = [x[0] if len(t) == 1 else x for x in (self.k, self.v)]
        order, carried = jnp.argsort(~stale, stable=True), (near, self.asked, self.chosen)
        near, asked, chosen = jax.lax.fori_loop(0, stale.sum(), lambda i, x: anew(order[i], x), carried)
        near = dataclasses.replace(near, built=near.built | (t >= 0))
        place = jnp.broadcast_to(jnp.arange(M), (len(t), M))
        some = jnp.concatenate([place[:, : rule.initial], chosen], axis=1)
        some = jnp.where(few[:, None], jnp.where(place <= t[:, None] - local, place, -1), some)
        slot = jnp.concatenate([jax.vmap(lambda t: in_ring(t, local))(t), some, jnp.full_like(positions, -1)], axis=1)
        found = jnp.take_along_axis(context.slots.position, jnp.maximum(slot, 0), axis=1, mode="clip")
        last = jnp.where(few, t, rule.initial + (chosen >= 0).sum(-1) + local - 1)  # the query's rank
        turns = {
            "turns": jnp.maximum(jnp.stack([t, last], axis=-1), 0)[:, None],
            "turn": (jnp.arange(slot.shape[1]) >= local).astype(jnp.int32) + jnp.zeros_like(slot),
            "first": local,
        }
        held = jnp.where(slot >= 0, found, -1)
        after = dataclasses.replace(self, near=near, asked=asked, chosen=chosen)
        return after, View(near.k.swapaxes(1, 2), near.v.swapaxes(1, 2), held, jnp.zeros_like(t), **turns)

    def _in_place(self, seen: jax.Array, context: Context) -> View:
        """All tokens where they lie, of which the query sees `seen [B, S]`: less than to copy most of them."""
        last = jnp.maximum(jnp.sum(seen, axis=1, keepdims=True) - 1, 0)
        held = jnp.where(seen, context.slots.position[:, : seen.shape[1]], -1)
        places = {"key_place": selection.ranks(seen), "query_place": last}
        return View(self.k.swapaxes(1, 2), self.v.swapaxes(1, 2), held, jnp.zeros_like(self.prompt), **places)

    def _votes(self, q: jax.Array, k: jax.Array, candidates: jax.Array) -> jax.Array:
        """`[S]` of one row: k `[K, S, H]`."""
        kw = {
            "smooth": self.rule.smooth,
            "released": self.rule.released,
            "dtype": jnp.bfloat16 if self.rule.narrow else None,
        }
        return selection.token_select_votes(q, k.swapaxes(0, 1), candidates, **kw)

    def _picked(self, q, chosen, few, t, asked, before, *, size):
        """(slots that a query at position t reads `[size]` in order, -1 behind them; query; chosen `[most]`) of a
        row."""
        rule, S = self.rule, self.k.shape[2]
        if rule.least < 1:
            again = (before >= 0).any() & selection.same_query(q, asked, rule.least)
            chosen, q = jnp.where(again, before, chosen), jnp.where(again, asked, q)
        near = t - rule.local + 1 + jnp.arange(rule.local)
        parts = [jnp.arange(rule.initial), jnp.where(chosen >= 0, chosen, S), near]
        ordered = jnp.sort(jnp.concatenate(parts))[:size]
        some = jnp.where(ordered < S, ordered, -1)
        all_of_them = jnp.where(jnp.arange(size) <= t, jnp.arange(size), -1)
        return jnp.where(few, all_of_them, some), jnp.where(few, asked, q), jnp.where(few, before, chosen)

    @classmethod
    def problems(cls, options: Mapping[str, Any]) -> Iterator[str]:
        """See `Memory.problems`."""
        yield from budget_problems(cls.name, {"budget": options["budget"]})


def in_ring(t: jax.Array, size: int) -> jax.Array:
    """`[size]`: the last token up to t that stands at each place of a ring, token p at p mod size; -1 where none."""
    return jnp.maximum(t - (t - jnp.arange(size)) % size, -1)


def best_slots(score: jax.Array, candidates: jax.Array, most: int, count: jax.Array | int) -> jax.Array:
    """`[most]` indices, ascending, of the `count` candidates that `scores.keep_best` keeps; -1 where there are fewer.

    Args:
      score: `[S]`.
      candidates: bool `[S]`.
      most: static.
      count: at most `most`.
    """
    S = score.shape[0]
    most_of = min(most, S)
    ordered = jnp.where(candidates, score, -jnp.inf)[::-1]  # of equal ones the latest first
    value, index = jax.lax.top_k(ordered, most_of)
    real = (jnp.arange(most_of) < count) & candidates[::-1][index]
    slot = jnp.sort(jnp.where(real, S - 1 - index, S))
    slot = jnp.pad(slot, (0, most - most_of), constant_values=S)
    return jnp.where(slot < S, slot, -1)


def best_of(score: jax.Array, candidates: jax.Array, most: int, count: jax.Array | int) -> jax.Array:
    """bool `[S]`: the candidates of `best_slots`, arguments as there. Nothing is sorted."""
    count = jnp.minimum(count, min(most, score.shape[0]))
    order, least = selection.nth_largest(jnp.where(candidates, score, -jnp.inf), jnp.maximum(count, 1))
    above, equal = candidates & (order > least), candidates & (order == least)
    later = selection.counts(equal[::-1])[::-1]  # how many equal ones stand here and behind
    return (above | (equal & (later <= count - above.sum()))) & (count > 0)


PARTS = {"token_select": TokenSelect}
