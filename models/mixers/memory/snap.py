"""Memories `snap` and `pyramid`: what the end of the prompt looked at stays, and all that is drawn.

Li et al. 2024 (SnapKV, arXiv:2404.14469); Cai et al. 2024 (PyramidKV, arXiv:2406.02069): budgets that fall with depth.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from models.mixers.memory import budgets, scores
from models.mixers.memory.kept import Kept, Rated, Row, policy
from models.mixers.memory.ring import LAST


@policy
@dataclasses.dataclass(frozen=True)
class Snap(Kept):
    """See the module's docstring. Where more is drawn than there are slots for, the least liked leaves."""

    name: ClassVar[str] = "snap"
    draws: ClassVar[bool] = True

    @classmethod
    def room(cls, rule, sizes):
        return super().room(rule, sizes) + sizes.drawn

    def rate(self, row: Row) -> Rated:
        if row.one:
            return Rated.of(row, row.score)
        rule, N = self.rule, row.p.shape[0]
        order = jnp.repeat(jnp.argsort(jnp.where(row.held, row.position, LAST), axis=-1), N // row.K, axis=0)
        last = (row.query > row.newest - rule.window) & (row.query >= 0)
        inside = row.held & (row.position <= row.newest - rule.window)
        empty = 0.0 if rule.pooling == "mean" else -jnp.inf
        sums = scores.column_sums(row.p, last.astype(row.p.dtype))  # [N, S]
        sums = jnp.where(jnp.repeat(inside, N // row.K, axis=0), sums, empty)
        pooled = scores.pool(jnp.take_along_axis(sums, order, axis=-1), rule.kernel, rule.pooling)
        back = scores.by_key_head(jnp.take_along_axis(pooled, jnp.argsort(order, axis=-1), axis=-1), row.K)
        few = row.length <= self.bounds(row.prompt)["budget"]
        return Rated.of(row, jnp.where(inside & ~few, back, 0))

    def bounds(self, prompt):
        return {"budget": self.of_prompt(self.rule.budget, prompt), "recent": self.rule.window, "sinks": 0}

    def stays(self, rated: Rated, row: Row) -> jax.Array:
        if row.one:  # Nothing leaves, as long as a slot is free.
            return scores.keep_but_one(rated.score, row.position, row.newest, budget=self.most, recent=0)
        return super().stays(rated, row)

    @classmethod
    def problems(cls, options: Mapping[str, Any]) -> Iterator[str]:
        yield from super().problems(options)
        if options["kernel"] % 2 == 0:
            yield (
                f"generate.{cls.name}.kernel={options['kernel']} has no middle; use "
                f"generate.{cls.name}.kernel={options['kernel'] + 1}."
            )


@policy
@dataclasses.dataclass(frozen=True)
class Pyramid(Snap):
    """As snap; layer `layer` of `layers` has its own budget, that of the longest text."""

    name: ClassVar[str] = "pyramid"

    @classmethod
    def ruled(cls, sizes, options):
        rule = super().ruled(sizes, options)
        rule = dataclasses.replace(rule, layer=sizes.layer, layers=sizes.layers)
        return rule if options.get("bytes") else cls.budgeted(rule, budgets.tokens(rule.budget, sizes.length), sizes)

    @classmethod
    def budgeted(cls, rule, count, sizes):
        """`count` tokens are the mean over the layers, which they exceed as released: by less than one a layer."""
        rule = super().budgeted(rule, count, sizes)
        counts = budgets.pyramid(count, rule.window, sizes.length, rule.layers, rule.beta)
        return dataclasses.replace(rule, budget=rule.window + counts[rule.layer])


PARTS = {"snap": Snap, "pyramid": Pyramid}
