"""Rules that score tokens: the recent ones and the best of the rest stay."""

import dataclasses

import jax
import jax.numpy as jnp

from kernels.attention.noise import gumbel
from models.mixers.memory import budgets, scores
from models.mixers.memory.rules.base import Full, Prompt, Row, State, own, placed, wide


@dataclasses.dataclass(frozen=True)
class Evict(Full):
    """A score for each token; the recent ones and the best of the rest stay, `budget` in all."""

    budget: int | float = 64
    recent: int | float = 32
    sinks: int = 0

    def first(self, s: Prompt) -> tuple[jax.Array, tuple]:
        """(scores of the prompt's tokens `[n]` or `[K, n]`, what else is kept)."""
        raise NotImplementedError

    def next(self, state: State, row: Row) -> tuple[jax.Array, tuple]:
        """(scores `[K, T]` after a row, what else is kept)."""
        raise NotImplementedError

    def keep(self, score: jax.Array, held: jax.Array, newest) -> jax.Array:
        kw = {"budget": self.budget, "recent": self.recent, "sinks": self.sinks}
        return scores.keep(score, placed(held), newest, **kw)

    def begin(self, s: Prompt) -> State:
        score, extra = self.first(s)
        score = wide(score, s)
        held = self.keep(score, wide(jnp.ones(s.n, bool), s), s.n - 1)
        return State(held, score, s.k, s.v, extra)

    def after(self, state: State, row: Row) -> State:
        score, extra = self.next(state, row)
        return state._replace(held=self.keep(score, row.wanted, row.t), score=score, extra=extra)


@dataclasses.dataclass(frozen=True)
class H2O(Evict):
    """Accumulated attention. `released=True` is the variant that masks, in which a token is invisible for one step."""

    released: bool = False

    def first(self, s):
        return scores.by_key_head(scores.column_sums(s.p), s.K), ()

    def next(self, state, row):
        return scores.h2o(state.score, scores.by_key_head(row.p, row.K)), ()

    def begin(self, s):
        state = super().begin(s)
        return self.masked(state, s.n - 1) if self.released else state

    def after(self, state, row):
        if not self.released:
            return super().after(state, row)
        score, extra = self.next(state, row)
        return self.masked(state._replace(score=score, extra=extra), row.t)

    def masked(self, state: State, newest) -> State:
        """As the released mask of one slot more than the scores: t - R is neither recent nor a candidate once."""
        place = jnp.arange(state.score.shape[1])
        heavy = scores.keep_best(state.score, place <= newest - self.recent, self.budget - self.recent)
        seen = (heavy | (place > newest + 1 - self.recent)) & (place <= newest)
        scored = jnp.where(seen | (place > newest - self.recent), state.score, 0)
        small = newest + 1 <= self.budget
        return state._replace(held=jnp.where(small, place <= newest, seen), score=jnp.where(small, state.score, scored))


@dataclasses.dataclass(frozen=True)
class A2SF(H2O):
    """Accumulated attention that is forgotten by `alpha` a step. `released=True`: scored once, then nothing leaves."""

    alpha: float = 0.9

    def first(self, s):
        weights = scores.a2sf_weights(self.alpha, s.n, s.p.dtype)
        return scores.by_key_head(scores.column_sums(s.p, weights), s.K), ()

    def next(self, state, row):
        return scores.a2sf(state.score, scores.by_key_head(row.p, row.K), self.alpha), ()

    def begin(self, s):
        return Evict.begin(self, s)

    def after(self, state, row):
        return Full.after(self, state, row) if self.released else Evict.after(self, state, row)


@dataclasses.dataclass(frozen=True)
class Keyformer(Evict):
    """Softmax of noisy logits at a rising temperature. `frozen_keys` as released: what leaves never comes back."""

    end: float = 2.0
    steps: int = 0
    seed: int = 0
    noise: bool = True
    frozen_keys: bool = False

    def sized(self, prompt, length, theta, pairing):
        return dataclasses.replace(
            super().sized(prompt, length, theta, pairing), steps=self.steps or max(1, length - prompt)
        )

    def noisy(self, x, query, seen, tau):
        N, T, S = x.shape
        g = scores.keyformer_noise(self.seed, N, query, jnp.arange(S), x.dtype) if self.noise else 0.0
        return scores.keyformer(x, g, tau, seen)

    def first(self, s):
        y = self.noisy(s.x, jnp.arange(s.n), s.seen, 1.0)
        return scores.by_key_head(y.sum(1), s.K), (jnp.asarray(1, jnp.int32),)

    def next(self, state, row):
        (step,) = state.extra
        tau = scores.keyformer_temperature(step, self.steps, self.end)
        y = self.noisy(row.x[:, None], row.t[None], row.seen[:, None], tau)[:, 0]
        return state.score + scores.by_key_head(y, row.K), (step + 1,)

    def keep(self, score, held, newest):
        if not self.frozen_keys:
            return super().keep(score, held, newest)
        place = jnp.arange(score.shape[1])
        heavy = scores.keep_best(score, held & (place <= newest - self.recent), self.budget - self.recent)
        seen = held & (heavy | (place > newest + 1 - self.recent))
        return jnp.where(newest + 1 <= self.budget, held, seen)


