"""In-context regular languages: strings of a random automaton, a new one in every row, to be continued legally."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from data.tasks import draws


@dataclasses.dataclass(frozen=True)
class Automata:
    """Strings of one random deterministic automaton per row, each followed by a delimiter.

    Every state permits `degree` of the symbols, each leading to another of the `states`; a string begins in state 0 and
    takes `string_length` permitted symbols, each with probability 1 / degree. Answers: the symbols (not delimiters)
    after the first `burn_in` of the row, in which the language can be learned. Symbols: 0..symbols-1, DELIMITER.
    After Akyurek et al. 2024 (In-context language learning), with equal degrees so that the entropy is known exactly.

    `best_loss` log(degree) and `best_accuracy` 1 / degree are those of an oracle that knows the automaton: a bound
    that learning in context approaches as the row grows. `legal` judges single continuations.
    """

    states: int = 8
    symbols: int = 8
    degree: int = 3
    string_length: int = 15
    burn_in: float = 0.5

    best_kind: ClassVar[str] = "oracle"

    @property
    def best_loss(self) -> float:
        return math.log(self.degree)

    @property
    def best_accuracy(self) -> float:
        return 1 / self.degree

    @property
    def chance_loss(self) -> float:
        """Loss of a uniform guess among the symbols: nothing learned of the row's language."""
        return math.log(self.symbols)

    @property
    def num_symbols(self) -> int:
        return self.symbols + 1

    def check(self) -> None:
        most = min(self.symbols, self.states)
        if self.degree > most:
            raise ValueError(
                f"degree={self.degree} is more than symbols={self.symbols} or states={self.states}; use {most} or less."
            )
        if not 0 <= self.burn_in < 1:
            raise ValueError(f"burn_in={self.burn_in!r} is not a share of the row below 1; use one such as 0.5.")

    def least_length(self) -> int:
        return self.string_length

    def machines(self, seed: int, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(symbols, next states) of every state's edges, `[B, states, degree]` each."""
        batch, edges = len(row), (self.states, self.symbols)
        by_symbol = draws.words(seed, row, "edges", self.states * self.symbols).reshape(batch, *edges)
        by_state = draws.words(seed, row, "next", self.states**2).reshape(batch, self.states, self.states)
        symbol = np.argsort(by_symbol, axis=2, kind="stable")[:, :, : self.degree]
        return symbol, np.argsort(by_state, axis=2, kind="stable")[:, :, : self.degree]

    def _walk(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence, the state before each symbol), `[B, length + 1]` each. All strings of a row advance together."""
        symbol, following = self.machines(seed, row)
        period, batch = self.string_length + 1, len(row)
        strings = -(-(length + 1) // period)
        edge = draws.integers(seed, row, "choices", strings * self.string_length, self.degree)
        edge = edge.reshape(batch, strings, self.string_length)
        sequence = np.full((batch, strings, period), self.symbols, np.int64)
        states = np.zeros((batch, strings, period), np.int64)
        state, which = np.zeros((batch, strings), np.int64), np.arange(batch)[:, None]
        for step in range(self.string_length):
            sequence[:, :, step] = symbol[which, state, edge[:, :, step]]
            state = following[which, state, edge[:, :, step]]
            states[:, :, step + 1] = state
        return sequence.reshape(batch, -1)[:, : length + 1], states.reshape(batch, -1)[:, : length + 1]

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence `[B, length + 1]`, answers `[B, length + 1]` bool) of rows `row` `[B]`; see `data.tasks.Task`."""
        sequence, _ = self._walk(seed, row, length)
        place = np.arange(length + 1)
        counted = (place > 0) & (place >= self.burn_in * (length + 1))
        return sequence, counted & (sequence != self.symbols)

    def legal(self, seed: int, row: np.ndarray, length: int) -> np.ndarray:
        """What may stand at each target of the rows: `[B, length, num_symbols]` bool, aligned with `targets`."""
        sequence, states = self._walk(seed, row, length)
        symbol, _ = self.machines(seed, row)
        permitted = np.zeros((len(row), self.states, self.num_symbols), bool)
        np.put_along_axis(permitted, symbol, True, 2)
        found = permitted[np.arange(len(row))[:, None], states]
        delimiter = np.arange(self.num_symbols) == self.symbols
        return np.where((sequence == self.symbols)[:, :, None], delimiter, found)[:, 1:]
