"""Arithmetic on written numbers: answers of unknown length, from the left or from the right, by digits or groups."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from data.tasks import answers, draws

OPERATIONS = {"add": np.add, "multiply": np.multiply}


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """a OP b = answer END, with a and b of 1 to `digits` digits each, no leading zeros.

    Symbols are the digits, OP (10), EQUALS (11), END (12), then `pads` pads. Lengths of a and b are drawn first,
    uniformly, so that short numbers are not rare. With `group` the digits of each number are cut as
    `data.tokenizers.digits.groups` does, and every string of 1 to `group` digits is a symbol in the place of the ten.

    digits: the most digits of a and of b.
    operation: add or multiply.
    reverse: the answer's digits (groups) stand from right to left, the order in which they are computed.
    room, pads: see `answers.asked`.
    group: the most digits of a symbol.
    from_left: groups are counted from the left end of each number, else from the right.
    """

    digits: int = 3
    operation: str = "add"
    reverse: bool = False
    room: int = 0
    pads: int = 0
    group: int = dataclasses.field(default=1, metadata={"later": True})
    from_left: bool = dataclasses.field(default=False, metadata={"later": True})

    best_loss: ClassVar[float] = 0.0
    best_accuracy: ClassVar[float] = 1.0
    best_kind: ClassVar[str] = "exact"
    chance_loss: ClassVar[None] = None

    @property
    def num_symbols(self) -> int:
        return self.end + 1 + self.pads

    @property
    def end(self) -> int:
        """The symbol that ends an answer."""
        return first_of(self.group + 1) + 2

    @property
    def longest(self) -> int:
        """Symbols of the largest answer."""
        return -(-self._widest // self.group)

    @property
    def _widest(self) -> int:
        """Digits of the largest answer."""
        return self.digits + 1 if self.operation == "add" else 2 * self.digits

    def check(self) -> None:
        if self.operation not in OPERATIONS:
            raise ValueError(f"operation={self.operation!r} is not known; use {' or '.join(OPERATIONS)}.")
        if self.digits > 9:
            raise ValueError(f"digits={self.digits} makes answers beyond 64 bits; use 9 or fewer.")
        if self.group > 4:
            raise ValueError(f"group={self.group} has more than a hundred thousand symbols; use 4 or fewer.")
        answers.check_room(self.room, self.longest)

    def least_length(self) -> int:
        return 2 * -(-self.digits // self.group) + 2 + (self.room or self.longest + 1) - 1

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence `[B, length + 1]`, answers `[B, length + 1]` bool) of rows `row` `[B]`; see `data.tasks.Task`."""
        size = 1 + draws.integers(seed, row, "sizes", 2, self.digits)
        low = np.where(size > 1, 10 ** (size - 1), 0)
        number = low + (draws.uniforms(seed, row, "numbers", 2) * (10**size - low)).astype(np.int64)
        a, b = (self._written(number[:, i], self.digits) for i in range(2))
        made = OPERATIONS[self.operation](number[:, 0], number[:, 1])
        answer = self._written(made, self._widest)
        sign = np.full((len(number), 1), self.end - 2)
        prompt = answers.joined(a, sign, b, sign + 1)
        answer = answer[:, ::-1] if self.reverse else answer
        return answers.asked(prompt, answer, length + 1, end=self.end, room=self.room, pads=self.pads)

    def _written(self, number: np.ndarray, width: int) -> np.ndarray:
        return grouped(written(number, width), self.group, from_left=self.from_left)

    def lengths(self, sequence: np.ndarray) -> np.ndarray:
        """Digits of a, b and the answer `[B, 3]` of rows `[B, S]`, which hold the answer as it is written."""
        size = np.searchsorted([first_of(k) for k in range(1, self.group + 2)], sequence, "right")
        part = np.cumsum((sequence >= self.end - 2) & (sequence <= self.end), axis=1)
        own = (sequence >= 0) & (sequence < self.end - 2)
        return np.stack([np.sum(np.where(own & (part == k), size, 0), axis=1) for k in range(3)], axis=1)


def written(number: np.ndarray, width: int) -> np.ndarray:
    """Decimal digits `[B, width]` of numbers `[B]`, -1 in place of leading zeros."""
    power = 10 ** np.arange(width - 1, -1, -1)
    digits = number[:, None] // power % 10
    return np.where((number[:, None] < power) & (power > 1), -1, digits)


def first_of(digits: Any) -> Any:
    """The symbol of the first string of so many digits, where all shorter ones come before it: 0, 10, 110, 1110."""
    return (10**digits - 10) // 9


def grouped(digits: np.ndarray, size: int, *, from_left: bool) -> np.ndarray:
    """Symbols `[B, ceil(n / size)]` of the groups of `size` digits of `[B, n]`, which have -1 in front; -1 in gaps.

    A group of k digits that say v is the symbol `first_of(k) + v`.
    """
    gap = -digits.shape[1] % size
    made = (
        np.pad(answers.joined(digits), ((0, 0), (0, gap)), constant_values=-1)
        if from_left
        else np.pad(digits, ((0, 0), (gap, 0)), constant_values=-1)
    )
    made = made.reshape(len(made), -1, size)
    value, count = np.zeros(made.shape[:2], np.int64), np.sum(made >= 0, axis=-1)
    for k in range(size):
        value = np.where(made[..., k] >= 0, 10 * value + made[..., k], value)
    return np.where(count > 0, first_of(count) + value, -1)
