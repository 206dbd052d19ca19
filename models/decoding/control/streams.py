"""Control `superposed`: k drafts in one stream of the model; a row's first step writes all of its text."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding import rows
from models.decoding.control import Control, Feed, Step, search, superposed, trials
from models.decoding.drafts import Seen, Tree

NEVER = -1e30


@dataclasses.dataclass(frozen=True)
class Superposed(Control):
    """Superposed Decoding: one pass a token for `drafts` texts; that of the best mean score is written; 0 is off.

    Probabilities are of the logits as they come to this entry, of the `top` likeliest tokens, mixed by `alpha` with the
    n-gram law of the text of the file `path` (`superposed.text_law`), whose last tokens 1, 2, ... weigh as `weights`
    says. A draft that has ended stays as it is and is read no more. `size`: tokens of the file that there is room for.
    """

    feeds = True
    alone = True

    drafts: int = 0
    alpha: float = 0.0
    top: int = 16
    weights: str = "0.2, 0.3, 0.5"
    path: str = ""
    size: int = 4096
    eos: int = -1

    @property
    def idle(self) -> bool:
        """See `Control.idle`."""
        return not self.drafts

    def problems(self, config: Any, parts: Any) -> Iterator[str]:
        """See `Control.problems`."""
        if self.drafts > self.top:
            yield (
                f"generate.superposed.top={self.top} is below generate.superposed.drafts={self.drafts}; use at least "
                "as many."
            )
        try:
            shares = self.shares
        except ValueError:
            shares = (-1.0,)
        if min(shares, default=-1) < 0 or sum(shares) > 1 + 1e-6:
            yield (
                f"generate.superposed.weights={self.weights!r} are numbers of sum 1 at most, commas between them, e.g. "
                "'0.2, 0.3, 0.5'."
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights as numbers."""
        return tuple(float(one) for one in self.weights.split(","))

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`."""
        spec, k = models["model"].spec, max(1, self.drafts)
        return {
            "text": jnp.zeros((batch, k, capacity), jnp.int32),
            "length": jnp.zeros((batch, k), jnp.int32),  # of the whole texts
            "score": jnp.where(jnp.arange(k) == 0, 0.0, NEVER) + jnp.zeros((batch, 1)),
            "ended": jnp.zeros((batch, k), bool),
            "begun": jnp.zeros((batch,), bool),
            "vector": jnp.zeros((batch, spec.D), spec.dtype),
            "reference": jnp.zeros((batch, self.size if self.alpha else 1), jnp.int32),
            "many": jnp.zeros((batch,), jnp.int32),
        }

    def given(self, options: Mapping[str, Any], tokenizer: Any, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Control.given`: the text whose n-grams count."""
        if not (self.drafts and self.alpha):
            return {}
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                ids = np.asarray(tokenizer.encode(file.read()), np.int32)
        except OSError as error:
            raise ValueError(f"generate.superposed.path={self.path!r} cannot be read: {error.strerror}.") from error
        if not 0 < len(ids) <= self.size:
            raise ValueError(
                f"generate.superposed.path={self.path!r} has {len(ids)} tokens; generate.superposed.size={self.size} "
                "holds from 1 to as many."
            )
        reference = np.zeros(sizes["reference"].shape[1:], np.int32)
        reference[: len(ids)] = ids
        return {"reference": reference, "many": np.int32(len(ids))}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        if not self.drafts:
            return logits, None
        V, k = logits.shape[-1], self.drafts
        law = superposed.keep_top(jax.nn.softmax(logits[:, 0], axis=-1), self.top)
        first = ~side["begun"]
        text = jnp.where(first[:, None, None], fitted(p.text, side["text"].shape[-1])[:, None], side["text"])
        length = jnp.where(first[:, None], p.length[:, None], side["length"])
        laws = jnp.zeros((len(law), k, V))
        if self.alpha:
            of_drafts = jax.vmap(superposed.text_law, in_axes=(None, None, 0, 0, None, None))
            of_rows = jax.vmap(of_drafts, in_axes=(0, 0, 0, 0, None, None))
            laws = of_rows(side["reference"], side["many"], text, length, jnp.asarray(self.shares), V)
        log_p = jax.vmap(superposed.mixed, in_axes=(0, 0, None))(law, laws, self.alpha)
        best = search.beam_step(side["score"], log_p, side["ended"], max(self.eos, 0), k)
        new = self._grown(best, text, length, side["ended"], p.limit)
        # The row's own text is written when all have ended: until then it holds tokens of drafts that go on.
        on = jnp.argmin(new["ended"], axis=1)[:, None]
        token = jnp.take_along_axis(best.token, on, axis=1)
        token = jnp.where(jnp.all(new["ended"], axis=1, keepdims=True), best.token[:, :1], token)
        return jnp.where((jnp.arange(V) == token)[:, None], logits, -jnp.inf), new | {"token": best.token}

    def _grown(
        self, best: search.Beams, text: jax.Array, length: jax.Array, ended: jax.Array, limit: jax.Array
    ) -> dict:
        """Drafts `[B, k]` after a step: their texts `[B, k, R]`, lengths, scores, and which have ended."""
        parent = best.parent
        text = jnp.take_along_axis(text, parent[..., None], axis=1)
        length, was = (jnp.take_along_axis(x, parent, axis=1) for x in (length, ended))
        here = (jnp.arange(text.shape[-1]) == length[..., None]) & ~was[..., None]
        text, length = jnp.where(here, best.token[..., None], text), length + ~was
        ended = was | (best.token == self.eos) | (length >= limit[:, None])
        return {"text": text, "length": length, "score": best.score, "ended": ended}

    def commit(self, models: Mapping[str, Any], side: Any, made: Any, seen: Seen) -> Any:
        """See `Control.commit`."""
        if not self.drafts:
            return side
        weigh = jnp.where(made["ended"], -jnp.inf, made["score"])
        weigh = jnp.where(jnp.all(made["ended"], axis=1, keepdims=True), 0.0, weigh)
        V, model = seen.logits.shape[-1], models["model"]
        weight = jax.vmap(superposed.superposition, in_axes=(0, 0, None))(weigh, made["token"], V)
        table = model.embed(jnp.arange(V)[None])[0]
        new = {name: made[name] for name in ("text", "length", "score", "ended")}
        new |= {"begun": jnp.ones_like(side["begun"]), "vector": weight.astype(table.dtype) @ table}
        return side | rows.choose(seen.count > 0, new, {name: side[name] for name in new})

    def soft(self, models: Mapping[str, Any], side: Any, seen: Seen) -> Feed:
        """See `Control.soft`."""
        return Feed(side["vector"], side["begun"] if self.drafts else jnp.zeros_like(side["begun"]))

    def step(self, inner: Step) -> Step:
        """See `Control.step`."""
        if not self.drafts:
            return inner

        def step(models: Mapping[str, Any], p: Any, parts: Any, live: jax.Array) -> Any:
            made = trials.looped(inner, models, parts, p, lambda p, turn: p.live & live)
            side = made.side["superposed"]
            gained = jnp.maximum(side["length"] - p.length[:, None], 1)
            best = jnp.argmax(search.length_penalised(side["score"], gained, 1.0), axis=1)[:, None]
            text = jnp.take_along_axis(side["text"], best[..., None], axis=1)[:, 0]
            length = jnp.take_along_axis(side["length"], best, axis=1)[:, 0]
            over = live & made.done & ~made.failed
            text = jnp.where(over[:, None], fitted(text, made.text.shape[1]), made.text)
            return dataclasses.replace(made, text=text, length=jnp.where(over, length, made.length))

        return step


def fitted(text: jax.Array, size: int) -> jax.Array:
    """`[B, R]` tokens as `[B, size]`, zeros behind them."""
    return jnp.pad(text, ((0, 0), (0, max(0, size - text.shape[1]))))[:, :size]


PARTS = {"superposed": Superposed}
