"""Everyday controls of logits, with each request's own numbers; the rules are plain functions beside this module."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.control import Control, cuts, nodes, penalties, repeats
from models.decoding.drafts import Seen, Tree


class Rule(Control):
    """Base of those that read the logits `[B, N, V]`, the text of each node and the row's numbers, and keep nothing.

    `change(logits, tokens [B, N, R], length [B, N], prompt [B], dials)`: length 0 where there is no node; dials are by
    the name of the field, `[B]`.
    """

    NAME: ClassVar[str] = ""

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        dials = {name.partition(".")[2]: p.dials[name] for name in self.dials}
        return self.change(logits, *nodes.texts(p, tree, position), p.prompt, dials), None

    def change(self, logits: jax.Array, tokens: jax.Array, length: jax.Array, prompt: jax.Array, dials: Mapping) -> Any:
        """See the class."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Penalties(Rule):
    """repetition (of prompt and answer), presence and frequency (of the answer), as in transformers and OpenAI's."""

    dials = ("penalties.repetition", "penalties.presence", "penalties.frequency")

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0

    def change(self, logits: jax.Array, tokens: jax.Array, length: jax.Array, prompt: jax.Array, dials: Mapping) -> Any:
        """See `Rule`."""
        V = logits.shape[-1]
        count = penalties.counts(tokens, length, V)
        logits = penalties.repetition(logits, count > 0, dials["repetition"])
        written = count - penalties.counts(tokens[:, :1], prompt[:, None], V)
        return penalties.presence_frequency(logits, jnp.maximum(written, 0), dials["presence"], dials["frequency"])


@dataclasses.dataclass(frozen=True)
class MinLength(Rule):
    """No end before so many tokens of the answer."""

    dials = ("min_length.tokens",)

    tokens: int = 0
    eos: int = -1

    def change(self, logits: jax.Array, tokens: jax.Array, length: jax.Array, prompt: jax.Array, dials: Mapping) -> Any:
        """See `Rule`."""
        return penalties.min_length(logits, length - prompt[:, None], dials["tokens"][:, None], self.eos)


@dataclasses.dataclass(frozen=True)
class NoRepeat(Rule):
    """No n-gram of prompt and answer a second time, n the row's own, at most `MOST`."""

    dials = ("no_repeat_ngram.n",)
    MOST: ClassVar[int] = 8

    n: int = 0

    def change(self, logits: jax.Array, tokens: jax.Array, length: jax.Array, prompt: jax.Array, dials: Mapping) -> Any:
        """See `Rule`."""
        n = dials["n"][:, None, None]
        found = jnp.zeros(logits.shape, bool)
        for size in range(1, self.MOST + 1):
            found |= (n == size) & repeats.repeats_ngram(tokens, length, size, logits.shape[-1])
        return jnp.where(found & ~jnp.all(found, axis=-1, keepdims=True), -jnp.inf, logits)


@dataclasses.dataclass(frozen=True)
class Dry(Rule):
    """Don't repeat yourself; `repeats.dry`."""

    dials = ("dry.multiplier", "dry.base", "dry.allowed")

    multiplier: float = 0.0
    base: float = 1.75
    allowed: int = 2

    def change(self, logits: jax.Array, tokens: jax.Array, length: jax.Array, prompt: jax.Array, dials: Mapping) -> Any:
        """See `Rule`."""
        match = repeats.longest_matches(tokens, length, logits.shape[-1])
        return repeats.dry(logits, match, dials["multiplier"], dials["base"], dials["allowed"])


class Cut(Control):
    """Base of those that read logits and one number a row."""

    pure = True
    RULE: ClassVar[Callable]

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        return self.RULE(logits, p.dials[self.dials[0]]), None


@dataclasses.dataclass(frozen=True)
class Typical(Cut):
    """`cuts.typical`."""

    dials = ("typical_p.mass",)
    RULE = staticmethod(cuts.typical)

    mass: float = 1.0


