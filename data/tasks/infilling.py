"""Infilling: a stretch of a sequence is missing, and both of its sides are needed to restore it."""

import dataclasses
from typing import ClassVar

import numpy as np

from data.tasks import answers, draws


@dataclasses.dataclass(frozen=True)
class Infilling:
    """Counting by a hidden step modulo `symbols` (a prime), with 1 to `gap` numbers missing between two sides.

    The left side tells the step, the right one how many are missing. Rows: left, GAP, right, FILL, missing, END; or
    with `in_place` left, missing, right, for models that fill in any order (the length of the gap is then seen).
    Symbols: 0..symbols-1, GAP, FILL, END, then `pads` pads; `room`, `pads`: see `answers.asked`.
    """

    symbols: int = 11
    side: int = 3
    gap: int = 5
    in_place: bool = False
    room: int = 0
    pads: int = 0

    best_loss: ClassVar[float] = 0.0
    best_accuracy: ClassVar[float] = 1.0
    best_kind: ClassVar[str] = "exact"
    chance_loss: ClassVar[None] = None

    @property
    def num_symbols(self) -> int:
        return self.symbols + 3 + self.pads

    @property
    def end(self) -> int:
        """The symbol that ends an answer."""
        return self.symbols + 2

    def check(self) -> None:
        if any(self.symbols % n == 0 for n in range(2, self.symbols)) or self.symbols < 3:
            raise ValueError(f"symbols={self.symbols} is not a prime from 3 on; use 11.")
        if self.gap > self.symbols - 2:
            raise ValueError(f"gap={self.gap} goes round the {self.symbols} symbols; use {self.symbols - 2} or fewer.")
        if self.side < 2:
            raise ValueError(f"side={self.side} does not tell the step; use 2 or more.")
        answers.check_room(self.room, self.gap)

    def least_length(self) -> int:
        if self.in_place:
            return 2 * self.side + self.gap - 1
        return 2 * self.side + 2 + (self.room or self.gap + 1) - 1

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence `[B, length + 1]`, answers `[B, length + 1]` bool) of rows `row` `[B]`; see `data.tasks.Task`."""
        first = draws.integers(seed, row, "first", 1, self.symbols)
        step = 1 + draws.integers(seed, row, "step", 1, self.symbols - 1)
        missing = 1 + draws.integers(seed, row, "missing", 1, self.gap)
        numbers = lambda index: (first + step * index) % self.symbols  # noqa: E731
        side, gap = np.arange(self.side), np.arange(self.gap)
        left, right = numbers(side), numbers(self.side + missing + side)
        middle = np.where(gap < missing, numbers(self.side + gap), -1)
        mark = np.full(first.shape, self.symbols)
        if not self.in_place:
            prompt = answers.joined(left, mark, right, mark + 1)
            return answers.asked(prompt, middle, length + 1, end=self.end, room=self.room, pads=self.pads)
        fill = ((0, 0), (0, length + 1 - 2 * self.side - self.gap))
        sequence = np.pad(answers.joined(left, middle, right), fill, constant_values=-1)
        index = np.arange(length + 1)
        return sequence, (index >= self.side) & (index < self.side + missing)
