"""Bench rows of drafts: texts with and without them, and what a round costs beside the model's pass.

Weights are random, so that greedy texts soon repeat themselves: what a drafter that guesses well can win here, no more.
What it wins of a trained model, `--mode=evaluate --config.generate.drafter=NAME` says.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from experiments.bench import plain, training
from experiments.bench.comparison import Comparison, Planned
from experiments.generation.decoder import Decoder
from kernels import masks
from models.decoding import stream
from models.decoding.rows import single

DRAFTERS = ("lookup", "recycling", "trie", "exit")
LENGTH, PROMPT = 4, 64  # drafts of a round whose cost is measured; tokens of the prompt


def planned() -> Iterator[Planned]:
    """All rows of this module."""
    for name in DRAFTERS:
        yield Planned(f"drafts/b/{name}", functools.partial(_drafter, "b", name))
    yield Planned("drafts/b/round", functools.partial(_round, "b"))


def passes(decoder: Decoder) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(weights, p, rounds, nodes=) -> tokens held in the end, and the last ones: so many passes of the model alone over
    `nodes` tokens, with the likeliest token behind each of them, which the next pass reads; one is kept."""

    @functools.partial(jax.jit, static_argnames=("nodes",))
    def run(weights: dict, p: stream.Progress, rounds: int, *, nodes: int) -> tuple[jax.Array, jax.Array]:
        model = decoder.models(weights)["model"]
        carried, rows = single(p.state)

        def one(_: int, carry: tuple) -> tuple:
            token, state = carry[0], rows(carry[1])
            place = state["slots"].length[:, None] + jnp.arange(nodes)
            after = model(token, mask=masks.Causal(), positions=place, state=state)
            token = jnp.argmax(model.logits(after.features), axis=-1).astype(jnp.int32)
            kept = {"slots": state["slots"].append(place[:, :1]), "layers": after.state["layers"]}
            return token, single(kept)[0]

        token = jnp.broadcast_to(p.text[:, :1], (len(p.text), nodes))
        token, carried = jax.lax.fori_loop(0, rounds, one, (token, carried))
        return rows(carried)["slots"].length, token  # What is not returned would not be computed.

    return run


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


def _round(shape: str, rounds: int = 24) -> Comparison:
    """Rounds whose drafts are all rejected beside as many passes of the model over as many tokens."""
    made = _Bench(shape)
    parts = made.parts(drafter="random", random={"length": LENGTH})

    def engine() -> jax.Array:
        weights, p = made.begun(parts, 4 * rounds)
        return made.decoder.extend(weights, p, rounds, 2, parts=parts).length

    run = passes(made.decoder)

    def model() -> jax.Array:
        return run(*made.begun(parts, 4 * rounds), rounds, nodes=LENGTH + 1)[0] + 1

    def check() -> str:
        far = int(jnp.max(jnp.abs(engine() - model())))  # A random draft stays once in V times.
        return "" if far <= 2 else f"{far} of {rounds} rounds kept a draft"

    work = (float(rounds), "passes")
    return Comparison(f"drafts/{shape}/round", {"round": engine, "pass": model}, "pass", check=check, work=work)