@dataclasses.dataclass(frozen=True)
class TopNSigma(Cut):
    """`cuts.top_n_sigma`."""

    dials = ("top_n_sigma.n",)
    RULE = staticmethod(cuts.top_n_sigma)

    n: float = 0.0


@dataclasses.dataclass(frozen=True)
class Mirostat(Control):
    """Mirostat 2: `cuts.mirostat` with a bound that follows the surprise of what was drawn; tau 0 is off.

    The side is mu - 2 tau, which starts at 0. The surprise is that among the kept tokens, before later entries.
    """

    dials = ("mirostat.tau", "mirostat.rate")

    tau: float = 0.0
    rate: float = 0.1

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`."""
        return {"off": jnp.zeros((batch,))}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        tau, rate = p.dials["mirostat.tau"], p.dials["mirostat.rate"]

        def kept(off: jax.Array, node: jax.Array | int) -> jax.Array:
            mine = nodes.taken(logits, jnp.asarray(node)[None] if jnp.ndim(node) == 0 else node)
            return jnp.where((tau > 0)[:, None], cuts.mirostat(mine, 2 * tau + off), mine)

        def step(held: tuple, node: int) -> tuple:
            off, cut = held
            off = moved(off, cut, tree.token[:, node], tau, rate)
            return off, kept(off, node)

        off, cut = nodes.along(tree, (side["off"], kept(side["off"], 0)), step)
        return cut, (off, cut, tau, rate)

    def commit(self, models: Mapping[str, Any], side: Any, made: Any, seen: Seen) -> Any:
        """See `Control.commit`."""
        off, cut, tau, rate = made
        node, token, live = nodes.last(seen)
        new = moved(*nodes.taken((off, cut), node), token, tau, rate)
        return {"off": jnp.where(live, new, side["off"])}


def moved(off: jax.Array, kept: jax.Array, token: jax.Array, tau: jax.Array, rate: jax.Array) -> jax.Array:
    """mu - 2 tau after a token, `[B]`: off `[B]` before it, kept `[B, V]` logits, token `[B]`; 0 where tau is."""
    p = jnp.take_along_axis(jax.nn.softmax(kept, axis=-1), token[:, None], axis=-1)[:, 0]
    mu = cuts.mirostat_mu(2 * tau + off, jnp.maximum(p, 1e-30), tau, rate)
    return jnp.where(tau > 0, mu - 2 * tau, 0)


@dataclasses.dataclass(frozen=True)
class LogitBias(Control):
    """Adds to logits of ids: "50:-2.5, 13:-inf", each request's own."""

    own = ("ids",)

    ids: str = ""

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`."""
        return {"added": jnp.zeros((batch, models["model"].head_weights().shape[0]))}

    def given(self, options: Mapping[str, Any], tokenizer: Any, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Control.given`."""
        added = np.zeros(sizes["added"].shape[1:], np.float32)
        for pair in filter(None, map(str.strip, options["logit_bias"]["ids"].split(","))):
            token, _, value = pair.partition(":")
            try:
                token, value = int(token), float(value)
            except ValueError:
                raise ValueError(f"generate.logit_bias.ids has {pair!r}; an example: 50:-2.5, 13:-inf.") from None
            if not 0 <= token < tokenizer.vocab_size or value == np.inf or np.isnan(value):
                raise ValueError(
                    f"generate.logit_bias.ids has {pair!r}; ids are 0 to {tokenizer.vocab_size - 1}, values below inf."
                )
            added[token] += value
        return {"added": added}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        return penalties.bias(logits, side["added"][:, None].astype(logits.dtype)), None


PARTS = {
    "penalties": Penalties,
    "min_length": MinLength,
    "no_repeat_ngram": NoRepeat,
    "dry": Dry,
    "typical_p": Typical,
    "top_n_sigma": TopNSigma,
    "mirostat": Mirostat,
    "logit_bias": LogitBias,
}
