"""Addition of two numbers, digit by digit, the sum written in either direction."""

import dataclasses
from typing import ClassVar

import numpy as np

from data import messages
from data.tasks import draws, filling

_DIRECTIONS = ("plain", "reversed")
_MOST_DIGITS = 6  # The law of the sum is enumerated.


@dataclasses.dataclass(frozen=True)
class Addition:
    """a PLUS b EQUALS sum, again and again: `digits` digits in each addend, one more in the sum, zeros kept in front.

    "plain" writes the sum as we do; "reversed" writes its ones first, so that each digit needs one column and a carry
    and no look ahead (Lee et al. 2023, Teaching Arithmetic to Small Transformers, section 3). Addends are uniform, and
    always written as we do. Symbols: 0..9, PLUS, EQUALS. Answers: the digits of the sum.
    """

    digits: int = 3
    direction: str = "plain"

    num_symbols: ClassVar[int] = 12
    best_loss: ClassVar[float] = 0.0
    best_accuracy: ClassVar[float] = 1.0
    best_kind: ClassVar[str] = "exact"

    def check(self) -> None:
        if self.direction not in _DIRECTIONS:
            raise messages.unknown("direction", self.direction, _DIRECTIONS)
        if self.digits > _MOST_DIGITS:
            raise ValueError(f"digits={self.digits} are too many to enumerate; use {_MOST_DIGITS} or fewer.")

    @property
    def _size(self) -> int:
        return 3 * self.digits + 3

    def least_length(self) -> int:
        """The smallest row that holds one sum."""
        return self._size - 1

    @property
    def chance_loss(self) -> float:
        """Entropy of the sum over its digits: the loss of a model that knows the law of sums and reads no addends."""
        top = 10**self.digits
        ways = np.minimum(np.arange(1, 2 * top), 2 * top - np.arange(1, 2 * top))
        p = ways / top**2
        return float(-(p * np.log(p)).sum() / (self.digits + 1))

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence `[B, length + 1]`, answers `[B, length + 1]` bool) of rows `row` `[B]`; see `data.tasks.Task`."""
        n, problems = self.digits, filling.count(self._size, length)
        a, b = (draws.integers(seed, row, purpose, problems, 10**n) for purpose in ("a", "b"))
        sums = _written(a + b, n + 1)
        parts = [
            _written(a, n), np.full((*a.shape, 1), 10), _written(b, n), np.full((*a.shape, 1), 11),
            sums[..., ::-1] if self.direction == "reversed" else sums,
        ]  # fmt: skip
        answers = np.arange(self._size) >= 2 * n + 2
        return filling.fill(np.concatenate(parts, axis=-1), answers, length)


def _written(number: np.ndarray, digits: int) -> np.ndarray:
    """The digits of each number, `[..., digits]`, ones last."""
    return number[..., None] // 10 ** np.arange(digits - 1, -1, -1) % 10
