"""Tasks as corpora: splits whose rows are made when they are read, in the loader's own order and batches."""

import dataclasses
from typing import Any

import numpy as np

from data import cache, roles
from data.splits import Corpus, Rows
from data.tasks import Task, curriculum, draws, make
from data.tokenizer import SymbolTokenizer

ROWS = 1 << 40  # of a training split: more than any run reads, so no row comes twice
VALIDATION_ROWS = 1 << 12
PREFIX = "task:"


@dataclasses.dataclass(frozen=True)
class Packed:
    """Rows of `length` tokens of a task, by number; the counterpart of a packing for data that is made, not read."""

    task: Task | curriculum.Curriculum
    seed: int
    num_rows: int
    length: int

    @property
    def in_order(self) -> bool:
        """Whether rows are read in the order of their numbers, whatever the loader's order: a curriculum's are."""
        return isinstance(self.task, curriculum.Curriculum)

    def rows(self, index: np.ndarray) -> Rows:
        """The rows `index` `[B]`; a negative index is a row of padding."""
        index = np.asarray(index, np.int64)
        sequence, answers = self.task.sample(self.seed, np.maximum(index, 0), self.length)
        held = (sequence >= 0) & (index >= 0)[:, None]
        first = np.zeros((len(index), self.length), bool)
        first[:, 0] = True
        kinds = np.where(answers, roles.OUTPUT, roles.USER).astype(np.uint8)[:, :-1]
        return Rows(sequence[:, :-1], sequence[:, 1:], first, held[:, :-1], (answers & held)[:, 1:], kinds)


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a task: `seed` fixes its rows, `count` says how many there are."""

    task: Task | curriculum.Curriculum
    seed: int
    count: int

    @property
    def num_targets(self) -> int:
        """At least so many: every row has an answer."""
        return self.count

    def packed(self, length: int) -> Packed:
        """Its rows at T = `length`. Errors: ValueError where a row of the task does not fit."""
        least = self.task.least_length()
        if length < least:
            own = self.task.task if isinstance(self.task, curriculum.Curriculum) else self.task
            name = type(own).__name__.lower()
            raise ValueError(f"length={length} is too short for a row of task:{name}; use {least} or more.")
        return Packed(self.task, self.seed, self.count, length)


def _named(task: Task) -> dict[str, Any]:
    """The settings that name a corpus: fields that came `later` count where they are set, so that old hashes hold."""
    every = dataclasses.asdict(task)
    return {
        field.name: every[field.name]
        for field in dataclasses.fields(task)
        if not field.metadata.get("later") or every[field.name] != field.default
    }


def corpus(name: str, settings: Any = "", *, rows: int = 0, seed: int = 0) -> Corpus:
    """The corpus of a task: endless training rows (or `rows` of them) and 4,096 validation rows of another seed.

    `name`: of `TASKS`; `settings`: see `make`; stages of training rows: `data.tasks.curriculum`. Symbols are tokens,
    with the bos, eos and pad of a `SymbolTokenizer`. Both splits have the same law, but for stages. `info` also has
    `best_accuracy`, `best_kind` and `chance_loss` of the task.
    """
    task, staged = make(name, settings), None
    if isinstance(settings, str) and curriculum.STAGES in settings:
        staged = curriculum.read(settings, lambda text: make(name, text))
    splits = {
        "train": Split(staged or task, draws.derive(seed, "train"), rows or ROWS),
        "valid": Split(task, draws.derive(seed, "valid"), VALIDATION_ROWS),
    }
    tokenizer = SymbolTokenizer(task.num_symbols)
    stages = () if staged is None else (dataclasses.asdict(staged)["stages"],)
    hashed = cache.digest("task", name, _named(task), rows, seed, *stages)
    counts = {key: {"documents": split.count} for key, split in splits.items()}
    info = {
        "source": PREFIX + name,
        "settings": _named(task),
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "hash": hashed,
        "files": 0,
        "documents": sum(c["documents"] for c in counts.values()),
        "bytes_per_token": 1.0,
        "splits": counts,
        "best_loss": task.best_loss,
        "notes": [],
        "best_accuracy": task.best_accuracy,
        "best_kind": task.best_kind,
        "chance_loss": task.chance_loss,
    }
    return Corpus(**splits, tokenizer=tokenizer, hash=hashed, info=info)
