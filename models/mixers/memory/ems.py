"""Memory `ems`: global and local attention; what leaves is merged into the most similar key (Li et al. 2024,
arXiv:2412.08521)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from models.mixers.memory import merging, scores
from models.mixers.memory.kept import Kept, Rated, Row, policy, written
from models.mixers.memory.ring import put_last


@policy
@dataclasses.dataclass(frozen=True)
class EMS(Kept):
    """See the module's docstring. Of each token of each key head `extra` holds: `columns`, what all queries gave it;
    `rows [..., window]`, what the last ones did; `count`, of how many tokens it is the mean; `norm`, of its key."""

    name: ClassVar[str] = "ems"

    @classmethod
    def more(cls, rule, sizes, heads, size, dtype):
        none = jnp.zeros((sizes.batch, heads, size), dtype)
        return {"columns": none, "count": none, "norm": none, "rows": jnp.zeros((*none.shape, rule.window), dtype)}

    @classmethod
    def extra_bytes(cls, rule, sizes):
        return 4 * (rule.window + 3)

    def asks(self, query, newest, dtype):
        return {"all": (query >= 0).astype(dtype)}

    def rate(self, row: Row) -> Rated:
        p = scores.by_key_head(row.p, row.K)  # [K, T, S]
        columns = row.extra["columns"] + row.sums["all"]
        rows = put_last(row.extra["rows"], p, row.query, row.newest)
        count = jnp.maximum(row.extra["count"], 1)
        norm = jnp.linalg.norm(row.k, axis=-1)
        if row.one:  # That of the new key alone: the others' are known.
            new = row.position == row.newest
            key = jnp.take_along_axis(row.k, jnp.argmax(new, axis=-1)[:, None, None], axis=1)
            norm = jnp.where(new, jnp.linalg.norm(key, axis=-1), row.extra["norm"])
        inside = lambda x: jnp.where(row.held, x, 0)  # noqa: E731
        score = scores.ems(inside(columns), inside(rows.sum(-1)))
        return Rated.of(row, score, extra={"columns": columns, "rows": rows, "count": count, "norm": norm})

    def best(self, rated: Rated, row: Row) -> tuple[jax.Array, jax.Array]:
        """(bool `[K, S]`, target `[K, S]`) of a prompt."""
        bounds = self.bounds(row.prompt)
        kw = {"budget": bounds["budget"], "recent": bounds["recent"], "least": self.rule.least}
        rule = lambda score, k, position: merging.ems(score, k, position=position, **kw)  # noqa: E731
        kept, target = jax.vmap(rule)(rated.score, row.k, row.position)
        few = row.length <= bounds["budget"]
        index = jnp.arange(kept.shape[-1])
        return jnp.where(few, row.held, kept), jnp.where(few, jnp.where(row.held, index, -1), target)

    def stays(self, rated: Rated, row: Row) -> jax.Array:
        return super().stays(rated, row) if row.one else self.best(rated, row)[0]

    def merged(self, rated: Rated, kept: jax.Array, row: Row) -> Rated:
        return self.joined(rated, kept, row) if row.one else self.prompted(rated, row)

    def prompted(self, rated: Rated, row: Row) -> Rated:
        """What leaves a prompt, in what stays of it."""
        _, target = self.best(rated, row)
        S, count = target.shape[-1], rated.extra["count"]
        mean = lambda x: merging.merge(x, target + 1, S, count)[0]  # noqa: E731
        total = merging.merge(row.v, target + 1, S, count)[1]
        some = (total > 0)[..., None]
        k, v = (jnp.where(some, mean(x), x) for x in (row.k, row.v))
        more = {"count": jnp.maximum(total, 1), "norm": jnp.linalg.norm(k, axis=-1)}
        return rated._replace(k=k, v=v, extra=rated.extra | more)

    def joined(self, rated: Rated, kept: jax.Array, row: Row) -> Rated:
        """The one token that leaves, in the kept one with the most similar key; dropped where that is not alike."""
        count, norm = rated.extra["count"], rated.extra["norm"]
        leaves = row.held & ~kept
        at = jnp.argmax(leaves, axis=-1)[:, None]
        pick = lambda x, at: jnp.take_along_axis(x, at[..., None], axis=1)  # noqa: E731
        index, cosine = merging.most_similar(pick(row.k, at), row.k, kept, norm)
        joins = leaves.any(-1, keepdims=True) & (cosine >= self.rule.least) & ~row.unread
        weight, there = (jnp.take_along_axis(count, i, axis=1) for i in (at, index))

        def mean(x: jax.Array) -> jax.Array:
            old = pick(x, index)
            new = (there[..., None] * old + weight[..., None] * pick(x, at)) / (there + weight)[..., None]
            return jnp.where(joins[..., None], new, old)

        k, v = mean(row.k), mean(row.v)
        here = (jnp.arange(kept.shape[-1]) == index) & joins
        more = {"count": count + jnp.where(here, weight, 0)}
        more["norm"] = jnp.where(here, jnp.linalg.norm(k, axis=-1), norm)
        put = lambda x, new: written(x[None], new[None], index[None, :, 0])[0]  # noqa: E731
        return rated._replace(k=put(row.k, k), v=put(row.v, v), extra=rated.extra | more)


PARTS = {"ems": EMS}
