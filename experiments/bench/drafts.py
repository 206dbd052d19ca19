"""Bench rows of drafts: texts with and without them, and what a round costs beside the model's pass (`rounds`).

Weights are random, so that greedy texts soon repeat themselves: what a drafter that guesses well can win here, no more.
What it wins of a trained model, `--mode=evaluate --config.generate.drafter=NAME` says.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from experiments.bench import plain, rounds, training
from experiments.bench.comparison import Comparison, Planned
from experiments.generation.decoder import Decoder
from models.decoding import stream
from models.decoding.drafts.none import last_token

DRAFTERS = ("lookup", "recycling", "trie", "exit")
PROMPT = 64  # tokens
# Whose rounds are told apart from their passes, with about four drafts each; of "none" nothing is to be left.
ROUNDS: dict[str, dict[str, Any]] = {
    "none": {},
    "random": {"random": {"length": 4}},
    "lookup": {"lookup": {"length": 4, "ngram": 3}},
    "recycling": {"recycling": {"template": "2x1x1x1", "shared": False}},
    "trie": {"trie": {"size": 6, "branch": 4, "last": 2, "output_weight": 1e-4, "shared": False, "chain": False}},
}


def planned() -> Iterator[Planned]:
    """All rows of this module."""
    for name in DRAFTERS:
        yield Planned(f"drafts/b/{name}", functools.partial(_drafter, "b", name))
    for name in ROUNDS:
        yield Planned(f"drafts/b/round/{name}", functools.partial(_round, "b", name))


class _Bench:
    """Greedy texts of one row from a model of a bench shape."""

    def __init__(self, shape: str):
        D, L, _, F, V, _, _ = training.SHAPES[shape]
        program = training.program_of(shape)
        self.params = training.from_plain(plain.init(jax.random.key(1), V=V, D=D, L=L, F=F))
        self.decoder = Decoder(program, None)
        self.tokens = jnp.asarray(np.random.default_rng(0).integers(0, V, (1, PROMPT)), jnp.int32)

    def parts(self, **changes: Any) -> stream.Parts:
        """Greedy decoding with these changes of `config.generate`."""
        return self.decoder.parts([base.get_config().generate.to_dict() | {"temperature": 0.0} | changes])

    def begun(self, parts: stream.Parts, more: int) -> tuple[dict, stream.Progress]:
        """Weights, and a row whose prompt is read, with room for so many more tokens."""
        weights, length = self.decoder.weights(self.params, parts), jnp.full((1,), PROMPT, jnp.int32)
        text = jnp.pad(self.tokens, ((0, 0), (0, more)))
        given = text, length, length + more, jnp.zeros((1, 2), jnp.uint32), {}
        return weights, self.decoder.start(weights, *given, parts=parts, size=PROMPT, capacity=PROMPT + more)

    def text(self, parts: stream.Parts, more: int) -> jax.Array:
        """`[1, more]` tokens."""
        weights, p = self.begun(parts, more)
        return self.decoder.extend(weights, p, more, 2, parts=parts).text[:, PROMPT : PROMPT + more]


def _drafter(shape: str, name: str, more: int = 96) -> Comparison:
    made = _Bench(shape)
    parts = {"drafts": made.parts(drafter=name), "plain": made.parts()}
    written = {key: functools.partial(made.text, value, more) for key, value in parts.items()}

    def check() -> str:
        same = bool(jnp.all(written["drafts"]() == written["plain"]()))
        return "" if same else f"drafts of {name!r} change the text"

    work = (float(more), "tokens")
    return Comparison(f"drafts/{shape}/{name}", written, "plain", check=check, work=work)


def _round(shape: str, name: str, count: int = 24) -> Comparison:
    """Rounds of a drafter beside as many passes of the model over as many tokens, and over one."""
    made = _Bench(shape)
    parts = made.parts(drafter=name, **ROUNDS[name])
    drafter, run = parts.drafter[1], rounds.passes(made.decoder)
    weights, row = made.begun(parts, drafter.depth * count)
    begun = lambda: jax.tree.map(jnp.copy, row)  # noqa: E731 (each call gives its own away)

    def engine() -> jax.Array:
        return made.decoder.extend(weights, begun(), count, 2, parts=parts).calls

    def model(parents: np.ndarray | None, nodes: int) -> jax.Array:
        p = begun()
        token = last_token(p.text, p.length)
        return run(weights, p.state, token, count, parents, nodes=nodes)[0]["slots"].length

    candidates = {
        "round": engine,
        "pass": functools.partial(model, rounds.shape(drafter), drafter.nodes),
        "token": functools.partial(model, None, 1),
    }

    def check() -> str:
        found = {key: int(call()[0]) for key, call in candidates.items()}
        wanted = {"round": count, "pass": PROMPT - 1 + count, "token": PROMPT - 1 + count}
        return "" if found == wanted else f"{found} rounds or tokens held where there are {wanted}"

    work = (float(count), "passes")
    return Comparison(f"drafts/{shape}/round/{name}", candidates, "token", check=check, work=work)
