"""Curricula: training rows of a task whose settings change with their number, or are drawn for each row.

Text: stages in their order, apart by ";", each "ROWS: settings", and the task's own settings at the end, which every
stage changes. A stage with alternatives, apart by "|", draws one of them for each row:

    20000: pairs=2; 40000: pairs=2 | pairs=4 | pairs=8; pairs=8, queries=16, keys=32

The first 20,000 training rows have 2 pairs each, the next 40,000 have 2, 4 or 8, and all others 8. Held-out rows have
the task's own settings always. What zoology trains recall on (Arora et al. 2023, arXiv:2312.04927: examples of many
numbers of pairs, mixed) is one stage as long as the run.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from data.tasks import draws

STAGES, ALTERNATIVES, ROWS = ";", "|", ":"


def final(text: str) -> str:
    """The task's own settings within the text."""
    return text.rsplit(STAGES, 1)[-1]


@dataclasses.dataclass(frozen=True)
class Stage:
    """`rows` training rows, each of one of `tasks`, all as likely."""

    rows: int
    tasks: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Stages, then `task`; a row's stage follows from its number, so rows are read in their order."""

    task: Any
    stages: tuple[Stage, ...]

    def least_length(self) -> int:
        """The smallest T that holds a row of any stage."""
        return max(task.least_length() for task in self._every())

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence, answers) of the rows `row` `[B]`, both `[B, length + 1]`; see `data.tasks.Task`."""
        row = np.asarray(row, np.int64)
        which = self.which(seed, row)
        sequence, answers = np.full((len(row), length + 1), -1, np.int64), np.zeros((len(row), length + 1), bool)
        for k, task in enumerate(self._every()):
            if len(mine := np.flatnonzero(which == k)):
                sequence[mine], answers[mine] = task.sample(seed, row[mine], length)
        return sequence, answers

    def which(self, seed: int, row: np.ndarray) -> np.ndarray:
        """`[B]`: the place of each row's task among those of all stages, one after another, `task` the last."""
        ends = np.cumsum([stage.rows for stage in self.stages])
        counts = np.array([*(len(stage.tasks) for stage in self.stages), 1])
        stage = np.searchsorted(ends, row, "right")
        drawn = draws.uniforms(seed, row, "alternative", 1)[:, 0] * counts[stage]
        return (np.cumsum(counts) - counts)[stage] + drawn.astype(np.int64)

    def _every(self) -> tuple[Any, ...]:
        return (*(task for stage in self.stages for task in stage.tasks), self.task)


def read(text: str, make: Callable[[str], Any]) -> Curriculum:
    """The curriculum in a text, `make` being `data.tasks.make` of the task's name.

    Errors: ValueError, one sentence, for a stage without its rows, or whose symbols are not those of the task.
    """
    *before, own = text.split(STAGES)
    task, stages = make(own), []
    for piece in before:
        rows, mark, settings = piece.partition(ROWS)
        if not mark or not rows.strip().isdigit() or not int(rows):
            raise ValueError(f"name={text!r}: the stage {piece.strip()!r} does not begin with its rows; use 20000: ...")
        tasks = tuple(make(f"{own}, {each}") for each in settings.split(ALTERNATIVES))
        for each, made in zip(settings.split(ALTERNATIVES), tasks, strict=True):
            if made.num_symbols != task.num_symbols:
                raise ValueError(
                    f"name={text!r}: the stage {each.strip()!r} has {made.num_symbols} symbols and the task itself "
                    f"{task.num_symbols}; let a stage keep what names them."
                )
        stages.append(Stage(int(rows), tasks))
    return Curriculum(task, tuple(stages))
