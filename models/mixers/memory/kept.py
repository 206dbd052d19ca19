"""What every policy that evicts shares: C tokens a layer in fixed slots, whoever of them is worth keeping.

The rule in one line: attend to the tokens that are kept and to the T new ones, then keep some of both. A policy is a
subclass that says what a token is worth (`rate`) and which tokens stay (`stays`), of one row of the batch at a time,
with the formulas of `scores`, `merging` and `budgets`; its options are the fields of its rule in `rules`, under which
`replay` runs the same policy over a whole text.

A pass of one token writes it into the slot that is free, and what leaves gives up its slot: nothing is moved or
sorted. A pass of more tokens, a piece of the prompt, gathers what stays. A prompt that is read in one piece and is then
followed by single tokens is `replay`, token for token. In several pieces, each piece attends to what the pieces before
it left.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from kernels.column_sums import Noise
from models.mixers import slots
from models.mixers.context import Context
from models.mixers.memory import Looks, Memory, Sizes, Sums, View, budgets, scores
from models.mixers.memory.ring import in_order
from models.mixers.memory.rules import RULES


class Row(NamedTuple):
    """One row's pass: S tokens in slots, the new ones among them, and what the T new queries made of them.

    `J` is K, or 1 where all heads keep the same tokens. Queries of padding have position -1 and weights 0. Of a long
    prompt the T queries here are only the last ones, `Kept.tail`; `sums` are over all of them.
    """

    p: jax.Array  # [N, T, S] weights of attention, 0 where a token is not seen
    x: jax.Array  # [N, T, S] logits, -inf where it is not
    sums: dict[str, jax.Array]  # [K, S] by the names of `Kept.asks`
    query: jax.Array  # [T] positions of the queries
    position: jax.Array  # [J, S] of the tokens, -1 = an empty slot
    score: jax.Array  # [J, S] of the pass before, 0 of new tokens
    extra: dict[str, jax.Array]  # [J, S, ...] what else a token has
    k: jax.Array  # [K, S, H]
    v: jax.Array  # [K, S, H]
    told: dict[str, jax.Array]  # [...] what a row remembers beside its tokens
    length: jax.Array  # [] tokens of the text, the new ones included
    prompt: jax.Array  # [] those of them that were read in pieces
    unread: jax.Array  # [] see `Looks.unread`

    @property
    def K(self) -> int:
        return self.k.shape[0]

    @property
    def one(self) -> bool:
        """Whether this is a step of one token, not a piece of a prompt."""
        return self.query.shape[0] == 1

    @property
    def held(self) -> jax.Array:
        return self.position >= 0

    @property
    def newest(self) -> jax.Array:
        return self.length - 1


class Rated(NamedTuple):
    """What a pass makes of a row's tokens: `score [J, S]`, and the rest as in `Row`."""

    score: jax.Array
    extra: dict[str, jax.Array]
    told: dict[str, jax.Array]
    k: jax.Array
    v: jax.Array

    @classmethod
    def of(cls, row: Row, score: jax.Array, **changed: dict[str, jax.Array]) -> "Rated":
        """The row with another score, and `extra` or `told` where they changed."""
        return cls(score, row.extra | changed.get("extra", {}), row.told | changed.get("told", {}), row.k, row.v)


