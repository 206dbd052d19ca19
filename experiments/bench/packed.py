"""Bench row of prompts that are read: side by side in rows, each in a row of its own, in batches padded to the longest.

python main.py --mode=bench --bench_filter=prepacking/
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.comparison import Comparison, Planned
from experiments.bench.decoding import endless
from experiments.generation.engine import Engine
from experiments.generation.prefixes import pieces, row_size
from experiments.generation.request import Request
from experiments.generation.serving import prepacking, traces
from models.decoding import parts as sockets


def planned() -> Iterator[Planned]:
    """All rows of this module."""
    yield Planned("prepacking/b", functools.partial(_read, "b"))


def counts(lengths: Sequence[int], chunk: int, batch: int) -> dict[str, int]:
    """Tokens that are read with padding: in packed rows of up to `chunk`, in pieces, in batches in their order."""
    rows = prepacking.bins(lengths, chunk)
    batches = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    return {
        "packed": sum(row_size(sum(lengths[i] for i in row)) for row in rows),
        "alone": sum(size for n in lengths for _, size in pieces(n, chunk)),
        "padded": sum(prepacking.padded_tokens(some) for some in batches),
    }


def _read(shape: str, count: int = 32, mean: float = 48, chunk: int = 512, batch: int = 8) -> Comparison:
    """Prompts of log-normal lengths: what the engine holds when all but their last tokens are read.

    "packed": several in a row; "alone": in pieces, as the engine reads them else; "padded": batches of `batch` prompts
    in the order in which they came, each as long as its longest.
    """
    lengths = traces.lengths(mean, 0.8, count, 0, most=chunk // 2)
    rng = np.random.default_rng(0)
    engine = Engine(endless(shape), lanes=batch, capacity=chunk, chunk=chunk, temperature=0.0)

    def asked() -> list[Request]:
        ids = [engine.admit(rng.integers(97, 123, n + 1), number=0, max_tokens=1) for n in lengths]
        made = [request for request in engine.waiting if request.id in ids]
        engine.waiting.clear()
        return made

    def read(*, packed: bool) -> list[Any]:
        requests = texts()
        done = engine._read_packed(requests) if packed else set()
        for request in requests:
            if request.id not in done:
                engine._read(request, len(request.ids))
        return [request.one.state for request in requests]

    kept = asked()

    def texts() -> list[Request]:
        for request in kept:
            request.one, request.read = None, 0
        return kept

    def padded() -> list[Any]:
        made = []
        for i in range(0, count, batch):
            some = kept[i : i + batch]
            longest = max(len(request.ids) for request in some)
            text = np.full((len(some), longest), engine.tokenizer.pad, np.int32)
            for row, request in zip(text, some, strict=True):
                row[: len(request.ids)] = request.ids
            given = [np.asarray([len(r.ids) for r in some]), np.asarray([r.limit for r in some])]
            given += [np.stack([r.key for r in some]), sockets.dials([r.options for r in some], engine._parts)]
            p = engine.decoder.start(
                engine.weights, text, *given, parts=engine._parts, size=longest - 1, capacity=engine.pool.room(longest)
            )
            made.append(p.state)
        return made

    def check() -> str:
        alone, side = read(packed=False), read(packed=True)
        batches = [jax.tree.map(lambda x, j=j: x[j : j + 1], state) for state in padded() for j in range(batch)]
        far = 0.0
        for n, *states in zip(lengths, alone, side, batches, strict=True):
            one, *others = [jax.tree.leaves(state["layers"])[-1][:, :, :n] for state in states]
            far = max(far, *(float(jnp.max(jnp.abs(one - other))) for other in others))
        return "" if far < 1e-4 else f"values of the last layer differ by {far:.1e}"

    return Comparison(
        name=f"prepacking/{shape}",
        candidates={"packed": lambda: read(packed=True), "alone": lambda: read(packed=False), "padded": padded},
        baseline="padded",
        check=check,
        work=(sum(lengths), "tokens"),
        counted=("tokens with padding", counts(lengths, chunk, batch)),
        rounds=7,
    )
