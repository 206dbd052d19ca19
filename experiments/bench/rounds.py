"""What a round of drafts takes beyond its passes of the models: both from the same rows, in turn, as many of each.

The passes alone read what a round reads: as many tokens, in a tree where its drafts are one, behind the same text with
the same room. They find the likeliest token behind each node, as a round does; they propose, judge and move nothing.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from experiments.generation.decoder import Decoder
from kernels import masks
from models.decoding import stream
from models.decoding.drafts import Drafter
from models.decoding.drafts.none import last_token
from models.decoding.rows import single
from models.mixers.slots import depths


class Way(Protocol):
    """Texts with one drafter behind `prompts`."""

    decoder: Decoder
    weights: dict
    parts: stream.Parts
    prompts: Sequence[Any]
    tokens: int

    def begun(self, i: int) -> stream.Progress:
        """The row of prompt i, read; made anew in each call."""
        ...


class Cost(NamedTuple):
    """CPU seconds of a round and of its passes alone, and (round - passes) / step with the step a pass of the target
    over one token: medians over turns."""

    round: float
    passes: float
    beyond: float


def passes(decoder: Decoder) -> Callable[..., tuple[dict, jax.Array]]:
    """(weights, state, token `[B, 1]`, rounds, parents=None, nodes=1) -> the state and the last tokens `[B, nodes]`.

    So many passes of the model alone, first over `nodes` times the same token. The next one reads what is likeliest
    behind each; the state keeps the first node of each. parents: `[1, nodes]` of a tree; None: a chain. The state is
    given away.
    """

    def run(weights: dict, state: dict, token: jax.Array, rounds: int, parents=None, nodes: int = 1) -> tuple:
        model = decoder.models(weights)["model"]
        carried, rows = single(state)

        def one(_: int, carry: tuple) -> tuple:
            token, state = _pass(model, carry[0], rows(carry[1]), parents)
            return token, single(state)[0]

        token = jnp.broadcast_to(token, (len(token), nodes))
        token, carried = jax.lax.fori_loop(0, rounds, one, (token, carried))
        return rows(carried), token

    return jax.jit(run, static_argnames=("nodes",), donate_argnames=("state",))


def pair_passes(target: Decoder, draft: Decoder) -> Callable[..., tuple[dict, dict, jax.Array]]:
    """(weights, state, (draft's weights, its state), token `[B, 1]`, rounds, parents=None, nodes=, reads=) -> the
    states and the last tokens: so many rounds of passes of two models alone, the draft's over `reads` tokens each, then
    the target's over `nodes`, each behind what was likeliest at the end of the one before it.

    Between two passes of a small model the large one's parameters take the processor's cache: passes of each model by
    itself say less than a round of both costs. The draft keeps one token a round.
    """

    def run(
        weights: dict, state: dict, own: tuple[dict, dict], token: jax.Array, rounds: int, parents=None,
        *, nodes: int, reads: tuple[int, ...],
    ) -> tuple[dict, dict, jax.Array]:  # fmt: skip
        large, small = target.models(weights)["model"], draft.models(own[0])["model"]
        (carried, rows), (held, others) = single(state), single(own[1])

        def one(_: int, carry: tuple) -> tuple:
            token, state, after = carry[0], rows(carry[1]), others(carry[2])
            slots = after["slots"]
            last = token[:, :1]
            for n in reads:
                made, after = _pass(small, jnp.broadcast_to(last, (len(last), n)), after, None)
                last = made[:, -1:]
            after["slots"] = slots.append(slots.length[:, None])  # Else a text would grow by all drafts.
            token, state = _pass(large, jnp.broadcast_to(last, (len(last), nodes)), state, parents)
            return token, single(state)[0], single(after)[0]

        token = jnp.broadcast_to(token, (len(token), nodes))
        token, carried, held = jax.lax.fori_loop(0, rounds, one, (token, carried, held))
        return rows(carried), others(held), token

    return jax.jit(run, static_argnames=("nodes", "reads"), donate_argnames=("state",))


def _pass(model: Any, token: jax.Array, state: Any, parents: jax.Array | None) -> tuple[jax.Array, dict]:
    """The likeliest tokens behind `token [B, n]`, and the state with the first of these."""
    depth = jnp.arange(token.shape[1])[None] if parents is None else depths(parents)
    place = state["slots"].length[:, None] + depth
    after = model(token, mask=masks.Causal(), positions=place, state=state, parents=parents)
    token = jnp.argmax(model.logits(after.features), axis=-1).astype(jnp.int32)
    return token, {"slots": state["slots"].append(place[:, :1]), "layers": after.state["layers"]}


def shape(drafter: Drafter) -> np.ndarray | None:
    """Parents `[1, N]` of a tree as large and as deep as the drafter's; None where it drafts chains."""
    if not drafter.branches:
        return None
    N, D = drafter.nodes, drafter.depth
    return np.array([[*range(-1, D - 1), *[0] * (N - D)]], np.int32)


def reads(name: str, drafter: Any) -> tuple[int, ...]:
    """Tokens of each pass of the draft model in a round; () of a drafter without one.

    A draft model reads what it lacks of the text in one pass over two tokens, then one token a pass; a tree of it
    begins with what the last round wrote, `depth` tokens, then all nodes so far a pass.
    """
    if name == "model_tree":
        return (drafter.depth, *(drafter.beam * i for i in range(1, drafter.levels)))
    if name == "model_draft":
        return (2, *[1] * (drafter.length - 1))
    return ()


def written(way: Way, i: int) -> tuple[float, int]:
    """(CPU seconds, rounds) of the text behind prompt i."""
    p = way.begun(i)
    began = time.process_time()
    p = way.decoder.extend(way.weights, p, np.int32(way.tokens), np.int32(2), parts=way.parts)
    jax.block_until_ready(p)
    return time.process_time() - began, int(p.calls[0])


def alone(run: Callable, way: Way, i: int, given: Sequence[Any], rounds: int, **sizes: Any) -> float:
    """CPU seconds of so many rounds of passes alone behind prompt i. given: of the draft, if there is one."""
    p = way.begun(i)
    token = jax.block_until_ready(last_token(p.text, p.length))
    began = time.process_time()
    jax.block_until_ready(run(way.weights, p.state, *given, token, np.int32(rounds), **sizes))
    return time.process_time() - began


def costs(ways: Mapping[str, Way], draft: Way | None, turns: int) -> dict[str, Cost]:
    """Of each way: `Cost` over the texts behind all prompts.

    Of each text in turn its rounds, their passes alone, and as many passes over one token; every other time the other
    way round. A turn before those that count compiles.

    draft: of the model that drafts for those ways of which `reads` says so.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    alones = {name: passes(way.decoder) for name, way in ways.items()}
    pairs = {name: pair_passes(way.decoder, draft.decoder) for name, way in ways.items()} if draft else {}
    counts = {name: [written(way, i)[1] for i in range(len(way.prompts))] for name, way in ways.items()}
    for turn in range(turns + 1):
        for name, way in ways.items():
            total = np.zeros(3)
            for i, count in enumerate(counts[name]):
                total += _once(way, i, count, alones[name], pairs.get(name), draft, turn % 2 == 0)
            if turn:
                found[name].append(total / sum(counts[name]))
    middle = lambda values: float(statistics.median(values))  # noqa: E731
    return {
        name: Cost(middle(each[:, 0]), middle(each[:, 1]), middle((each[:, 0] - each[:, 1]) / each[:, 2]))
        for name, each in ((name, np.array(rows)) for name, rows in found.items())
    }


def _once(way: Way, i: int, count: int, run: Callable, pair: Callable | None, draft: Way | None, first: bool) -> list:
    """CPU seconds of text i: of its rounds, their passes, as many passes over one token. first: in this order."""
    name, drafter = way.parts.drafter
    sizes = {"parents": shape(drafter), "nodes": drafter.nodes}

    def both() -> float:
        read = reads(name, drafter)
        if not read:
            return alone(run, way, i, (), count, **sizes)
        own = ((draft.weights, draft.begun(i).state),)
        return alone(pair, way, i, own, count, reads=read, **sizes)

    calls = [lambda: written(way, i)[0], both, lambda: alone(run, way, i, (), count)]
    spent = [call() for call in (calls if first else calls[::-1])]
    return spent if first else spent[::-1]
