"""Straight-line programs, and what they compute: an assignment a statement, then the value of each."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from data.tasks import draws


@dataclasses.dataclass(frozen=True)
class Programs:
    """name = digit ; then name = name + digit ; .. RUN, and the trace: value ; of every statement, in their order.

    Names are drawn for each statement; what is read is the name of one of the `back` statements before, as it then
    stands, and sums are modulo 10. The answer is the trace, which running the program gives; another name than that of
    the statement before (`back` above 1) must be looked up. Symbols: digits 0..9, names, ASSIGN, PLUS, STOP, RUN.
    """

    statements: int = 4
    names: int = 3
    back: int = 1

    best_loss: ClassVar[float] = 0.0
    best_accuracy: ClassVar[float] = 1.0
    best_kind: ClassVar[str] = "exact"

    @property
    def num_symbols(self) -> int:
        return 14 + self.names

    @property
    def stop(self) -> int:
        """The symbol behind a statement and behind a value."""
        return 12 + self.names

    @property
    def chance_loss(self) -> float:
        """Loss of a guess of every value: a half of the answer is STOP."""
        return math.log(10) / 2

    def check(self) -> None:
        """Any settings go."""

    def least_length(self) -> int:
        return 8 * self.statements - 2

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence `[B, length + 1]`, answers `[B, length + 1]` bool) of rows `row` `[B]`; see `data.tasks.Task`."""
        B, n = len(row), self.statements
        digit = draws.integers(seed, row, "digits", n, 10)
        name = draws.integers(seed, row, "names", n, self.names)
        back = 1 + draws.integers(seed, row, "back", n, self.back)
        value, parts = np.zeros((B, n), np.int64), []
        sign = lambda which: np.full((B, 1), 10 + self.names + which)  # noqa: E731
        for i in range(n):
            own = [10 + name[:, i : i + 1], sign(0)]
            value[:, i] = digit[:, i]
            if i:
                read = np.take_along_axis(name, np.maximum(i - back[:, i : i + 1], 0), axis=1)
                last = i - 1 - np.argmax(name[:, :i][:, ::-1] == read, axis=1)
                value[:, i] = (value[np.arange(B), last] + digit[:, i]) % 10
                own += [10 + read, sign(1)]
            parts += [*own, digit[:, i : i + 1], sign(2)]
        trace = [part for i in range(n) for part in (value[:, i : i + 1], sign(2))]
        whole = np.concatenate([*parts, sign(3), *trace], axis=1)
        sequence = np.full((B, length + 1), -1, np.int64)
        sequence[:, : whole.shape[1]] = whole
        at = np.arange(length + 1)
        is_answer = (at >= whole.shape[1] - 2 * n) & (at < whole.shape[1])
        return sequence, np.broadcast_to(is_answer, sequence.shape).copy()
