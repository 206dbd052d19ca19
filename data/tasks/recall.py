"""Multi-query associative recall: pairs of keys and values, then the keys again, each to be answered by its value."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from data.tasks import draws


@dataclasses.dataclass(frozen=True)
class Recall:
    """`pairs` of distinct keys with values come first, then `queries` (key, value) at random places among noise.

    Symbols: keys, then values, then noise, each with a range of its own. Each key is asked once in random order; with
    more queries than pairs, keys are asked at random. Answers: the value after each query. After Arora et al. 2023
    (Zoology), with the answer standing in the sequence, so that one shift gives the targets.

    power: 0 spreads queries evenly over the room behind the pairs. With a in its place a query takes one of the places
    1, 2, ... of two symbols behind the pairs that no query before it took, i with weight i^(a - 1): the distances of
    Zoology, there with a = 0.01, so that most queries stand near.
    """

    pairs: int = 16
    queries: int = 16
    keys: int = 64
    values: int = 64
    noise: int = 16
    power: float = dataclasses.field(default=0.0, metadata={"later": True})

    best_loss: ClassVar[float] = 0.0
    best_accuracy: ClassVar[float] = 1.0
    best_kind: ClassVar[str] = "exact"

    @property
    def num_symbols(self) -> int:
        return self.keys + self.values + self.noise

    @property
    def chance_loss(self) -> float:
        """Loss of knowing that a value is asked, but not which."""
        return math.log(self.values)

    def least_length(self) -> int:
        """The smallest row that holds everything."""
        return 2 * (self.pairs + self.queries) - 1

    def check(self) -> None:
        if self.pairs > self.keys:
            raise ValueError(f"keys={self.keys} are fewer than pairs={self.pairs}; use keys={self.pairs} or more.")
        if not 0 <= self.power < math.inf:
            raise ValueError(f"power={self.power} is no power of distances; use 0.01, or 0 for even ones.")

    def weights(self, places: int) -> np.ndarray:
        """a i^(a - 1) for i = 1 .. places, a the power."""
        return self.power * np.arange(1, places + 1) ** (self.power - 1)

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence `[B, length + 1]`, answers `[B, length + 1]` bool) of rows `row` `[B]`; see `data.tasks.Task`."""
        asked_from = 2 * self.pairs
        keys = draws.distinct(seed, row, "keys", self.pairs, self.keys)
        values = self.keys + draws.integers(seed, row, "values", self.pairs, self.values)
        sequence = self.keys + self.values + draws.integers(seed, row, "noise", length + 1, self.noise)
        sequence[:, 0:asked_from:2], sequence[:, 1:asked_from:2] = keys, values
        if self.queries <= self.pairs:
            which = draws.permutation(seed, row, "which", self.pairs)[:, : self.queries]
        else:
            which = draws.integers(seed, row, "which", self.queries, self.pairs)
        room = length + 1 - asked_from
        if self.power:
            at = asked_from + 2 * draws.weighted(seed, row, "places", self.queries, self.weights(room // 2))
        else:
            at = asked_from + draws.spread(seed, row, "places", np.full(self.queries, 2), room)
        np.put_along_axis(sequence, at, np.take_along_axis(keys, which, 1), 1)
        np.put_along_axis(sequence, at + 1, np.take_along_axis(values, which, 1), 1)
        answers = np.zeros(sequence.shape, bool)
        np.put_along_axis(answers, at + 1, True, 1)
        return sequence, answers
