"""Rules whose heads share what stays of a prompt, and rules that merge what leaves into what stays."""

import dataclasses

import jax
import jax.numpy as jnp

from models.mixers.memory import merging, scores, selection
from models.mixers.memory.rules.base import Full, Prompt, State, wide
from models.mixers.memory.rules.evict import Evict


@dataclasses.dataclass(frozen=True)
class PrefixKV(Full):
    """The shared best of a layer's prompt, then one fixed place of the cache leaves at each step.

    `forget`: tokens that this layer forgets of the prompt (of `budgets.prefix_search`, all layers together); unless
    given floor(ratio n). The share stays: after the prompt a token leaves where the cache exceeds (1 - forget/n) seen.
    """

    ratio: float = 0.5
    forget: int = -1
    sinks: int = 4
    distance: int = -25

    def forgotten(self, n: int) -> int:
        return min(int(n * self.ratio) if self.forget < 0 else self.forget, max(0, n - self.sinks - 1))

    def prompt(self, s: Prompt, a: jax.Array, forget: int) -> tuple[jax.Array, jax.Array, jax.Array, int]:
        """(held `[n]`, keys, values, the place that will leave) from the head mean's column sums `a [n]`."""
        place = jnp.arange(s.n)
        middle = (place >= self.sinks) & (place < s.n - 1)
        held = ~middle | scores.keep_best(a, middle, s.n - self.sinks - 1 - forget)
        leaving = s.n - forget + self.distance if self.distance <= 0 else self.distance
        return held, s.k, s.v, leaving if leaving >= 1 else (s.n - forget) // 2

    def begin(self, s):
        a = scores.column_sums(s.p.mean(0, keepdims=True))[0]
        forget = self.forgotten(s.n)
        held, k, v, leaving = self.prompt(s, a, forget)
        ratio = self.ratio if self.forget < 0 else forget / s.n
        return State(wide(held, s), wide(a, s), k, v, (jnp.asarray(leaving), jnp.asarray(ratio, s.p.dtype)))

    def after(self, state, row):
        held = row.wanted
        leaving, ratio = state.extra
        full = held.sum(-1, keepdims=True) - (row.t + 1) * (1 - ratio) >= 1
        leaves = held & (selection.ranks(held) == leaving) & full
        return state._replace(held=held & ~leaves)


@dataclasses.dataclass(frozen=True)
class Elastic(PrefixKV):
    """As PrefixKV, and what leaves the prompt is averaged into the nearest that stays. `released` as the authors
    did."""

    released: bool = False
    values_only: bool = False

    def prompt(self, s, a, forget):
        leaving = s.n - forget + self.distance if self.distance <= 0 else self.distance
        if not self.released:
            held, target = merging.elastic(a, forget, self.sinks)
            k, v = (merged(x, jnp.broadcast_to(target, (s.K, s.n))) for x in (s.k, s.v))
            return held, s.k if self.values_only else k, v, leaving if leaving >= 1 else (s.n - forget) // 2
        return *self.as_released(s, a, forget), leaving

    def as_released(self, s, a, forget):
        """The released rule has shapes that depend on the scores; here the same as masks and one-hot sums."""
        n, place = s.n, jnp.arange(s.n)
        held, target = merging.elastic_released_targets(a, forget, self.sinks)
        added = (target[:, None] == place[None, :]).astype(a.dtype)  # [thrown, anchor]

        def means(x):
            return x.at[:, :n].set(
                (x[:, :n] + jnp.einsum("ts,kth->ksh", added, x[:, :n])) / (1 + added.sum(0))[None, :, None]
            )

        return held, s.k if self.values_only else means(s.k), means(s.v)


def merged(x: jax.Array, target: jax.Array, counts: jax.Array | None = None) -> jax.Array:
    """`x [K, T, H]` whose tokens are the mean of all of the first n that go to them; `target [K, n]`, -1 = nowhere."""
    n = target.shape[-1]
    means, total = merging.merge(x[:, :n], target + 1, n, counts)
    return x.at[:, :n].set(jnp.where(total[..., None] > 0, means, x[:, :n]))


@dataclasses.dataclass(frozen=True)
class EMS(Evict):
    """Global and local importance; what leaves is merged into the most similar key that stays, or dropped.

    In decoding one token leaves a step; it is merged where its cosine with a kept key is at least `least`.
    """

    window: int = 16
    least: float = 0.5

    def begin(self, s):
        columns = scores.by_key_head(scores.column_sums(s.p), s.K)
        last = jnp.arange(max(0, s.n - self.window), s.n)
        ring = jnp.zeros((s.K, self.window, s.T), s.p.dtype)
        ring = ring.at[:, last % self.window, : s.n].set(scores.by_key_head(s.p, s.K)[:, last])
        score = scores.ems(columns, ring.sum(1)[:, : s.n])
        rule = lambda score, k: merging.ems(score, k, budget=self.budget, recent=self.recent, least=self.least)  # noqa: E731
        held, target = jax.vmap(rule)(score, s.k[:, : s.n])
        if s.n <= self.budget:
            held, target = jnp.ones_like(held), jnp.broadcast_to(jnp.arange(s.n), target.shape)
        counts = merging.merge(s.v[:, : s.n], target + 1, s.n)[1]
        extra = (wide(columns, s), ring, jnp.maximum(wide(counts, s), 1))
        return State(wide(held, s), wide(score, s), merged(s.k, target), merged(s.v, target), extra)

    def after(self, state, row):
        columns, ring, counts = state.extra
        p = scores.by_key_head(row.p, row.K)
        columns, ring = columns + p, ring.at[:, row.t % self.window].set(p)
        held = row.wanted
        inside = lambda x: jnp.where(held, x, 0)  # noqa: E731
        score = scores.ems(inside(columns), inside(ring.sum(1)))
        kept = self.keep(score, held, row.t)
        leaves = held & ~kept
        index, cosine = merging.most_similar(state.k, state.k, kept)
        at = jnp.argmax(leaves, axis=-1)  # one at most
        pick = lambda x: jnp.take_along_axis(x, at[:, None], axis=1)[:, 0]  # noqa: E731
        joins = leaves.any(-1) & (pick(cosine) >= self.least)
        here = (jnp.arange(held.shape[1]) == pick(index)[:, None]) & joins[:, None]
        weight = pick(counts)

        def joined(x):
            new = jnp.take_along_axis(x, at[:, None, None], axis=1)
            mean = (counts[..., None] * x + weight[:, None, None] * new) / (counts + weight[:, None])[..., None]
            return jnp.where(here[..., None], mean, x)

        more = counts + jnp.where(here, weight[:, None], 0)
        return State(kept, score, joined(state.k), joined(state.v), (columns, ring, more))
