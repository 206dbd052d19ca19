"""Rules that evict nothing: a query attends to a part of what there is. `held` says what the last query attended to."""

import dataclasses

import jax.numpy as jnp

from models.mixers.memory import scores, selection
from models.mixers.memory.edit import rotate
from models.mixers.memory.rules.base import Full, own


@dataclasses.dataclass(frozen=True)
class Oracle(Full):
    """The `budget` cached tokens of the largest true attention (summed over the group), and the token itself."""

    budget: int | float = 64

    def attend(self, state, q, t):
        K, T = state.held.shape
        place = jnp.arange(T)
        x = scores.logits(q[None], state.k.swapaxes(0, 1))[:, 0]
        p = scores.by_key_head(scores.softmax(x, place <= t), K)
        return scores.oracle(p, place < t, self.budget) | own(T, t), state._replace(score=p)


@dataclasses.dataclass(frozen=True)
class TokenSelect(Full):
    """The first `initial` and last `local` tokens (the new one among them) and the `budget` of the most votes.

    With a `theta` votes are of unrotated keys and of queries rotated at `local`, and the rank in what is attended to is
    the rotary position. `least` below 1 uses a selection again while the query's cosine with its query is that large.
    `released` and `narrow` (bfloat16 products) as the authors' kernel votes.
    """

    slot = True
    budget: int | float = 64
    initial: int = 4
    local: int = 16
    smooth: int = 0
    least: float = 1.0
    theta: float | None = None
    pairing: str = "half"
    released: bool = False
    narrow: bool = False

    def sized(self, prompt, length, theta, pairing):
        made = super().sized(prompt, length, theta, pairing)
        return dataclasses.replace(made, theta=theta, pairing=pairing)

    def begin(self, s):
        state = super().begin(s)
        N, H = s.p.shape[0], s.k.shape[-1]
        return state._replace(extra=(jnp.zeros((N, H), s.k.dtype), jnp.zeros(s.T, bool)))

    def attend(self, state, q, t):
        place = jnp.arange(state.held.shape[1])
        candidates = (place >= self.initial) & (place <= t - self.local)
        if self.theta is not None:
            q = rotate(q, jnp.full((1,), self.local), theta=self.theta, pairing=self.pairing)
        kw = {"smooth": self.smooth, "released": self.released, "dtype": jnp.bfloat16 if self.narrow else None}
        votes = selection.token_select_votes(q, state.k.swapaxes(0, 1), candidates, **kw)
        chosen = scores.keep_best(votes, candidates, self.budget)
        asked, before = state.extra
        if self.least < 1:
            again = before.any() & selection.same_query(q, asked, self.least)
            chosen, q = jnp.where(again, before, chosen), jnp.where(again, asked, q)
        few = self.initial + self.budget + self.local >= t + 1
        attended = (place <= t) & (~candidates | chosen | few)
        extra = (jnp.where(few, asked, q), jnp.where(few, before, chosen))
        score = jnp.broadcast_to(votes, state.score.shape)
        return jnp.broadcast_to(attended, state.held.shape), state._replace(score=score, extra=extra)


@dataclasses.dataclass(frozen=True)
class Quest(Full):
    """The pages of `page` places whose bound on q . k is the largest, `budget` tokens; each query head has its own."""

    budget: int | float = 64
    page: int = 16
    least: int = 3

    def begin(self, s):
        state, N = super().begin(s), s.p.shape[0]
        return state._replace(held=jnp.broadcast_to(state.held[:1], (N, s.T)), score=jnp.zeros((N, s.T), s.p.dtype))

    def attend(self, state, q, t):
        held = jnp.arange(state.held.shape[1]) <= t
        low, high = selection.quest_pages(state.k.swapaxes(0, 1), held, self.page)
        bound = selection.quest_bound(q, low, high)
        score = jnp.repeat(jnp.where(jnp.isneginf(bound), 0, bound), self.page, axis=1)[:, : held.size]
        return selection.quest(bound, held, self.budget, self.page, self.least), state._replace(score=score)
