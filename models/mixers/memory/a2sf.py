"""Memory `a2sf`: as h2o, and attention is forgotten by `alpha` a step (Jo et al. 2024, arXiv:2407.20485)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from models.mixers.memory import scores
from models.mixers.memory.kept import Kept, Rated, Row, policy


@policy
@dataclasses.dataclass(frozen=True)
class A2SF(Kept):
    """See the module's docstring. `released`: the prompt is scored, and nothing leaves after it.

    `told["rated"] [B]`: tokens of the text whose queries are in the scores.
    """

    name: ClassVar[str] = "a2sf"
    draws: ClassVar[bool] = True

    @classmethod
    def room(cls, rule, sizes):
        return super().room(rule, sizes) + (sizes.drawn if rule.released else 0)

    @classmethod
    def remembered(cls, rule, sizes):
        return {"rated": jnp.zeros((sizes.batch,), jnp.int32)}

    def asks(self, query, newest, dtype):
        return {"all": scores.a2sf_decay(self.rule.alpha, newest - query, dtype) * (query >= 0)}

    def rate(self, row: Row) -> Rated:
        told = {"rated": row.length}
        if row.one:
            score = scores.a2sf(row.score, row.sums["all"], self.rule.alpha)
            return Rated.of(row, row.score if self.rule.released else score, told=told)
        before = scores.a2sf_decay(self.rule.alpha, row.length - row.told["rated"], row.p.dtype)
        return Rated.of(row, before * row.score + row.sums["all"], told=told)

    def stays(self, rated: Rated, row: Row) -> jnp.ndarray:
        return row.held if self.rule.released and row.one else super().stays(rated, row)


PARTS = {"a2sf": A2SF}
