"""Prompts read in one process, answers written in another: the row moves between them, and the text is the same.

    python -m experiments.generation.serving.apart --workdir=runs/first --prompt="def main(" --tokens=40

The first process is a `Reader`, the second a `Writer`; what moves is a `Handed`: the request, and its row's leaves as
numpy arrays. Both engines have the same run and settings. Splitwise is this with pools of machines on each side.
"""

import argparse
import dataclasses
import multiprocessing
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.generation import requests
from experiments.generation.engine import Engine
from experiments.generation.request import Request, Result
from experiments.settings.errors import ConfigError
from experiments.workdir import trained


@dataclasses.dataclass(frozen=True)
class Handed:
    """A request whose prompt is read.

    Attributes:
      prompt, seed, number, settings: as of `Engine.admit`.
      leaves: of its row, in the order of the tree.
    """

    prompt: str
    seed: int | None
    number: int
    settings: Mapping[str, Any]
    leaves: Sequence[np.ndarray]

    @property
    def size(self) -> int:
        """Bytes of the row."""
        return sum(leaf.nbytes for leaf in self.leaves)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads prompts and writes nothing."""

    engine: Engine

    def read(self, prompt: str, *, seed: int | None = None, number: int | None = None, **settings: Any) -> Handed:
        """A prompt, read.

        Errors: ConfigError, as of `Engine.admit`.
        """
        engine, number = self.engine, requests.number(prompt, 0) if number is None else number
        id = engine.admit(prompt, seed=seed, number=number, **settings)
        request = next(each for each in engine.waiting if each.id == id)
        engine._begin(request)
        engine._read(request, len(request.ids))
        leaves = jax.device_get(jax.tree.leaves(request.one))
        engine.free(id)
        engine.ended()
        return Handed(prompt, seed, number, settings, leaves)


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writes behind prompts that another has read."""

    engine: Engine

    def take(self, handed: Handed) -> int:
        """Lets a request wait for a lane; its id.

        Errors: ConfigError where the row is not one of this engine's: another run, or other settings.
        """
        id = self.engine.admit(handed.prompt, seed=handed.seed, number=handed.number, **handed.settings)
        request = next(each for each in self.engine.waiting if each.id == id)
        like, tree = jax.tree.flatten(jax.eval_shape(lambda: self._row(request)))
        differ = len(like) != len(handed.leaves) or any(
            (a.shape, a.dtype) != (b.shape, b.dtype) for a, b in zip(like, handed.leaves, strict=True)
        )
        if differ:
            self.engine.free(id)
            raise ConfigError(["a row that was handed on is not of this run and these settings; load the same ones."])
        request.one, request.read = jax.tree.unflatten(tree, handed.leaves), len(request.ids)
        return id

    def _row(self, request: Request) -> Any:
        return self.engine._fresh_row(request, None)


def reading(connection: Any, workdir: str, settings: Mapping[str, Any], asked: Sequence[tuple[str, Mapping]]) -> None:
    """The first process: reads prompts in order and sends what it has, then None; an error is sent in their place."""
    try:
        reader = Reader(Engine(trained.load(pathlib.Path(workdir)), **settings))
        for prompt, options in asked:
            connection.send(reader.read(prompt, **options))
        connection.send(None)
    except Exception as error:  # Whatever it is, the other process waits for it.
        connection.send(f"{type(error).__name__}: {error}")
    finally:
        connection.close()


def serve(
    workdir: str, asked: Sequence[tuple[str, Mapping[str, Any]]], **settings: Any
) -> tuple[list[Result], list[Handed]]:
    """Results of requests in their order, and what moved: prompts are read in a process of their own.

    Args:
      workdir: of a run.
      asked: (prompt, keywords of `Reader.read`) of each.
      **settings: of `Engine`, for both.

    Errors: RuntimeError with what ended the other process.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=reading, args=(there, workdir, settings, asked), daemon=True)
    process.start()
    there.close()
    writer = Writer(Engine(trained.load(pathlib.Path(workdir)), **settings))
    handed, ids, found = [], [], {}
    for row in _received(here):
        handed.append(row)
        ids.append(writer.take(row))
        while not here.poll() and (writer.engine.waiting or writer.engine.running):  # Writes while the next is read.
            writer.engine.step()
            found |= {result.id: result for result in writer.engine.ended()}
    found |= {result.id: result for result in writer.engine.results()}
    process.join()
    return [found[id] for id in ids], handed


def _received(connection: Any) -> Iterator[Handed]:
    while True:
        try:
            row = connection.recv()
        except EOFError:
            raise RuntimeError("the process that reads prompts has gone; look at what it printed.") from None
        if isinstance(row, str):
            raise RuntimeError(f"the process that reads prompts ended: {row}")
        if row is None:
            return
        yield row


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--prompt", action="append", required=True)
    parser.add_argument("--tokens", type=int, default=40)
    given = parser.parse_args()
    asked = [(prompt, {"max_tokens": given.tokens}) for prompt in given.prompt]
    results, handed = serve(given.workdir, asked)
    for prompt, result, row in zip(given.prompt, results, handed, strict=True):
        print(f"{prompt}{result.text}\n[{row.size} bytes moved, {len(result.tokens)} tokens, {result.reason}]")


if __name__ == "__main__":
    main()