@dataclasses.dataclass(frozen=True)
class Scissorhands(Evict):
    """The fewest votes against it among the last `window` queries; `drop` tokens leave at once."""

    window: int = 32
    drop: int = 1

    def first(self, s):
        votes = scores.by_key_head(scores.scissorhands(s.p, s.seen), s.K)  # [K, n, n]
        last = jnp.arange(max(0, s.n - self.window), s.n)
        ring = jnp.zeros((s.K, self.window, s.T), s.p.dtype)
        ring = ring.at[:, last % self.window, : s.n].set(votes[:, last])
        return -ring.sum(1)[:, : s.n], (ring,)

    def next(self, state, row):
        votes = scores.by_key_head(scores.scissorhands(row.p, row.seen), row.K)
        ring = state.extra[0].at[:, row.t % self.window].set(votes)
        return -ring.sum(1), (ring,)

    def keep(self, score, held, newest):
        full = held.sum(-1) > self.budget
        budget = self.budget + jnp.where(full, 1 - self.drop, 0)
        kw = {"budget": budget, "recent": self.recent, "sinks": self.sinks}
        return scores.keep(score, placed(held), newest, **kw)


@dataclasses.dataclass(frozen=True)
class Tova(Evict):
    """The newest row alone, the mean over all heads; nothing is protected unless asked for."""

    recent: int | float = 0

    def first(self, s):
        return scores.tova(s.p[:, -1]), ()

    def next(self, state, row):
        return jnp.broadcast_to(scores.tova(row.p), state.score.shape), ()


@dataclasses.dataclass(frozen=True)
class Snap(Full):
    """What the last `window` queries of the prompt looked at, pooled. `budget` counts the window; decoding appends."""

    budget: int | float = 64
    window: int = 16
    kernel: int = 5
    pooling: str = "mean"

    def begin(self, s):
        state = super().begin(s)
        if s.n <= self.budget:
            return state
        c = scores.by_key_head(scores.snap(s.p, self.window, self.kernel, self.pooling), s.K)
        place = jnp.arange(s.T)
        before = place < s.n - self.window
        best = scores.keep_best(wide(c, s), before, self.budget - self.window)
        return state._replace(held=best | (~before & (place < s.n)), score=wide(c, s))


@dataclasses.dataclass(frozen=True)
class Pyramid(Snap):
    """As snap, with the budget of layer `layer` of `layers` of a pyramid."""

    layer: int = 0
    layers: int = 1
    beta: int = 20

    def begin(self, s):
        counts = budgets.pyramid(self.budget, self.window, s.n, self.layers, self.beta)
        small = s.n <= self.budget
        budget = self.budget if small else self.window + counts[self.layer]
        return Snap.begin(dataclasses.replace(self, budget=budget), s)


@dataclasses.dataclass(frozen=True)
class Streaming(Evict):
    """`sinks` and the last budget - sinks; with a `theta` the rank in the cache is the rotary position."""

    slot = True
    sinks: int = 4
    recent: int | float = 0
    evict: str = "after"

    def first(self, s):
        return jnp.arange(s.n, dtype=s.p.dtype), ()

    def next(self, state, row):
        return jnp.where(own(state.score.shape[1], row.t), row.t.astype(state.score.dtype), state.score), ()

    def attend(self, state, q, t):
        if self.evict == "after":
            return super().attend(state, q, t)
        if self.evict != "before":
            raise ValueError(f"evict={self.evict!r} is unknown; use 'before' or 'after' the forward pass.")
        kept = scores.keep(
            state.score, placed(state.held), t - 1, budget=self.budget - 1, recent=self.recent, sinks=self.sinks
        )
        return kept | own(state.held.shape[1], t), state


@dataclasses.dataclass(frozen=True)
class Random(Evict):
    """The control: each token draws its score once, by seed, key head and position."""

    seed: int = 0

    def first(self, s):
        return gumbel(self.seed, jnp.arange(s.K)[:, None], 0, jnp.arange(s.n), dtype=s.p.dtype), ()

    def next(self, state, row):
        K, T = state.score.shape
        drawn = gumbel(self.seed, jnp.arange(K)[:, None], 0, row.t, dtype=state.score.dtype)
        return jnp.where(own(T, row.t), drawn, state.score), ()
