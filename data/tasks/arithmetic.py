"""Arithmetic on written numbers: answers of unknown length, their digits from the left or from the right."""

import dataclasses
from typing import ClassVar

import numpy as np

from data.tasks import answers, draws

OPERATIONS = {"add": np.add, "multiply": np.multiply}


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """a OP b = answer END, with a and b of 1 to `digits` digits each, no leading zeros.

    Symbols are the digits, OP (10), EQUALS (11), END (12), then `pads` pads. Lengths of a and b are drawn first,
    uniformly, so that short numbers are not rare.

    digits: the most digits of a and of b.
    operation: add or multiply.
    reverse: the answer's digits stand from right to left, the order in which they are computed.
    room, pads: see `answers.asked`.
    """

    digits: int = 3
    operation: str = "add"
    reverse: bool = False
    room: int = 0
    pads: int = 0

    best_loss: ClassVar[float] = 0.0
    best_accuracy: ClassVar[float] = 1.0
    best_kind: ClassVar[str] = "exact"
    chance_loss: ClassVar[None] = None

    @property
    def num_symbols(self) -> int:
        return 13 + self.pads

    @property
    def end(self) -> int:
        """The symbol that ends an answer."""
        return 12

    @property
    def longest(self) -> int:
        """Digits of the largest answer."""
        return self.digits + 1 if self.operation == "add" else 2 * self.digits

    def check(self) -> None:
        if self.operation not in OPERATIONS:
            raise ValueError(f"operation={self.operation!r} is not known; use {' or '.join(OPERATIONS)}.")
        if self.digits > 9:
            raise ValueError(f"digits={self.digits} makes answers beyond 64 bits; use 9 or fewer.")
        answers.check_room(self.room, self.longest)

    def least_length(self) -> int:
        return 2 * self.digits + 2 + (self.room or self.longest + 1) - 1

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence `[B, length + 1]`, answers `[B, length + 1]` bool) of rows `row` `[B]`; see `data.tasks.Task`."""
        size = 1 + draws.integers(seed, row, "sizes", 2, self.digits)
        low = np.where(size > 1, 10 ** (size - 1), 0)
        number = low + (draws.uniforms(seed, row, "numbers", 2) * (10**size - low)).astype(np.int64)
        a, b = (written(number[:, i], self.digits) for i in range(2))
        answer = written(OPERATIONS[self.operation](number[:, 0], number[:, 1]), self.longest)
        sign = np.full((len(number), 1), 10)
        prompt = answers.joined(a, sign, b, sign + 1)
        answer = answer[:, ::-1] if self.reverse else answer
        return answers.asked(prompt, answer, length + 1, end=self.end, room=self.room, pads=self.pads)


def written(number: np.ndarray, width: int) -> np.ndarray:
    """Decimal digits `[B, width]` of numbers `[B]`, -1 in place of leading zeros."""
    power = 10 ** np.arange(width - 1, -1, -1)
    digits = number[:, None] // power % 10
    return np.where((number[:, None] < power) & (power > 1), -1, digits)
