"""Synthetic tasks with known answers: their rows, the scored symbols, and the best loss that any model can reach.

A task is a frozen dataclass of settings and one line in `TASKS`. `make` reads its settings from text, and `data.load`
takes it as source "task:NAME".
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from data import messages
from data.tasks import curriculum
from data.tasks.arithmetic import Arithmetic
from data.tasks.automata import Automata
from data.tasks.copying import Copying
from data.tasks.disjointness import Disjointness
from data.tasks.infilling import Infilling
from data.tasks.markov import Markov
from data.tasks.programs import Programs
from data.tasks.recall import Recall
from data.tasks.scoring import score
from data.tasks.sorting import Sorting
from data.tasks.star_graph import StarGraph
from data.tasks.sudoku import Sudoku
from data.tasks.threading import Threading

__all__ = [
    "TASKS", "Arithmetic", "Automata", "Copying", "Disjointness", "Infilling", "Markov", "Programs",
    "Recall", "Sorting", "StarGraph", "Sudoku", "Task", "Threading", "make", "score",
]  # fmt: skip


class Task(Protocol):
    """The interface of a task. Losses are in nats per answer token, whatever the length of the row.

    `best_loss` and `best_accuracy` are those of the best model (`best_kind` "exact") or of an oracle that also knows
    the hidden variables of the row ("oracle": a bound). `chance_loss` is that of a model that knows the task's law but
    has not read the row; None if it has no closed form.
    """

    num_symbols: int
    best_loss: float
    best_accuracy: float
    best_kind: str
    chance_loss: float | None

    def check(self) -> None:
        """Raises ValueError, one sentence, where the settings contradict each other."""

    def least_length(self) -> int:
        """The smallest T that holds a row."""

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence, answers) of the rows `row` `[B]`, both `[B, length + 1]`.

        sequence: symbols 0..num_symbols-1, or -1 after the end.
        answers: bool, whether the symbol is an answer.
        A row depends on `seed` and its own number only.
        """


TASKS: dict[str, type] = {
    "recall": Recall,
    "copying": Copying,
    "threading": Threading,
    "automata": Automata,
    "markov": Markov,
    "programs": Programs,
    "disjointness": Disjointness,
    "sorting": Sorting,
    "arithmetic": Arithmetic,
    "star_graph": StarGraph,
    "sudoku": Sudoku,
    "infilling": Infilling,
}

_MAY_BE_ZERO = {"payload", "item_length", "branches", "law", "burn_in", "room", "pads"}


def make(name: str, settings: str | Mapping[str, Any] = "") -> Task:
    """The task `name` of `TASKS` with `settings`: a mapping, or text such as "pairs=32, queries=8".

    Of text with stages (`data.tasks.curriculum`) the settings behind the last of them, those of held-out rows.

    Errors: ValueError, one sentence, for a name, a key or a value that the task cannot have.
    """
    if name not in TASKS:
        raise messages.unknown("task", name, TASKS)
    fields = {field.name: type(field.default) for field in dataclasses.fields(TASKS[name])}
    if isinstance(settings, str):
        settings = _parsed(curriculum.final(settings), name)
    chosen = {key: _value(name, key, value, fields) for key, value in settings.items()}
    task = TASKS[name](**chosen)
    task.check()
    return task


def _parsed(text: str, name: str) -> dict[str, str]:
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    for piece in pieces:
        if "=" not in piece:
            example = dataclasses.fields(TASKS[name])[0]
            raise ValueError(f"name={text!r} has {piece!r}; use settings like {example.name}={example.default}.")
    return {key.strip(): value.strip() for key, value in (piece.split("=", 1) for piece in pieces)}


def _value(name: str, key: str, value: Any, fields: Mapping[str, type]) -> Any:
    """`value` as the type that the task's setting `key` has."""
    if key not in fields:
        raise messages.unknown(f"setting of task:{name}", key, fields)
    kind = fields[key]
    try:
        if kind is bool:
            made = {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
        else:
            made = kind(value)
    except (KeyError, ValueError, TypeError):
        raise ValueError(f"{key}={value!r} of task:{name} is not {kind.__name__}; use one such as 1.") from None
    if kind is int and (made != float(value) or made < (0 if key in _MAY_BE_ZERO else 1)):
        raise ValueError(f"{key}={value!r} of task:{name} is not a positive whole number; use one such as 8.")
    return made
