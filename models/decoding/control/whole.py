"""Controls that decide a text as a whole: beam search, best of n, votes. A row's first step writes all of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding import rows
from models.decoding.control import Control, Step, search, trials
from models.decoding.drafts import Seen, Tree

MARK = 8  # Tokens of the text behind which an answer stands, at most.


@dataclasses.dataclass(frozen=True)
class Beam(Control):
    """Beam search: of all continuations of `beams` texts the best as many stay, until all have ended.

    Scores are of the logits as they come to this entry: named first they are the model's own. The text of the best
    score / length^alpha is written. A step reads each text twice: to look, and with the token that was chosen, so that
    the other entries see what is written. 1 beam is off.
    """

    alone = True

    beams: int = 1
    alpha: float = 1.0

    @property
    def idle(self) -> bool:
        """See `Control.idle`."""
        return self.beams == 1

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`."""
        V = models["model"].head_weights().shape[0]
        return {"forced": jnp.full((batch,), -1, jnp.int32), "log_p": jnp.zeros((batch, V))}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        here, forced = logits[:, 0], side["forced"]
        own = jnp.arange(here.shape[-1]) == forced[:, None]
        return jnp.where((forced < 0)[:, None] | own, here, -jnp.inf)[:, None], jax.nn.log_softmax(here, axis=-1)

    def commit(self, models: Mapping[str, Any], side: Any, made: Any, seen: Seen) -> Any:
        """See `Control.commit`."""
        return {"forced": jnp.full_like(side["forced"], -1), "log_p": made}

    def step(self, inner: Step) -> Step:
        """See `Control.step`."""
        if self.beams == 1:
            return inner

        def step(models: Mapping[str, Any], p: Any, parts: Any, live: jax.Array) -> Any:
            K, B = self.beams, len(p.length)
            mine = jnp.repeat(live, K)

            def turn(carry: tuple) -> tuple:
                held, score = carry
                look = inner(models, held, parts, held.live & mine)
                log_p = look.side["beam"]["log_p"].reshape(B, K, -1)
                # A row at its end is continued at no cost by one token, which is not written.
                best = search.beam_step(score, log_p, held.done.reshape(B, K), max(parts.eos, 0), K)
                source = (jnp.arange(B)[:, None] * K + best.parent).reshape(-1)
                chosen = trials.with_side(rows.take(held, source), "beam", forced=best.token.reshape(-1))
                return inner(models, chosen, parts, chosen.live & mine), best.score

            start = jnp.where(jnp.arange(K) == 0, 0.0, -jnp.inf) + jnp.zeros((B, 1))
            first = trials.repeated(p, K, jnp.zeros(B * K, jnp.int32))
            held, score = jax.lax.while_loop(lambda carry: jnp.any(carry[0].live & mine), turn, (first, start))
            gained = (held.length - first.length).reshape(B, K)
            value = search.length_penalised(score, jnp.maximum(gained, 1), self.alpha)
            return rows.choose(live, trials.settled(held, jnp.argmax(value, axis=1), K, p), p)

        return step


@dataclasses.dataclass(frozen=True)
class BestOfN(Control):
    """Best of n: n texts are drawn, one is written; 1 is off.

    `choose`: "likeliest", the largest mean log-probability, of the law that is drawn from; or "majority", the answer
    that most texts have (`search.votes`), of equal ones the first. An answer is what stands behind the last `behind`,
    or the whole text; where no text has one, the first is written. The first text is the one that would be written
    without this entry; the others are drawn with bits of their own.
    """

    alone = True

    n: int = 1
    choose: str = "likeliest"
    behind: str = ""

    @property
    def idle(self) -> bool:
        """See `Control.idle`."""
        return self.n == 1

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`."""
        side = {"log_p": jnp.zeros((batch,))}
        return side if self.choose == "likeliest" else side | {"mark": jnp.full((batch, MARK), -1, jnp.int32)}

    def given(self, options: Mapping[str, Any], tokenizer: Any, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Control.given`: the tokens behind which an answer stands."""
        if self.choose == "likeliest":
            return {}
        ids = tokenizer.encode(self.behind) if self.behind else []
        if len(ids) > MARK:
            raise ValueError(
                f"generate.best_of_n.behind={self.behind!r} is {len(ids)} tokens; it may have {MARK} at most."
            )
        mark = np.full(MARK, -1, np.int32)
        mark[MARK - len(ids) :] = ids
        return {"mark": mark}

    def commit(self, models: Mapping[str, Any], side: Any, made: Any, seen: Seen) -> Any:
        """See `Control.commit`."""
        log_p = jax.nn.log_softmax(seen.logits[:, 0], axis=-1)
        own = jnp.take_along_axis(log_p, seen.token[:, :1], axis=-1)[:, 0]
        return side | {"log_p": side["log_p"] + jnp.where(seen.count > 0, own, 0)}

    def step(self, inner: Step) -> Step:
        """See `Control.step`."""
        if self.n == 1:
            return inner

        def step(models: Mapping[str, Any], p: Any, parts: Any, live: jax.Array) -> Any:
            n, B = self.n, len(p.length)
            first = trials.repeated(p, n, jnp.arange(B * n) % n)
            made = trials.looped(inner, models, parts, first, lambda p, turn: p.live & jnp.repeat(live, n))
            gained = (made.length - first.length).reshape(B, n)
            if self.choose == "majority":
                winner = jnp.argmax(self._votes(made, first, parts.eos).reshape(B, n), axis=1)
            else:
                score = made.side["best_of_n"]["log_p"].reshape(B, n)
                winner = search.best_of(score, jnp.maximum(gained, 1))
            return rows.choose(live, trials.settled(made, winner, n, p), p)

        return step

    def _votes(self, made: Any, first: Any, eos: int) -> jax.Array:
        """`[B n]` votes for the answer of each text."""
        newest = jnp.take_along_axis(made.text, jnp.maximum(made.length - 1, 0)[:, None], axis=1)[:, 0]
        end = made.length - ((newest == eos) & (made.length > first.length))
        mark = made.side["best_of_n"]["mark"]
        begin = jax.vmap(_behind)(made.text, first.length, end, mark)
        shaped = lambda x: x.reshape(-1, self.n, *x.shape[1:])  # noqa: E731
        return search.votes(shaped(made.text), shaped(begin), shaped(end)).reshape(-1)


def _behind(text: jax.Array, start: jax.Array, end: jax.Array, mark: jax.Array) -> jax.Array:
    """`search.answer_start` of a text `[R]` where `mark [MARK]` has -1 in front of its tokens."""
    begins = jnp.stack([search.answer_start(text, start, end, mark[MARK - k :]) for k in range(MARK + 1)])
    return begins[jnp.sum(mark >= 0)]


PARTS = {"beam": Beam, "best_of_n": BestOfN}
