"""Memory `scissorhands`: what few of the last queries vote against stays (Liu et al. 2023, arXiv:2305.17118)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from models.mixers.memory import ring, scores
from models.mixers.memory.kept import Kept, Rated, Row, policy


@policy
@dataclasses.dataclass(frozen=True)
class Scissorhands(Kept):
    """See the module's docstring. `extra["votes"] [B, K, S, G, W]` uint32, a bit a vote of each of the G query heads of
    a key head: that of query i is bit i mod window, 32 in a word."""

    name: ClassVar[str] = "scissorhands"

    @classmethod
    def more(cls, rule, sizes, heads, size, dtype):
        words = -(-rule.window // ring.BITS)
        return {"votes": jnp.zeros((sizes.batch, heads, size, sizes.N // sizes.K, words), jnp.uint32)}

    @classmethod
    def extra_bytes(cls, rule, sizes):
        return 4 * -(-rule.window // ring.BITS) * (sizes.N // sizes.K)

    def rate(self, row: Row) -> Rated:
        (N, T, S), K = row.p.shape, row.K
        votes = scores.scissorhands(row.p, row.x > -jnp.inf).reshape(K, N // K, T, S)
        votes = ring.put_votes(row.extra["votes"], votes, row.query, row.newest, self.rule.window)
        against = jax.lax.population_count(votes).sum((-2, -1), dtype=jnp.int32)
        return Rated.of(row, -against.astype(row.score.dtype), extra={"votes": votes})

    def stays(self, rated: Rated, row: Row) -> jax.Array:
        if self.rule.drop == 1:
            return super().stays(rated, row)
        bounds = self.bounds(row.prompt)
        full = row.held.sum(-1) > bounds["budget"]
        bounds["budget"] = bounds["budget"] + jnp.where(full, 1 - self.rule.drop, 0)
        return scores.keep(rated.score, row.position, row.newest, **bounds)


PARTS = {"scissorhands": Scissorhands}
