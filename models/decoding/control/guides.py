"""Controls that read a second run: GeDi's guide, R2R's large model, Nudging's helper. Its tokenizer is the model's."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.block import Pass
from models.decoding.control import Control, gedi, rollouts, routing, second
from models.decoding.drafts import Seen, Tree

MOST_CODE = 16  # Tokens of the text that names a class.


@dataclasses.dataclass(frozen=True)
class R2R(Control):
    """The small model writes; where it is uncertain, the other run does, which then reads the tokens that it missed.

    `measure`: "entropy" of the small model's law, or "aleatoric", of its ten largest logits, which must be positive
    (`routing.log_uncertainty`); or "router", P(critical) of the classifier that objective=router trains beside the
    small model (`models.objectives.router`), whose threshold lies between 0 and 1. The side counts the calls of the
    other run, `large [B]`.
    """

    NAME = "r2r"
    runs = ("workdir",)
    dials = ("r2r.threshold",)
    alone = True

    workdir: str = ""
    threshold: float = 1000.0
    measure: str = "entropy"

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`."""
        state = second.said(models, self.NAME).init_state(batch, capacity)
        return {"state": state, "large": jnp.zeros((batch,), jnp.int32)}

    def problems(self, config: Any, parts: Any) -> Iterator[str]:
        """See `Control.problems`."""
        if self.measure == "router" and config.objective != "router":
            yield (
                f"generate.r2r.measure='router' reads a classifier that objective={config.objective!r} does not train; "
                "use a run of objective='router', or generate.r2r.measure='entropy'."
            )

    def shown(self, models: Mapping[str, Any], side: Any, made: Pass) -> Any:
        """See `Control.shown`: P(critical) of the token that the small model would write."""
        if self.measure != "router":
            return side
        model, features = models["model"], made.features[:, 0]
        head = model.heads["router"]
        own, log_p = routing.likeliest(model.logits(features)[..., : head.classes], head.top)
        return side | {"critical": jax.nn.sigmoid(head(features, model.embed(own), log_p))}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        here = logits[:, 0]
        measures = {
            "entropy": rollouts.entropy, "aleatoric": lambda x: routing.log_uncertainty(x)[0],
            "router": lambda _: side["critical"],
        }  # fmt: skip
        value = measures[self.measure](here)
        asked = routing.to_large(value, p.dials["r2r.threshold"]) & (position[:, 0] >= 0)
        model = second.said(models, self.NAME)
        heard = second.hear_if(model, side["state"], p.length, asked, logits.shape[-1], p)
        logits = jnp.where(asked[:, None, None], heard.logits[:, None].astype(logits.dtype), logits)
        return logits, {"state": heard.state, "large": side["large"] + asked}

    def commit(self, models: Mapping[str, Any], side: Any, made: Any, seen: Seen) -> Any:
        """See `Control.commit`."""
        return made


