"""Bench rows of controlled decoding: a token under a JSON schema beside a token without one."""

import functools
import json
import time
import types
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.bench.comparison import Comparison, Planned
from experiments.bench.decoding import GREEDY
from experiments.bench.training import SHAPES, program_of
from experiments.generation.between import given, started
from experiments.generation.decoder import Decoder

SCHEMA = {"type": "array", "items": {"type": "integer"}, "minItems": 128, "maxItems": 160}


def planned() -> Iterator[Planned]:
    """All rows of this module."""
    yield Planned("control/schema/b", functools.partial(_schema, "b"))


def vocabulary(V: int) -> Any:
    """A tokenizer of V ids: the bytes, then words of two to four letters, drawn; the last three are marks."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)
    words = [bytes(rng.choice(letters, n)) for n in rng.integers(2, 5, V - 259)]
    pieces = (*(bytes([i]) for i in range(256)), *words, b"", b"", b"")
    return types.SimpleNamespace(pieces=pieces, vocab_size=V, bos=V - 3, eos=V - 2, pad=V - 1)


def _schema(shape: str, batch: int = 8, prompt: int = 64, max_new: int = 400, rounds: int = 128) -> Comparison:
    """Rows under a schema whose texts are longer than is measured, so that all rows go on.

    The compilation is counted by itself: its seconds come with the row.
    """
    V = SHAPES[shape][4]
    made, tokenizer = program_of(shape), vocabulary(V)
    decoder, params = Decoder(made, tokenizer), made.init()["params"]
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (batch, prompt)), jnp.int32)
    masked = GREEDY | {"control": "constraint", "max_tokens": max_new}
    masked |= {"constraint": GREEDY["constraint"] | {"schema": json.dumps(SCHEMA), "states": 4096}}
    weights = decoder.weights(params, decoder.parts([masked]))
    begun = time.process_time()
    entries = given(decoder.parts([masked]), masked, tokenizer, decoder.sides(weights, decoder.parts([masked]), 1))
    compiled = time.process_time() - begun

    def rows(options: dict[str, Any]) -> Any:
        parts = decoder.parts([options])
        text, length = jnp.pad(tokens, ((0, 0), (0, max_new))), jnp.full((batch,), prompt, jnp.int32)
        own = (text, length, length + max_new, jnp.zeros((batch, 2), jnp.uint32), {})
        p = decoder.start(weights, *own, parts=parts, size=prompt, capacity=prompt + max_new)
        return started(p, entries if options is masked else {}), parts

    def texts(options: dict[str, Any]) -> Any:
        p, parts = rows(options)
        return decoder.extend(weights, p, rounds, batch + 1, parts=parts).text[:, prompt : prompt + rounds]

    def check() -> str:
        found = [bytes(b"".join(tokenizer.pieces[t] for t in row)) for row in np.asarray(texts(masked))]
        right = all(set(text) <= set(b"[]-, \n\t\r0123456789") and text[:1] in b"[ \n\t\r" for text in found)
        return "" if right else f"a text under the schema begins {found[0][:40]!r}"

    return Comparison(
        name=f"control/schema/{shape}",
        candidates={"schema": lambda: texts(masked), "plain": lambda: texts(GREEDY)},
        baseline="plain",
        check=check,
        work=(batch * rounds, "tokens"),
        counted=("ms of its compilation", {"schema": round(1000 * compiled), "plain": 0}),
        rounds=7,
    )
