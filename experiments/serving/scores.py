"""Log-probabilities of the tokens of a text: one pass of the model over all of it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels import choices, masks
from models.decoding.control.warp import allowed

ALTERNATIVES = 20
"""Tokens that a score names at most."""


class Scores(NamedTuple):
    """Of T tokens given those before each, in nats: the model's own, before temperature, penalties and cuts."""

    own: np.ndarray  # [T] float32; of the first, before which there is nothing, 0
    ids: np.ndarray  # [T, K] the likeliest tokens at its place, the likeliest first
    best: np.ndarray  # [T, K] float32 theirs


def log_probabilities(logits: jax.Array, tokens: jax.Array, vocab_size: int, count: int) -> Scores:
    """Scores of `tokens [T]` under `logits [T, V]`, where row t is read after token t and is about token t + 1.

    own[t] = logits[t-1, tokens[t]] - log sum_v exp logits[t-1, v] over v < vocab_size; own[0] = 0. count: K. Of equal
    logits the smaller id stands first.
    """
    logits = allowed(logits.astype(jnp.float32), vocab_size)
    law = jnp.roll(jax.nn.log_softmax(logits, axis=-1), 1, axis=0)
    own = jnp.take_along_axis(law, tokens[:, None], axis=-1)[:, 0].at[0].set(0.0)
    best, ids = jax.lax.top_k(law, min(count, vocab_size))
    return Scores(own, ids, best)


class Scorer:
    """Scores of texts by the model of an engine; compiled once for each power of two of their length.

    A memory that forgets (`generate.memory`) is not asked: what is scored is the model that sees all of the text.
    """

    def __init__(self, engine: Any):
        self.engine = engine
        self._made = engine.decoder.program.jit(self._pass)

    def __call__(self, ids: np.ndarray) -> Scores:
        """Of `ids [T]`, the start of a document included."""
        text = np.full(length(len(ids)), self.engine.tokenizer.pad, np.int32)
        text[: len(ids)] = ids
        made = self._made(self.engine.weights, text, np.int32(len(ids)))
        return Scores(*(np.asarray(value)[: len(ids)] for value in made))

    def _pass(self, weights: Any, text: jax.Array, count: jax.Array) -> Scores:
        model, B = self.engine.decoder.models(weights)["model"], self.engine.decoder.devices  # Each reads a row.
        places = jnp.arange(text.shape[0])
        run = functools.partial(model, mask=masks.Causal(), fresh=True, state=model.init_state(B, text.shape[0]))
        rows = lambda x: jnp.broadcast_to(x, (B, *x.shape))  # noqa: E731
        made = run(rows(text), positions=rows(jnp.where(places < count, places, -1)))
        return log_probabilities(model.logits(made.features)[0], text, self.engine.tokenizer.vocab_size, ALTERNATIVES)


def length(count: int) -> int:
    """Tokens of the pass that scores `count` tokens: few lengths, so that few programs are compiled."""
    return max(64, choices.length(count))
