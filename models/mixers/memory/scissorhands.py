"""Memory `scissorhands`: what few of the last queries vote against stays (Liu et al. 2023, arXiv:2305.17118)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from models.mixers.memory import scores
from models.mixers.memory.kept import Kept, Rated, Row, policy
from models.mixers.memory.ring import put_last


@policy
@dataclasses.dataclass(frozen=True)
class Scissorhands(Kept):
    """See the module's docstring. `extra["votes"] [B, K, S, window]`: query i has its votes at i mod window."""

    name: ClassVar[str] = "scissorhands"

    @classmethod
    def more(cls, rule, sizes, heads, size, dtype):
        return {"votes": jnp.zeros((sizes.batch, heads, size, rule.window), jnp.int8)}

    @classmethod
    def extra_bytes(cls, rule):
        return rule.window

    def rate(self, row: Row) -> Rated:
        votes = scores.by_key_head(scores.scissorhands(row.p, row.x > -jnp.inf), row.K)  # [K, T, S]
        ring = put_last(row.extra["votes"], votes, row.query, row.newest)
        score = -ring.sum(-1, dtype=jnp.int32).astype(row.score.dtype)
        return Rated.of(row, score, extra={"votes": ring})

    def stays(self, rated: Rated, row: Row) -> jax.Array:
        if self.rule.drop == 1:
            return super().stays(rated, row)
        bounds = self.bounds(row.prompt)
        full = row.held.sum(-1) > bounds["budget"]
        bounds["budget"] = bounds["budget"] + jnp.where(full, 1 - self.rule.drop, 0)
        return scores.keep(rated.score, row.position, row.newest, **bounds)


PARTS = {"scissorhands": Scissorhands}
