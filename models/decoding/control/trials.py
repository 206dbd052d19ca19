"""Controls that look ahead: trials of a row beside one another, of which one stays (CNTP, AdaDec).

Each is a composition of steps: the row as it was is repeated, the copies are extended by the ordinary step, with all
other controls, and the best one takes the row's place. No copy is made where no row is uncertain.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding import rows
from models.decoding.control import Control, Step, rollouts
from models.decoding.drafts import Seen, Tree


@dataclasses.dataclass(frozen=True)
class Cntp(Control):
    """Cautious Next Token Prediction: the higher the entropy, the more trials to the next stop; the likeliest stays.

    The entropy is of the logits as they come to this entry: named behind the sampling rules it is that of the law that
    is drawn from. The first trial is the text that would be written without this entry; `most` at 1 is off.

    `places`: trials that there is room for; `length`: tokens of one at most.
    """

    dials = ("cntp.most", "cntp.low", "cntp.high")
    own = ("stops",)
    alone = True

    most: int = 1
    low: float = 0.01
    high: float = 1.5
    stops: str = "".join(rollouts.PUNCTUATION)
    places: int = 8
    length: int = 16

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`."""
        V = models["model"].head_weights().shape[0]
        zeros = jnp.zeros((batch,))
        return {"entropy": zeros, "log_p": zeros, "stops": jnp.zeros((batch, V), bool)}

    def given(self, options: Mapping[str, Any], tokenizer: Any, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Control.given`: the tokens that end a trial, those that are one of the characters; of a task's symbols
        one of the numbers between blanks."""
        stops, asked = np.zeros(sizes["stops"].shape[1:], bool), options["cntp"]["stops"]
        for one in asked.split() if hasattr(tokenizer, "num_symbols") else asked:
            ids = tokenizer.encode(one)
            if len(ids) == 1:
                stops[ids[0]] = True
        return {"stops": stops}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        return logits, rollouts.entropy_of(jax.nn.softmax(logits[:, 0], axis=-1))

    def commit(self, models: Mapping[str, Any], side: Any, made: Any, seen: Seen) -> Any:
        """See `Control.commit`: the drawn token's log-probability joins the trial's sum."""
        live = seen.count > 0
        log_p = jax.nn.log_softmax(seen.logits[:, 0], axis=-1)
        own = jnp.take_along_axis(log_p, seen.token[:, :1], axis=-1)[:, 0]
        return side | {
            "entropy": jnp.where(live, made, side["entropy"]), "log_p": side["log_p"] + jnp.where(live, own, 0)
        }  # fmt: skip

    def step(self, inner: Step) -> Step:
        """See `Control.step`."""

        def step(models: Mapping[str, Any], p: Any, parts: Any, live: jax.Array) -> Any:
            once = inner(models, p, parts, live)
            dials = [p.dials[name] for name in self.dials]
            many = rollouts.trials(once.side["cntp"]["entropy"], 1, *dials) * live
            return jax.lax.cond(jnp.any(many > 1), lambda: self.best(inner, models, p, parts, once, many), lambda: once)

        return step

    def best(self, inner: Step, models: Mapping[str, Any], p: Any, parts: Any, once: Any, many: jax.Array) -> Any:
        """`once`, and in its place the best of `many [B]` trials from `p` in the rows where those are several."""
        N, B = self.places, len(p.length)
        trial = jnp.arange(B * N) % N
        tried = repeated(p, N, trial)
        tried = with_side(tried, "cntp", log_p=jnp.zeros(B * N))
        stops, start = rows.repeat(p.side["cntp"]["stops"], N), tried.length

        def goes(p: Any, turn: jax.Array) -> jax.Array:
            newest = jnp.take_along_axis(p.text, jnp.maximum(p.length - 1, 0)[:, None], axis=1)[:, 0]
            stopped = (p.length > start) & jnp.take_along_axis(stops, newest[:, None], axis=1)[:, 0]
            used = (trial < jnp.repeat(many, N)) & (jnp.repeat(many, N) > 1)
            return p.live & used & ~stopped & (turn < self.length)

        tried = looped(inner, models, parts, tried, goes)
        gained = (tried.length - start).reshape(B, N)
        mean = -tried.side["cntp"]["log_p"].reshape(B, N) / jnp.maximum(gained, 1)
        valid = (jnp.arange(N) < many[:, None]) & (gained > 0)
        winner = jnp.argmin(jnp.where(valid, jnp.exp(mean), jnp.inf), axis=1)
        chosen = settled(tried, winner, N, p)
        return rows.choose((many > 1) & jnp.any(valid, axis=1), chosen, once)


@dataclasses.dataclass(frozen=True)
class AdaDec(Control):
    """Where the entropy is at least the threshold, each of the likeliest `candidates` is tried with `length` tokens
    behind it, and that of the best score (`rollouts.adadec_scores`, history 0) is written.

    The entropy is of the logits as they come to this entry. Roll-outs are drawn as text is: greedily at temperature 0.
    """

    dials = ("adadec.threshold",)
    alone = True

    threshold: float = 1000.0
    candidates: int = 3
    length: int = 5

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`."""
        zeros, ids = jnp.zeros((batch,)), jnp.zeros((batch, self.candidates), jnp.int32)
        return {"entropy": zeros, "log_p": zeros, "best": ids, "forced": jnp.full((batch,), -1, jnp.int32)}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        here, forced = logits[:, 0], side["forced"]
        own = jnp.arange(here.shape[-1]) == forced[:, None]
        only = jnp.where((forced < 0)[:, None] | own, here, -jnp.inf)
        made = (rollouts.entropy(here), jax.lax.top_k(here, self.candidates)[1], jax.nn.log_softmax(here, axis=-1))
        return only[:, None], made

    def commit(self, models: Mapping[str, Any], side: Any, made: Any, seen: Seen) -> Any:
        """See `Control.commit`."""
        entropy, best, log_p = made
        live = seen.count > 0
        own = jnp.take_along_axis(log_p, seen.token[:, :1], axis=-1)[:, 0]
        return {
            "entropy": jnp.where(live, entropy, side["entropy"]),
            "log_p": side["log_p"] + jnp.where(live, own, 0),
            "best": jnp.where(live[:, None], best, side["best"]),
            "forced": jnp.where(live, -1, side["forced"]),
        }

    def step(self, inner: Step) -> Step:
        """See `Control.step`."""

        def step(models: Mapping[str, Any], p: Any, parts: Any, live: jax.Array) -> Any:
            once = inner(models, p, parts, live)
            unsure = live & (once.side["adadec"]["entropy"] >= p.dials["adadec.threshold"])
            return jax.lax.cond(jnp.any(unsure), lambda: self.best(inner, models, p, parts, once, unsure), lambda: once)

        return step

    def best(self, inner: Step, models: Mapping[str, Any], p: Any, parts: Any, once: Any, unsure: jax.Array) -> Any:
        """`once`, and in its place the best candidate from `p` in the rows that are unsure."""
        N, B = self.candidates, len(p.length)
        forced = once.side["adadec"]["best"].reshape(-1)
        tried = repeated(p, N, jnp.zeros(B * N, jnp.int32))
        tried = with_side(tried, "adadec", forced=forced, log_p=jnp.zeros(B * N))
        first = inner(models, tried, parts, jnp.repeat(unsure, N) & tried.live)
        ahead = looped(
            inner, models, parts, first, lambda p, turn: p.live & jnp.repeat(unsure, N) & (turn < self.length)
        )
        gained = (ahead.length - tried.length).reshape(B, N)
        score = ahead.side["adadec"]["log_p"].reshape(B, N) / jnp.maximum(gained, 1)
        winner = jnp.argmax(jnp.where(gained > 0, score, -jnp.inf), axis=1)
        return rows.choose(unsure & jnp.any(gained > 0, axis=1), settled(first, winner, N, p), once)


def repeated(p: Any, n: int, trial: jax.Array) -> Any:
    """Each row n times; trial `[B n]` above 0 draws with bits of its own."""
    many = rows.repeat(p, n)
    own = jax.vmap(lambda key, i: jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key), i)))
    return dataclasses.replace(many, key=jnp.where((trial > 0)[:, None], own(many.key, trial), many.key))


def looped(inner: Step, models: Mapping[str, Any], parts: Any, p: Any, goes: Any) -> Any:
    """Steps of the rows where goes(p, turn) `[B]` holds, until there is none."""

    def body(carry: tuple) -> tuple:
        turn, p = carry
        return turn + 1, inner(models, p, parts, goes(p, turn))

    return jax.lax.while_loop(lambda carry: jnp.any(goes(carry[1], carry[0])), body, (jnp.int32(0), p))[1]


def settled(tried: Any, winner: jax.Array, n: int, p: Any) -> Any:
    """The winning copies `[B]` as rows, with their requests' keys, and the calls of all copies."""
    taken = rows.take(tried, jnp.arange(len(winner)) * n + winner)
    spent = jnp.sum((tried.calls - jnp.repeat(p.calls, n)).reshape(-1, n), axis=1)
    return dataclasses.replace(taken, key=p.key, calls=p.calls + spent)


def with_side(p: Any, name: str, **entries: jax.Array) -> Any:
    """`p` with these entries in one side."""
    return dataclasses.replace(p, side=p.side | {name: p.side[name] | entries})


PARTS = {"cntp": Cntp, "adadec": AdaDec}
