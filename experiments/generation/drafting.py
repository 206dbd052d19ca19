"""What drafter, verifier and model cannot do together, each in one sentence."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from experiments.program import Program
from models.decoding.stream import Parts
from models.mixers.memory import MEMORIES


def problems(parts: Parts, asked: Mapping[str, Any], program: Program, rewinds: Callable[[], bool]) -> Iterator[str]:
    """Sentences about `parts`.

    Args:
      parts: of the requests that are served together.
      asked: `config.generate` of one of them, as a plain dict.
      program: of the model that writes.
      rewinds: whether every layer's state can drop drafts.
    """
    (name, drafter), rule = parts.drafter, asked["verifier"]
    yield from (says for _, part in parts.control for says in part.problems(program.config, parts))
    if own := [*drafter.problems(program.config)]:
        yield from own
        return
    if parts.verifier.needs_q and not drafter.draws:
        yield (
            f"generate.verifier={rule!r} needs the law of the drafts, which generate.drafter={name!r} has not; use "
            "generate.verifier='same_draw'."
        )
    elif parts.verifier.chains and drafter.branches:
        yield (
            f"generate.verifier={rule!r} judges one draft behind the other and generate.drafter={name!r} drafts a "
            "tree; use generate.verifier='recursive'."
        )
    elif parts.verifier.independent and not drafter.independent:
        yield (
            f"generate.verifier={rule!r} needs children that are drawn independently, and those of "
            f"generate.drafter={name!r} differ; use generate.verifier='recursive'."
        )
    if drafter.nodes > 1 and (one := [key for key, part in parts.control if part.alone]):
        yield (
            f"generate.control={one[0]!r} decides one token a pass, and generate.drafter={name!r} reads several; use "
            "generate.drafter='none'."
        )
    elif drafter.nodes > 1 and MEMORIES[parts.memory.name].alone:
        yield (
            f"generate.drafter={name!r} reads several tokens in one pass, and what generate.memory="
            f"{parts.memory.name!r} keeps would depend on how many; use generate.drafter='none'."
        )
    elif drafter.branches and not rewinds():
        yield (
            f"generate.drafter={name!r} drafts a tree, which model.mixer={program.config.model.mixer!r} with "
            f"generate.memory={parts.memory.name!r} cannot read; use generate.drafter='lookup'."
        )


def fits(parts: Parts, capacity: int) -> Iterator[str]:
    """Sentences about drafts that a row of `capacity` tokens has no room for."""
    name, drafter = parts.drafter
    if drafter.depth - 1 > capacity:
        yield (
            f"generate.drafter={name!r} drafts {drafter.depth - 1} tokens behind each other and a row has room for "
            f"{capacity}; draft at most {capacity}."
        )
    elif drafter.nodes - 1 > capacity:
        yield (
            f"generate.drafter={name!r} drafts {drafter.nodes - 1} nodes and a row has slots for {capacity}; draft at "
            f"most {capacity}."
        )
