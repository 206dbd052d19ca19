"""Set disjointness: two sets, and the question whether they share an element; recall that depends on reading order."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from data import messages
from data.tasks import draws

_ORDERS = ("small_first", "large_first")
_ASKED = ("whether", "element")


@dataclasses.dataclass(frozen=True)
class Disjointness:
    """one set, SEPARATOR, the other, SEPARATOR, (all that again,) ASK, then YES (they are disjoint), NO, or an element.

    Half of the rows are disjoint, by a coin; the others share `overlap` elements. `order` says which set is read first:
    a recurrent state that reads the small one first has less to keep. `repeats` 2 is just-read-twice (Arora et al.
    2024). Noise stands at random between the elements up to the length of the row; repeats are the same
    elements in the same order. Symbols: elements, SEPARATOR, ASK, YES, NO, then noise.

    asks: "whether" the sets meet, one bit a row; or, as their experiments do, which "element" they share: every row
    has one, any of the small set, and that is the answer.
    """

    universe: int = 128
    small: int = 8
    large: int = 32
    overlap: int = 1
    order: str = "small_first"
    repeats: int = 1
    noise: int = 16
    asks: str = dataclasses.field(default="whether", metadata={"later": True})

    best_loss: ClassVar[float] = 0.0
    best_accuracy: ClassVar[float] = 1.0
    best_kind: ClassVar[str] = "exact"

    @property
    def chance_loss(self) -> float:
        """Loss of a fair guess among both answers, or among the elements of the small set."""
        return math.log(2 if self.asks == "whether" else self.small)

    @property
    def num_symbols(self) -> int:
        return self.universe + 4 + self.noise

    def check(self) -> None:
        if self.order not in _ORDERS:
            raise messages.unknown("order", self.order, _ORDERS)
        if self.asks not in _ASKED:
            raise messages.unknown("asks", self.asks, _ASKED)
        if self.asks == "element" and self.overlap != 1:
            raise ValueError(f"overlap={self.overlap} shared elements are no single answer; use overlap=1.")
        if self.small + self.large > self.universe:
            both = self.small + self.large
            raise ValueError(f"universe={self.universe} is too small for small + large; use universe={both} or more.")
        if self.overlap > min(self.small, self.large):
            most = min(self.small, self.large)
            raise ValueError(f"overlap={self.overlap} is more than a set holds; use overlap={most} or less.")

    def least_length(self) -> int:
        return self.repeats * (self.small + self.large + 2) + 1

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence `[B, length + 1]`, answers `[B, length + 1]` bool) of rows `row` `[B]`; see `data.tasks.Task`."""
        separator, ask, yes, no = range(self.universe, self.universe + 4)
        drawn = draws.distinct(seed, row, "elements", self.small + self.large, self.universe)
        small, large = drawn[:, : self.small], drawn[:, self.small :]
        meets = draws.words(seed, row, "coin", 1)[:, 0] >> np.uint64(63) == 1
        meets |= self.asks == "element"
        into = draws.permutation(seed, row, "into", self.large)[:, : self.overlap]
        shared = draws.permutation(seed, row, "shared", self.small)[:, : self.overlap]
        common = np.where(meets[:, None], np.take_along_axis(small, shared, 1), np.take_along_axis(large, into, 1))
        large = large.copy()
        np.put_along_axis(large, into, common, 1)
        mark = np.full((len(row), 1), separator)
        both = [small, mark, large, mark] if self.order == "small_first" else [large, mark, small, mark]
        context = np.tile(np.concatenate(both, axis=1), (1, self.repeats))
        sequence = no + 1 + draws.integers(seed, row, "noise", length + 1, self.noise)
        at = draws.spread(seed, row, "places", np.ones(context.shape[1], np.int64), length - 1)
        np.put_along_axis(sequence, at, context, 1)
        verdict = np.where(meets, no, yes)
        sequence[:, -2], sequence[:, -1] = ask, verdict if self.asks == "whether" else common[:, 0]
        answers = np.zeros(sequence.shape, bool)
        answers[:, -1] = True
        return sequence, answers
