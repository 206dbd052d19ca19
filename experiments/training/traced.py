"""The trace of a trained model: which experts its tokens go to, written to a file that the policies read."""

import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from experiments import workdir as files
from experiments.program import Program, global_batch, sharding
from experiments.routing import traces
from experiments.settings import processes
from models.experts.options import Options
from models.mixers.context import EXPERTS
from models.objectives import next_token


def record(program: Program, params: Any, batches: Iterable[dict], tokens: int) -> np.ndarray:
    """Experts of the first `tokens` tokens of `batches` that are no padding, in a plain pass: `[N, L, K]`, -1 = none.

    Args:
      program: of a model whose channel is `moe`.
      params: on the program's mesh.
      batches: this process's rows of each global batch (numpy).
      tokens: N, fewer where the batches hold fewer.
    """
    return recorded(program, params, batches, tokens)[0]


def recorded(program: Program, params: Any, batches: Iterable[dict], tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(the trace of `record`, the ids of its tokens `[N]`)."""
    found, ids, count = [], [], 0
    for index, there, read in by_row(program, params, batches):
        found.append(index[there])
        ids.append(read[there])
        count += len(found[-1])
        if count >= tokens:
            break
    return np.concatenate(found)[:tokens], np.concatenate(ids)[:tokens]


def by_row(
    program: Program, params: Any, batches: Iterable[dict]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(experts `[B, T, L, K]`, -1 = none; whether a token is no padding, and its id `[B, T]`) of each batch."""

    def step(params: Any, batch: dict) -> jax.Array:
        told = next_token.told_of(batch)
        report = program.merge(params)(batch["tokens"], mask=program.objective.mask, taps=(EXPERTS,), **told).report
        return report[EXPERTS]

    run = program.jit(step, out_shardings=sharding.replicated(program.mesh))
    for batch in batches:
        placed = global_batch(batch, program)
        index = np.moveaxis(np.asarray(run(params, placed)), 0, 2)
        ids = placed.get("segment_ids")
        there = np.ones(index.shape[:2], bool) if ids is None else _whole(ids, program) != 0
        yield index, there, _whole(placed["tokens"], program)


def _whole(array: jax.Array, program: Program) -> np.ndarray:
    return np.asarray(jax.jit(lambda x: x, out_shardings=sharding.replicated(program.mesh))(array))


def write(
    program: Program, params: Any, batches: Iterable[dict], workdir: pathlib.Path, decode: Callable[[list], str]
) -> None:
    """Writes the trace of `eval.trace` held-out tokens to WORKDIR/routing.npz, with their texts, and says so.

    Every process takes part; the first one writes. `decode`: a tokenizer's, the text of some ids.
    """
    trace, ids = recorded(program, params, batches, program.config.eval.trace)
    experts = Options.of(program.spec.options["moe"]).kinds.total
    if processes.is_main():
        path = pathlib.Path(workdir) / files.ROUTING
        different, tokens = np.unique(ids, return_inverse=True)
        traces.save(str(path), trace, experts, (tokens, [decode([int(i)]) for i in different]))
        print(f"experts of {len(trace)} tokens in {trace.shape[1]} layers, {trace.shape[2]} of {experts} each: {path}")
