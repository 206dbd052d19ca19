"""Sets to be written out in a stated order."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from data import messages
from data.tasks import draws

_ORDERS = ("ascending", "descending", "extremes", "median")


@dataclasses.dataclass(frozen=True)
class Sorting:
    """A set of `items` different symbols in random order, ASK, and the set again in a stated order; again and again.

    "ascending" and "descending" by symbol; "extremes": smallest, largest, second smallest, ...; "median": the same
    read backwards, so that the middle comes first. Each order holds the same information, and each symbol but the first
    few follows from those before it and the set (after Vinyals et al. 2016, Order Matters). Symbols: 0..symbols-1, ASK.
    Answers: the second writing.
    """

    items: int = 8
    symbols: int = 32
    order: str = "ascending"

    best_loss: ClassVar[float] = 0.0
    best_accuracy: ClassVar[float] = 1.0
    best_kind: ClassVar[str] = "exact"

    @property
    def num_symbols(self) -> int:
        return self.symbols + 1

    def check(self) -> None:
        if self.order not in _ORDERS:
            raise messages.unknown("order", self.order, _ORDERS)
        if self.items > self.symbols:
            raise ValueError(f"symbols={self.symbols} are fewer than items={self.items}; use symbols={self.items}.")

    @property
    def _size(self) -> int:
        return 2 * self.items + 1

    def least_length(self) -> int:
        """The smallest row that holds one set and its answer."""
        return self._size - 1

    @property
    def chance_loss(self) -> float:
        """Entropy of a uniform set over its items: the loss of a model that has not read it."""
        return math.log(math.comb(self.symbols, self.items)) / self.items

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence `[B, length + 1]`, answers `[B, length + 1]` bool) of rows `row` `[B]`; see `data.tasks.Task`."""
        n, problems = self.items, (length + 1) // self._size
        words = draws.words(seed, row, "sets", problems * self.symbols).reshape(len(row), problems, self.symbols)
        given = np.argsort(words, axis=-1, kind="stable")[..., :n]
        ask = np.full((*given.shape[:2], 1), self.symbols)
        written = np.sort(given, axis=-1)[..., self._places()]
        held = np.concatenate([given, ask, written], axis=-1).reshape(len(row), -1)
        asked = np.tile(np.arange(self._size) > n, (len(row), problems))
        rest = ((0, 0), (0, length + 1 - held.shape[1]))
        return np.pad(held, rest, constant_values=-1), np.pad(asked, rest)

    def _places(self) -> np.ndarray:
        """The ranks of the items in the order of writing, `[items]`."""
        ranks = np.arange(self.items)
        extremes = np.where(ranks % 2 == 0, ranks // 2, self.items - 1 - ranks // 2)
        orders = {
            "ascending": ranks, "descending": ranks[::-1], "extremes": extremes, "median": extremes[::-1],
        }  # fmt: skip
        return orders[self.order]