@dataclasses.dataclass(frozen=True)
class Nudging(Control):
    """Where the model's largest probability is below the threshold, the helper writes a word.

    It goes on to the next token that begins with a blank; there the model is asked again, so that a nudge is one word
    at least. The side counts the helper's tokens, `nudged [B]`.
    """

    NAME = "nudging"
    runs = ("workdir",)
    dials = ("nudging.threshold",)
    alone = True

    workdir: str = ""
    threshold: float = 0.0

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`."""
        V = models["model"].head_weights().shape[0]
        return {
            "state": second.said(models, self.NAME).init_state(batch, capacity),
            "begins": jnp.zeros((batch, V), bool),
            "inside": jnp.zeros((batch,), bool),
            "nudged": jnp.zeros((batch,), jnp.int32),
        }

    def given(self, options: Mapping[str, Any], tokenizer: Any, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Control.given`: which tokens begin with a blank."""
        begins = np.zeros(sizes["begins"].shape[1:], bool)
        special = {tokenizer.bos, tokenizer.eos, tokenizer.pad}
        for token in range(tokenizer.vocab_size):
            begins[token] = token not in special and tokenizer.decode([token])[:1].isspace()
        return {"begins": begins}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        here, threshold = logits[:, 0], p.dials["nudging.threshold"]
        needs = routing.needs_nudging(jax.nn.log_softmax(here, axis=-1), threshold)
        asked = (needs | side["inside"]) & (position[:, 0] >= 0)
        model = second.said(models, self.NAME)
        heard = second.hear_if(model, side["state"], p.length, asked, logits.shape[-1], p)
        # Inside a word the helper's next token belongs to it, unless it begins another.
        likeliest = jnp.argmax(heard.logits, axis=-1)[:, None]
        another = jnp.take_along_axis(side["begins"], likeliest, axis=1)[:, 0]
        nudged = asked & (needs | ~another)
        logits = jnp.where(nudged[:, None, None], heard.logits[:, None].astype(logits.dtype), logits)
        return logits, (heard.state, nudged)

    def commit(self, models: Mapping[str, Any], side: Any, made: Any, seen: Seen) -> Any:
        """See `Control.commit`."""
        state, nudged = made
        live = seen.count > 0
        counted = side["nudged"] + (nudged & live)
        return side | {"state": state, "inside": jnp.where(live, nudged, side["inside"]), "nudged": counted}


@dataclasses.dataclass(frozen=True)
class GeDi(Control):
    """A class-conditional run as guide: it reads each text behind the name of the wanted class and of the other.

    `form`: "exact" (Bayes, equal priors) or "released" (divided by the length, filtered by filter_p and target_p). The
    prompt counts in the likelihoods, as released; the names of the classes and the start of the document do not.
    """

    NAME = "gedi"
    runs = ("workdir",)
    dials = ("gedi.weight",)
    own = ("wanted", "other")
    alone = True

    workdir: str = ""
    weight: float = 0.0
    form: str = "exact"
    filter_p: float = 0.8
    target_p: float = 0.8
    wanted: str = ""
    other: str = ""

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`. Everything of the two classes stands side by side."""
        guide = second.said(models, self.NAME)
        classes = [guide.init_state(batch, capacity + MOST_CODE) for _ in range(2)]
        return {
            "states": classes,
            "code": jnp.zeros((batch, 2, MOST_CODE), jnp.int32),
            "many": jnp.zeros((batch, 2), jnp.int32),
            "first": jnp.zeros((batch,), jnp.int32),
            "history": jnp.zeros((batch, 2)),
            "following": jnp.zeros((batch, 2, models["model"].head_weights().shape[0])),
        }

    def given(self, options: Mapping[str, Any], tokenizer: Any, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Control.given`."""
        asked = options["gedi"]
        if not asked["weight"]:
            return {}
        code, many = np.zeros((2, MOST_CODE), np.int32), np.zeros(2, np.int32)
        for i, name in enumerate(("wanted", "other")):
            ids = tokenizer.encode(asked[name])
            if not 0 < len(ids) <= MOST_CODE:
                raise ValueError(
                    f"generate.gedi.{name}={asked[name]!r} is {len(ids)} tokens; a class's name has 1 to {MOST_CODE}."
                )
            code[i, : len(ids)], many[i] = ids, len(ids)
        return {"code": code, "many": many, "first": np.int32(getattr(tokenizer, "add_bos", True))}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        guide, V = second.said(models, self.NAME), logits.shape[-1]
        weight = p.dials["gedi.weight"]
        asked = (weight != 0) & (position[:, 0] >= 0)
        states, history, following = [], [], []
        for i in range(2):
            many, first = side["many"][:, i], side["first"]
            tokens_at = coded(second.plain(p), side["code"][:, i], many, first)
            length, read = p.length + many, side["states"][i]["slots"].length
            # The first token that is read now follows what was read before, whose law the side kept.
            own = jnp.take_along_axis(side["following"][:, i], tokens_at(read[:, None]), axis=1)[:, 0]
            counts = asked & (read > 0) & (read >= first + many) & (read < length)
            heard = second.hear(guide, side["states"][i], tokens_at, length, asked, first + many, V)
            states.append(heard.state)
            history.append(side["history"][:, i] + jnp.where(counts, own, 0) + heard.likelihood)
            following.append(heard.logits)
        history, following = jnp.stack(history, axis=1), jnp.stack(following, axis=1)
        log_following = jax.nn.log_softmax(following, axis=-1)
        if self.form == "exact":
            log_p = jax.nn.log_softmax(logits[:, 0], axis=-1)
            guided = gedi.exact(log_p, history, log_following, jnp.zeros(2), 0, weight)
        else:
            desired = gedi.released_log_desired(history, following, p.length - side["first"])
            guided = gedi.released(logits[:, 0], desired, weight[:, None], self.filter_p, self.target_p)
        logits = jnp.where(asked[:, None, None], guided[:, None].astype(logits.dtype), logits)
        kept = jnp.where(asked[:, None, None], log_following, side["following"])
        return logits, side | {"states": states, "history": history, "following": kept}

    def commit(self, models: Mapping[str, Any], side: Any, made: Any, seen: Seen) -> Any:
        """See `Control.commit`."""
        return made


def coded(text_at: Any, code: jax.Array, many: jax.Array, first: jax.Array) -> Any:
    """tokens_at of the texts with `many [B]` tokens of `code [B, K]` behind their first `first [B]` tokens."""

    def tokens_at(at: jax.Array) -> jax.Array:
        rank = at - first[:, None]
        name = jnp.take_along_axis(code, jnp.clip(rank, 0, code.shape[1] - 1), axis=1)
        text = text_at(jnp.where(rank < 0, at, at - many[:, None]))
        return jnp.where((rank >= 0) & (rank < many[:, None]), name, text)

    return tokens_at


PARTS = {"r2r": R2R, "nudging": Nudging, "gedi": GeDi}
