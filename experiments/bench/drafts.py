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
            token, state = _pass(model, carry[0], rows(carry[1]))
            return token, single(state)[0]

        token = jnp.broadcast_to(p.text[:, :1], (len(p.text), nodes))
        token, carried = jax.lax.fori_loop(0, rounds, one, (token, carried))
        return rows(carried)["slots"].length, token  # What is not returned would not be computed.

    return run


def pair_passes(target: Decoder, draft: Decoder) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(weights, p, weights, p, rounds, nodes=, reads=) -> tokens held, and the last ones: so many rounds of passes of
    two models alone, the draft's over `reads` tokens, then the target's over `nodes`, each behind the one before it.

    Between two passes of a small model the large one's parameters take the processor's cache: passes of each model by
    itself say less than a round of both costs.
    """

    @functools.partial(jax.jit, static_argnames=("nodes", "reads"))
    def run(
        weights: dict, p: stream.Progress, own: dict, q: stream.Progress, rounds: int, *, nodes: int, reads: tuple
    ) -> tuple[jax.Array, jax.Array]:
        large, small = target.models(weights)["model"], draft.models(own)["model"]
        (carried, rows), (drafted, others) = single(p.state), single(q.state)

        def one(_: int, carry: tuple) -> tuple:
            token, state, after = carry[0], rows(carry[1]), others(carry[2])
            slots = after["slots"]
            for n in reads:
                made, after = _pass(small, jnp.broadcast_to(token[:, :1], (len(token), n)), after)
                token = jnp.concatenate([made[:, -1:], token[:, 1:]], axis=1)
            after["slots"] = slots.append(slots.length[:, None])  # Else a text would grow by all drafts.
            token, state = _pass(large, jnp.broadcast_to(token[:, :1], (len(token), nodes)), state)
            return token, single(state)[0], single(after)[0]

        token = jnp.broadcast_to(p.text[:, :1], (len(p.text), nodes))
        token, carried, _ = jax.lax.fori_loop(0, rounds, one, (token, carried, drafted))
        return rows(carried)["slots"].length, token

    return run


def _pass(model: Any, token: jax.Array, state: Any) -> tuple[jax.Array, dict]:
    """The likeliest tokens behind `token [B, n]`, and the state with the first of these."""
    place = state["slots"].length[:, None] + jnp.arange(token.shape[1])
    after = model(token, mask=masks.Causal(), positions=place, state=state)
    token = jnp.argmax(model.logits(after.features), axis=-1).astype(jnp.int32)
    return token, {"slots": state["slots"].append(place[:, :1]), "layers": after.state["layers"]}


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
