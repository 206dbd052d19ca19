"""Memory `random`: the control of all policies: each token draws once how long it stays."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from kernels.attention.noise import gumbel
from models.mixers.memory.kept import Kept, Rated, Row, policy


@policy
@dataclasses.dataclass(frozen=True)
class Random(Kept):
    """See the module's docstring."""

    name: ClassVar[str] = "random"
    group: ClassVar[str] = "lot"

    def rate(self, row: Row) -> Rated:
        head = jnp.arange(row.K)[:, None]
        return Rated.of(row, gumbel(self.rule.seed, head, 0, row.position, dtype=row.score.dtype))


PARTS = {"random": Random}
