"""Memory `elastic`: as prefix_kv, and what leaves a prompt is averaged into what stays (Liu et al. 2024,
arXiv:2407.18121)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from models.mixers.memory import merging
from models.mixers.memory.kept import Rated, Row, policy
from models.mixers.memory.prefix_kv import PrefixKV
from models.mixers.memory.ring import LAST


@policy
@dataclasses.dataclass(frozen=True)
class Elastic(PrefixKV):
    """See the module's docstring. In later pieces of a prompt an average counts as one token."""

    name: ClassVar[str] = "elastic"

    def place(self, stay: jax.Array) -> jax.Array:
        if self.rule.released and self.rule.distance <= 0:
            return jnp.maximum(stay + self.rule.distance, 0)
        return super().place(stay)

    def best(self, rated: Rated, row: Row) -> tuple[jax.Array, jax.Array]:
        score, position, forget = rated.score[0], row.position[0], self.forgotten(row)
        if not self.rule.released:
            kept, target = merging.elastic(score, forget, self.rule.sinks, position)
            return kept[None], target[None]
        order = jnp.argsort(jnp.where(position >= 0, position, LAST))
        count = jnp.sum(position >= 0)
        kept, target = merging.elastic_released_targets(score[order], forget, self.rule.sinks, count)
        back = jnp.argsort(order)
        return kept[back][None], jnp.where(target >= 0, order[jnp.maximum(target, 0)], -1)[back][None]

    def merged(self, rated: Rated, kept: jax.Array, row: Row) -> Rated:
        rated = super().merged(rated, kept, row)
        if row.one:
            return rated
        target = self.best(rated, row)[1][0]
        S = target.shape[0]
        if self.rule.released:
            added = (target[:, None] == jnp.arange(S)[None]).astype(row.v.dtype)
            more = lambda x: jnp.einsum("ts,kth->ksh", added, x, precision="highest")  # noqa: E731
            means = lambda x: (x + more(x)) / (1 + added.sum(0))[None, :, None]  # noqa: E731
        else:
            wide = jnp.broadcast_to(target + 1, (row.K, S))
            means = lambda x: jnp.where(kept[..., None], merging.merge(x, wide, S)[0], x)  # noqa: E731
        return rated._replace(k=row.k if self.rule.values_only else means(row.k), v=means(row.v))


PARTS = {"elastic": Elastic}
