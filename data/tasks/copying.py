"""Copying and verbatim list recall: a list, noise as long as the row allows, and the list again, symbol by symbol."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from data.tasks import draws


@dataclasses.dataclass(frozen=True)
class Copying:
    """START list noise.. COPY list: the second list is the answer.

    `payload` random symbols (0: as many as the row holds), cut into items of `item_length` by a separator (0: one
    list without any; separators are no answers), copied in the same order or reversed. Symbols: 0..symbols-1, START,
    COPY, SEPARATOR, then noise. With items it is the verbatim list recall of Armeni et al. 2022.
    """

    symbols: int = 32
    payload: int = 0
    item_length: int = 0
    reverse: bool = False
    noise: int = 16

    best_loss: ClassVar[float] = 0.0
    best_accuracy: ClassVar[float] = 1.0
    best_kind: ClassVar[str] = "exact"

    @property
    def num_symbols(self) -> int:
        return self.symbols + 3 + self.noise

    @property
    def chance_loss(self) -> float:
        """Loss of a uniform guess among the symbols, all that can be had without the first list."""
        return math.log(self.symbols)

    def check(self) -> None:
        if self.item_length and self.payload % self.item_length:
            valid = max(1, self.payload // self.item_length) * self.item_length
            raise ValueError(f"payload={self.payload} is not whole items of {self.item_length}; use {valid}.")

    def least_length(self) -> int:
        return 1 + 2 * self._listed(self.payload or max(1, self.item_length))

    def _listed(self, payload: int) -> int:
        """Length of the list with its separators."""
        return payload + (payload // self.item_length if self.item_length else 0)

    def _payload(self, length: int) -> int:
        if self.payload:
            return self.payload
        room = (length - 1) // 2
        return room // (self.item_length + 1) * self.item_length if self.item_length else room

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence `[B, length + 1]`, answers `[B, length + 1]` bool) of rows `row` `[B]`; see `data.tasks.Task`."""
        count = self._payload(length)
        listed = self._listed(count)
        start, copy, separator = self.symbols, self.symbols + 1, self.symbols + 2
        payload = draws.integers(seed, row, "payload", count, self.symbols)
        place = np.arange(count) + (np.arange(count) // self.item_length if self.item_length else 0)
        sequence = separator + 1 + draws.integers(seed, row, "noise", length + 1, self.noise)
        second = length + 1 - listed
        sequence[:, 0], sequence[:, second - 1] = start, copy
        sequence[:, 1 : 1 + listed] = sequence[:, second:] = separator
        sequence[:, 1 + place] = payload
        sequence[:, second + place] = payload[:, ::-1] if self.reverse else payload
        answers = np.zeros(sequence.shape, bool)
        answers[:, second + place] = True
        return sequence, answers
