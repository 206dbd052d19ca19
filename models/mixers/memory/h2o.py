"""Memory `h2o`: the recent tokens and those that got the most attention (Zhang et al. 2023, arXiv:2306.14048)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from models.mixers.memory import scores
from models.mixers.memory.kept import Kept, Rated, Row, policy


@policy
@dataclasses.dataclass(frozen=True)
class H2O(Kept):
    """See the module's docstring. `released`: the token that leaves the recent ones is out of sight for one pass."""

    name: ClassVar[str] = "h2o"

    def read(self, q, k, v, context):
        after, view = super().read(q, k, v, context)
        if not self.rule.released or k.shape[1] > 1:
            return after, view
        bounds = self.bounds(self.prompt)
        leaving = jnp.where(self.length > bounds["budget"], self.length - bounds["recent"], -1)
        return after, view._replace(keep=(after.position != leaving[:, None, None])[:, :, None])

    def asks(self, query, newest, dtype):
        return {"all": (query >= 0).astype(dtype)}

    def rate(self, row: Row) -> Rated:
        return Rated.of(row, scores.h2o(row.score, row.sums["all"]))


PARTS = {"h2o": H2O}