@dataclasses.dataclass(frozen=True)
class Kept(Memory):
    """Slots for the tokens that stay, one of them free between two passes; see the module's docstring.

    Attributes:
      k, v: `[B, K, S, H]`.
      position: `[B, J, S]` int32, -1 = an empty slot; J is 1 where `shared`.
      score: `[B, J, S]` what the policy thinks of each token, float32 or wider.
      extra: `[B, J, S, ...]` what else a token has.
      told: `[B, ...]` what a row remembers beside its tokens.
      length: `[B]` tokens so far; prompt: `[B]` those of them that were read in pieces.
      rule: the options.
      limit: static: tokens that a row may come to have.
      most: static: tokens that stay after a pass, at most.
      shared: whether all heads keep the same tokens.
    """

    looks: ClassVar[bool] = True
    sums: ClassVar[bool] = True
    pieces: ClassVar[bool] = False
    alone: ClassVar[bool] = True
    name: ClassVar[str] = ""
    shared: ClassVar[bool] = False

    k: jax.Array
    v: jax.Array
    position: jax.Array
    score: jax.Array
    extra: dict[str, jax.Array]
    told: dict[str, jax.Array]
    length: jax.Array
    prompt: jax.Array
    rule: Any = dataclasses.field(metadata={"static": True})
    limit: int = dataclasses.field(metadata={"static": True})
    most: int = dataclasses.field(metadata={"static": True})

    # What a policy says.

    @classmethod
    def ruled(cls, sizes: Sizes, options: Mapping[str, Any]) -> Any:
        """The rule with these options; numbers of tokens are whole, shares are not."""
        known = {name: whole(options[name]) for name in RULES[cls.name].__dataclass_fields__ if name in options}
        return RULES[cls.name](**known)

    @classmethod
    def room(cls, rule: Any, sizes: Sizes) -> int:
        """Tokens that stay after a pass, at most."""
        return max(budgets.tokens(rule.budget, sizes.length), least(rule, sizes.length))

    @classmethod
    def more(cls, rule: Any, sizes: Sizes, heads: int, size: int, dtype: Any) -> dict[str, jax.Array]:
        """`extra` before the first token, `[B, J, S, ...]`."""
        return {}

    @classmethod
    def remembered(cls, rule: Any, sizes: Sizes) -> dict[str, jax.Array]:
        """`told` before the first token, `[B, ...]`."""
        return {}

    @classmethod
    def extra_bytes(cls, rule: Any, sizes: Sizes) -> int:
        """Bytes of a token of one key head beside its key and value, position and score."""
        return 0

    def asks(self, query: jax.Array, newest: jax.Array, dtype: Any) -> dict[str, jax.Array]:
        """`[T]` weights of the queries in each of the column sums that `rate` reads; positions -1 are padding.

        Where `noise` is not None the sums are of noisy scores, and only long prompts have them.
        """
        return {}

    @property
    def noise(self) -> Noise | None:
        """The noise of the scores whose columns are summed."""
        return None

    @property
    def tail(self) -> int:
        """Last queries of a long prompt whose weights `rate` reads one by one, at least 2."""
        return max(2, getattr(self.rule, "window", 2))

    def rate(self, row: Row) -> Rated:
        """What the tokens of a row are worth after a pass."""
        raise NotImplementedError

    def stays(self, rated: Rated, row: Row) -> jax.Array:
        """bool `[J, S]`: the tokens that stay: sinks, the recent ones, and the best of the rest."""
        kw = self.bounds(row.prompt)
        if row.one:
            return scores.keep_but_one(rated.score, row.position, row.newest, **kw)
        return scores.keep(rated.score, row.position, row.newest, **kw)

    def merged(self, rated: Rated, kept: jax.Array, row: Row) -> Rated:
        """Keys and values once it is known what stays; most policies drop what does not.

        In a step nothing leaves a row without a new token, and its keys and values must be those of before, as must
        `extra [J, S, ...]` with more dimensions that `rate` makes: nobody reads and writes all of them to choose.
        """
        return rated

    # What they share.

    @classmethod
    def empty(cls, sizes: Sizes, **options: Any) -> Self:
        """No token yet."""
        rule = cls.ruled(sizes, options)
        if options.get("bytes"):
            rule = cls.within(rule, sizes, options["bytes"])
        most = min(cls.room(rule, sizes), sizes.length)
        B, K, H, J, S = sizes.batch, sizes.K, sizes.H, 1 if cls.shared else sizes.K, most + 1
        wide = jnp.promote_types(sizes.dtype, jnp.float32)
        none = jnp.zeros((B,), jnp.int32)
        return cls(
            jnp.zeros((B, K, S, H), sizes.dtype),
            jnp.zeros((B, K, S, H), sizes.dtype),
            jnp.full((B, J, S), -1, jnp.int32),
            jnp.zeros((B, J, S), wide),
            cls.more(rule, sizes, J, S, wide),
            cls.remembered(rule, sizes),
            none, none, rule, sizes.length, most,
        )  # fmt: skip

    @classmethod
    def within(cls, rule: Any, sizes: Sizes, size: int) -> Any:
        """The rule whose layers take `size` bytes a row together, the free slot included."""
        itemsize = jnp.dtype(sizes.dtype).itemsize
        extra = 4 + jnp.promote_types(sizes.dtype, jnp.float32).itemsize + cls.extra_bytes(rule, sizes)
        kw = {"layers": sizes.layers, "heads": sizes.K, "width": sizes.H, "itemsize": itemsize, "extra": extra}
        return cls.budgeted(rule, budgets.from_bytes(size, **kw) - 1, sizes)

    @classmethod
    def budgeted(cls, rule: Any, count: int, sizes: Sizes) -> Any:
        """The rule with `count` tokens a layer.

        Errors: ValueError where they are fewer than those that always stay.
        """
        needed = max(1, least(rule, sizes.length))
        if count < needed:
            raise ValueError(
                f"generate.{cls.group or cls.name}.bytes leaves {max(count, 0)} tokens a layer, and {needed} always "
                "stay; use more bytes."
            )
        return dataclasses.replace(rule, budget=count)

    def bounds(self, prompt: jax.Array) -> dict[str, Any]:
        """`budget`, `recent` and `sinks` for `scores.keep`: shares are of the `prompt` tokens."""
        told = lambda value: self.of_prompt(value, prompt)  # noqa: E731
        return {"budget": told(self.rule.budget), "recent": told(self.rule.recent), "sinks": self.rule.sinks}

    def of_prompt(self, value: float, prompt: jax.Array) -> jax.Array | int:
        """`of_prompt` of a text of at most `limit` tokens."""
        return of_prompt(value, prompt, self.limit)

    def read(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> tuple[Self, View]:
        """See `Memory.read`. One token takes a free slot; more stand behind the slots, until `looked`."""
        B, T = k.shape[:2]
        positions = jnp.broadcast_to(context.positions, (B, T)).astype(jnp.int32)
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        new = jnp.sum(positions >= 0, axis=1, dtype=jnp.int32)
        after = self._taken(k, v, positions) if T == 1 else self._beside(k, v, positions, fresh=context.fresh)
        after = dataclasses.replace(after, length=self.length + new, prompt=self.prompt + (new if T > 1 else 0))
        return after, View(after.k.swapaxes(1, 2), after.v.swapaxes(1, 2), after.position, jnp.zeros_like(new))

    def _taken(self, k: jax.Array, v: jax.Array, positions: jax.Array) -> Self:
        slot = first_lowest(self.position)  # [B, J]: an empty one
        here = jnp.arange(self.position.shape[-1]) == slot[..., None]
        zero = lambda x: jnp.zeros_like(x[:, :, :1])  # noqa: E731
        fill = lambda x: written(x, zero(x), slot) if x.ndim > 3 else jnp.where(here, zero(x), x)  # noqa: E731
        return dataclasses.replace(
            self,
            k=written(self.k, k, slot),
            v=written(self.v, v, slot),
            position=jnp.where(here, positions[:, None], self.position),
            score=fill(self.score),
            extra=jax.tree.map(fill, self.extra),
        )

    def _beside(self, k: jax.Array, v: jax.Array, positions: jax.Array, *, fresh: bool) -> Self:
        J, T = self.position.shape[1], positions.shape[1]
        place = jnp.broadcast_to(positions[:, None], (len(positions), J, T))
        join = lambda old, new: new if fresh else jnp.concatenate([old, new.astype(old.dtype)], axis=2)  # noqa: E731
        empty = lambda x: jnp.zeros((*x.shape[:2], T, *x.shape[3:]), x.dtype)  # noqa: E731
        return dataclasses.replace(
            self,
            k=join(self.k, k.astype(self.k.dtype)),
            v=join(self.v, v.astype(self.v.dtype)),
            position=join(self.position, place),
            score=join(self.score, empty(self.score)),
            extra=jax.tree.map(lambda x: join(x, empty(x)), self.extra),
        )

    def looked(self, looks: Looks, context: Context) -> Self:
        """See `Memory.looked`: what stays of the tokens, in their slots. A row without a new token stays as it was."""
        B, K, G, T, _ = looks.weights.shape
        query = jnp.broadcast_to(context.positions, (B, T))
        if self.noise is not None:
            return self._after(looks, query, {}, prompt=T > 1)

        def added(p, query, newest):
            asked = self.asks(query, newest, p.dtype)
            return {name: scores.column_sums(p, w).reshape(K, G, -1).sum(1) for name, w in asked.items()}

        sums = jax.vmap(added)(looks.weights.reshape(B, K * G, T, -1), query, self.length - 1)
        return self._after(looks, query, sums, prompt=T > 1)

    def summed(self, sums: Sums, context: Context) -> Self:
        """See `Memory.summed`."""
        position = context.positions
        asked = jax.vmap(lambda query, newest: self.asks(query, newest, self.score.dtype))(position, self.length - 1)
        found = {name: sums.columns(weights, self.noise) for name, weights in asked.items()}
        count = jnp.sum(position >= 0, axis=1)[:, None]
        which = jnp.maximum(count - self.tail, 0) + jnp.arange(min(self.tail, position.shape[1]))
        which = jnp.where(which < count, which, -1)
        query = jnp.where(which >= 0, jnp.take_along_axis(position, jnp.maximum(which, 0), axis=1), -1)
        return self._after(sums.rows(which), query, found, prompt=True)

    def _after(self, looks: Looks, query: jax.Array, sums: dict[str, jax.Array], *, prompt: bool) -> Self:
        B, K, G, T, S = looks.weights.shape
        by_head = lambda x: x.reshape(B, K * G, T, S)  # noqa: E731
        rows = Row(
            by_head(looks.weights), by_head(looks.logits), sums, query, self.position, self.score, self.extra, self.k,
            self.v, self.told, self.length, self.prompt, looks.unread,
        )  # fmt: skip
        rated, kept = jax.vmap(self._judged)(rows)
        after = dataclasses.replace(self, position=jnp.where(kept, self.position, -1), **rated._asdict())
        return after._gathered(kept) if prompt else after

    def _judged(self, row: Row) -> tuple[Rated, jax.Array]:
        """(what a pass makes of a row, bool `[J, S]` what stays of it)."""
        rated = self.rate(row)
        kept = self.stays(rated, row) & row.held
        rated = self.merged(rated, kept, row)
        idle = ~jnp.any(row.query >= 0)
        before = Rated(row.score, row.extra, row.told, row.k, row.v)
        same = lambda old, new: new is old or (row.one and old.ndim > 2)  # noqa: E731 (see `merged`)
        choose = lambda old, new: new if same(old, new) else jnp.where(idle, old, new.astype(old.dtype))  # noqa: E731
        return jax.tree.map(choose, before, rated), jnp.where(idle, row.held, kept)

    def _gathered(self, kept: jax.Array) -> Self:
        """The tokens that stay, in the order of the text, from the first slot on."""
        order, missing = in_order(kept, self.position, self.most + 1)

        def moved(x: jax.Array, order: jax.Array) -> jax.Array:
            index = jnp.broadcast_to(order, (*x.shape[:2], order.shape[-1]))
            x = jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 3)), axis=2)
            return jnp.pad(x, [(0, 0), (0, 0), (0, missing), *[(0, 0)] * (x.ndim - 3)])

        return dataclasses.replace(
            self,
            k=moved(self.k, order),
            v=moved(self.v, order),
            position=moved(self.position + 1, order) - 1,
            score=moved(self.score, order),
            extra=jax.tree.map(lambda x: moved(x, order), self.extra),
        )

    @classmethod
    def problems(cls, options: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with the options of this policy, a sentence each, with a value that works."""
        yield from budget_problems(cls.group or cls.name, options)


def policy(cls: type[Kept]) -> type[Kept]:
    """Registers a policy's class: the leaves of `Kept`, its rule and sizes static."""
    return jax.tree_util.register_dataclass(cls)


def whole(value: Any) -> Any:
    """A number of tokens, which is 1 or more, as a whole number; a share, and what is no number, as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def of_prompt(value: float, prompt: jax.Array, limit: int) -> jax.Array | int:
    """`budgets.tokens(value, prompt)` of a traced `prompt` of at most `limit` tokens; a whole number is itself."""
    if not isinstance(value, float):
        return value
    return jnp.asarray(np.floor(value * np.arange(limit + 1)).astype(np.int32))[prompt]


def least(rule: Any, length: int) -> int:
    """Tokens that stay whatever they are worth, of a text of `length` tokens."""
    recent = getattr(rule, "recent", getattr(rule, "window", 0))
    return budgets.tokens(recent, length) + getattr(rule, "sinks", 0)


def first_lowest(x: jax.Array) -> jax.Array:
    """`argmin(x [..., S], -1)` of whole numbers as int32, of plain reductions, which are faster."""
    S = x.shape[-1]
    lowest = x == jnp.min(x, axis=-1, keepdims=True)
    return jnp.min(jnp.where(lowest, jnp.arange(S, dtype=jnp.int32), S), axis=-1)


def written(cache: jax.Array, new: jax.Array, slot: jax.Array) -> jax.Array:
    """`cache [B, K, S, ...]` with one token `new [B, K, 1, ...]` in the slots `[B, K]`, or `[B, 1]` for all heads."""
    if slot.shape[1] == 1:
        return slots.put(cache, new, slot[:, 0], axis=2)
    put = lambda old, new, at: jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=0)  # noqa: E731
    return jax.vmap(jax.vmap(put))(cache, new.astype(cache.dtype), slot)


def last(row: Row, x: jax.Array) -> jax.Array:
    """`[N, S]`: of `x [N, T, S]` the row of the newest query."""
    if row.one:
        return x[:, 0]
    return jnp.take(x, jnp.argmax(row.query), axis=1)


def budget_problems(name: str, options: Mapping[str, Any]) -> Iterator[str]:
    """Budgets that are neither tokens nor a share, or too small for what always stays."""
    for key in ("budget", "recent"):
        value = options.get(key, 0)
        if value > 1 and value != int(value):
            yield (
                f"generate.{name}.{key}={value} is neither a number of tokens nor a share of the prompt within 0..1; "
                f"use e.g. generate.{name}.{key}={int(value)} or {value / 10 ** len(str(int(value))):.2g}."
            )
            return
    budget, sinks = options.get("budget", 0), options.get("sinks", 0)
    key = "recent" if "recent" in options else "window"
    recent = options.get(key, 0)
    if options.get("bytes") or not budget:
        return
    if (budget < 1) != (0 < recent < 1) and recent:
        yield (
            f"generate.{name}.budget={budget} and generate.{name}.{key}={recent} are a share and a number of tokens; "
            f"use two of a kind, e.g. generate.{name}.{key}={budget / 2 if budget < 1 else max(1, int(budget) // 2)}."
        )
    elif budget < recent + (sinks if budget >= 1 else 0):
        yield (
            f"generate.{name}.budget={budget} is less than the sinks and recent tokens that always stay, "
            f"{sinks} + {recent}; use e.g. generate.{name}.budget={recent + (sinks if budget >= 1 else 0)}."
        )
