"""Memory `prefix_kv`: the best of a layer's prompt, then one fixed place leaves a step (Wang et al. 2024,
arXiv:2412.03409)."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from models.mixers.memory import scores
from models.mixers.memory.kept import Kept, Rated, Row, policy
from models.mixers.memory.ring import LAST


@policy
@dataclasses.dataclass(frozen=True)
class PrefixKV(Kept):
    """See the module's docstring. All heads of a layer keep the same tokens.

    `extra["stays"] [B, 1, S]`: tokens before the place that leaves. `told["leaving"] [B]`: that place. What a layer
    forgets, `ratio`, is one number or one a layer, `shares` (of `budgets.prefix_search` over texts like those to come).
    """

    name: ClassVar[str] = "prefix_kv"
    shared: ClassVar[bool] = True

    @classmethod
    def ruled(cls, sizes, options):
        rule, shares = super().ruled(sizes, options), numbers(options.get("shares", ""))
        if (budget := options.get("budget")) and not options.get("bytes"):
            return cls.budgeted(rule, budget * sizes.length if budget < 1 else int(budget), sizes)
        if not shares:
            return rule
        if len(shares) != sizes.layers:
            raise ValueError(
                f"generate.{cls.name}.shares has {len(shares)} numbers and the model {sizes.layers} layers; give one "
                "for each."
            )
        return dataclasses.replace(rule, ratio=shares[sizes.layer])

    @classmethod
    def budgeted(cls, rule, count, sizes):
        if count < rule.sinks + 1:
            raise ValueError(
                f"generate.{cls.name} has {max(count, 0):g} tokens a layer, and {rule.sinks + 1} always stay; use e.g. "
                f"generate.{cls.name}.budget={2 * rule.sinks + 2}."
            )
        return dataclasses.replace(rule, ratio=max(0.0, 1 - count / sizes.length))

    @classmethod
    def room(cls, rule, sizes):
        """Of n tokens fewer than (1 - ratio) n + 1 stay; of a short prompt the sinks and the last one; nothing leaves
        before there is a token at the place that does."""
        return max(math.ceil((1 - rule.ratio) * sizes.length), rule.sinks + 1, rule.distance) + 1

    @classmethod
    def more(cls, rule, sizes, heads, size, dtype):
        return {"stays": jnp.zeros((sizes.batch, heads, size), bool)}

    @classmethod
    def remembered(cls, rule, sizes):
        return {"leaving": jnp.full((sizes.batch,), rule.sinks, jnp.int32)}

    def asks(self, query, newest, dtype):
        return {"all": (query >= 0).astype(dtype)}

    def forgotten(self, row: Row) -> jax.Array:
        """Tokens of the prompt that leave, []."""
        return jnp.minimum(self.of_prompt(float(self.rule.ratio), row.prompt), self.protected(row.prompt))

    def protected(self, prompt: jax.Array) -> jax.Array:
        return jnp.maximum(0, prompt - self.rule.sinks - 1)

    def place(self, stay: jax.Array) -> jax.Array:
        """The place that will leave a cache in which `stay` tokens of the prompt stay."""
        distance = self.rule.distance
        leaving = stay + distance if distance <= 0 else jnp.full_like(stay, distance)
        return jnp.where(leaving >= 1, leaving, stay // 2)

    def rate(self, row: Row) -> Rated:
        if row.one:
            early = (row.held.sum() - 1 < row.told["leaving"]) & (row.position == row.newest)
            return Rated.of(row, row.score, extra={"stays": row.extra["stays"] | early})
        sums = row.sums["all"].sum(0, keepdims=True) / row.p.shape[0]
        return Rated.of(row, row.score + sums, told={"leaving": self.place(row.prompt - self.forgotten(row))})

    def stays(self, rated: Rated, row: Row) -> jax.Array:
        if row.one:
            full = row.held.sum() - row.length * jnp.asarray(1 - self.rule.ratio, row.score.dtype) >= 1
            free = row.held & ~rated.extra["stays"]
            leaves = free & (row.position == jnp.where(free, row.position, LAST).min())
            return row.held & ~(leaves & full)
        return self.best(rated, row)[0]

    def best(self, rated: Rated, row: Row) -> tuple[jax.Array, jax.Array]:
        """(bool `[1, S]` what stays of a prompt, target `[1, S]`: where each token goes, -1: nowhere)."""
        middle = row.held & (row.position >= self.rule.sinks) & (row.position < row.newest)
        count = row.prompt - self.rule.sinks - 1 - self.forgotten(row)
        kept = (row.held & ~middle) | scores.keep_best(rated.score, middle, count, row.position)
        return kept, jnp.where(kept, jnp.arange(kept.shape[-1]), -1)

    def merged(self, rated: Rated, kept: jax.Array, row: Row) -> Rated:
        if row.one:
            return rated
        rank = jnp.argsort(jnp.argsort(jnp.where(kept, row.position, LAST), axis=-1), axis=-1)
        return rated._replace(extra=rated.extra | {"stays": kept & (rank < rated.told["leaving"])})


def numbers(text: str) -> tuple[float, ...]:
    """The numbers of a comma list."""
    return tuple(float(word) for word in text.split(",") if word.strip())


PARTS = {"prefix_kv": PrefixKV}
