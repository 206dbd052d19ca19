"""Memory `ems`: global and local attention; what leaves is merged into the most similar key (Li et al. 2024,
arXiv:2412.08521)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from models.mixers.memory import merging, ring, scores
from models.mixers.memory.kept import Kept, Rated, Row, first_lowest, policy, written


@policy
@dataclasses.dataclass(frozen=True)
class EMS(Kept):
    """See the module's docstring. Of each token of each key head `extra` holds: `columns`, what all queries gave it;
    `count`, of how many tokens it is the mean; `norm`, of its key. `told["rows"] [B, K, window, S]`: what the last
    queries gave the slots. Nobody clears those of a slot that another token takes: no query before it saw it."""

    name: ClassVar[str] = "ems"

    @classmethod
    def more(cls, rule, sizes, heads, size, dtype):
        none = jnp.zeros((sizes.batch, heads, size), dtype)
        return {"columns": none, "count": none, "norm": none}

    @classmethod
    def empty(cls, sizes, **options):
        made = super().empty(sizes, **options)
        B, K, S = made.score.shape
        return dataclasses.replace(made, told={"rows": jnp.zeros((B, K, made.rule.window, S), made.score.dtype)})

    @classmethod
    def extra_bytes(cls, rule, sizes):
        return 4 * (rule.window + 3)

    def asks(self, query, newest, dtype):
        return {"all": (query >= 0).astype(dtype)}

    def rate(self, row: Row) -> Rated:
        p = scores.by_key_head(row.p, row.K)  # [K, T, S]
        columns = row.extra["columns"] + row.sums["all"]
        rows = ring.put_rows(row.told["rows"], p, row.query, row.newest)
        local = ring.sums(rows, row.position, row.newest)
        count = jnp.maximum(row.extra["count"], 1)
        norm = row.extra["norm"] if row.one else jnp.linalg.norm(row.k, axis=-1)
        inside = lambda x: jnp.where(row.held, x, 0)  # noqa: E731
        score = scores.ems(inside(columns), inside(local))
        return Rated.of(row, score, extra={"columns": columns, "count": count, "norm": norm}, told={"rows": rows})

    def _taken(self, k, v, positions):
        after = super()._taken(k, v, positions)
        length = jnp.linalg.norm(k.astype(self.k.dtype), axis=-1)  # [B, K, 1]: the others' are known
        norm = jnp.where(after.position != self.position, length.astype(self.score.dtype), self.extra["norm"])
        return dataclasses.replace(after, extra=after.extra | {"norm": norm})

    def _beside(self, k, v, positions, *, fresh):
        after, had = super()._beside(k, v, positions, fresh=fresh), self.told["rows"]
        more = jnp.zeros((*had.shape[:3], after.position.shape[2] - (0 if fresh else had.shape[3])), had.dtype)
        return dataclasses.replace(after, told={"rows": more if fresh else jnp.concatenate([had, more], axis=3)})

    def _gathered(self, kept):
        order, missing = ring.in_order(kept, self.position, self.most + 1)
        rows = jnp.take_along_axis(self.told["rows"], order[:, :, None], axis=3)
        after = dataclasses.replace(self, told={"rows": jnp.pad(rows, [(0, 0)] * 3 + [(0, missing)])})
        return Kept._gathered(after, kept)

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
        at = first_lowest(jnp.where(leaves, 0, 1))[:, None]
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
