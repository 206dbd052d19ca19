"""Needle threading: a haystack of key-value pairs in which values are keys of other pairs; follow them to the end."""

import dataclasses
from typing import ClassVar

import numpy as np

from data import messages
from data.tasks import draws

_DIRECTIONS = ("random", "forward", "backward")


@dataclasses.dataclass(frozen=True)
class Threading:
    """pairs.. then, for each thread, QUERY key IS answer: the last value of the thread that begins at key.

    Names are `width` symbols of an alphabet of `symbols`, all different in a row. A thread is `hops` pairs, the value
    of each being the key of the next; hops=1 is a single needle, `threads` > 1 several at once. The pairs of a thread
    stand in random, forward or backward `direction` through the haystack. `branches` > 0: each key of a thread but the
    last has so many other pairs whose values lead nowhere; the answer is the end of the longest way. After Roberts et
    al. 2024 (Needle Threading). Symbols: 0..symbols-1, QUERY, IS.
    """

    hops: int = 1
    threads: int = 1
    branches: int = 0
    symbols: int = 16
    width: int = 4
    direction: str = "random"

    best_loss: ClassVar[float] = 0.0
    best_accuracy: ClassVar[float] = 1.0
    best_kind: ClassVar[str] = "exact"
    chance_loss: ClassVar[None] = None

    @property
    def num_symbols(self) -> int:
        return self.symbols + 2

    def check(self) -> None:
        if self.direction not in _DIRECTIONS:
            raise messages.unknown("direction", self.direction, _DIRECTIONS)
        if self.symbols < 2 or self.symbols**self.width > 1 << 62:
            raise ValueError(f"symbols={self.symbols}, width={self.width} spell no names of 63 bits; use 16 and 4.")
        if self.branches and self.hops < 2:
            raise ValueError(f"hops={self.hops} has no step that can branch (branches={self.branches}); use hops=2.")

    def least_length(self) -> int:
        return 2 * self.width * self._needed() + self.threads * (2 * self.width + 2) - 1

    def _needed(self) -> int:
        """Pairs of all threads and their branches."""
        return self.threads * (self.hops + (self.hops - 1) * self.branches)

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence `[B, length + 1]`, -1 after its end; answers `[B, length + 1]` bool); see `data.tasks.Task`."""
        batch, m, h, w = len(row), self.threads, self.hops, self.width
        asked = 2 * w + 2
        pairs = (length + 1 - m * asked) // (2 * w)
        filler, dead = pairs - self._needed(), m * (h - 1) * self.branches
        names = m * (h + 1) + dead + 2 * filler
        if names > self.symbols**w:
            wide = next(k for k in range(w, 65) if names <= self.symbols**k)
            raise ValueError(f"width={w} has names for {self.symbols**w} of the {names} needed; use width={wide}.")
        names = draws.distinct(seed, row, "names", names, self.symbols**w)
        nodes = names[:, : m * (h + 1)].reshape(batch, m, h + 1)
        loose = names[:, m * (h + 1) + dead :].reshape(batch, filler, 2)
        ends = names[:, m * (h + 1) : m * (h + 1) + dead]
        branching = np.repeat(nodes[:, :, : h - 1].reshape(batch, -1), self.branches, axis=1)
        edges = np.concatenate(
            [
                np.stack([nodes[:, :, :-1].reshape(batch, -1), nodes[:, :, 1:].reshape(batch, -1)], axis=-1),
                np.stack([branching, ends], axis=-1),
                loose,
            ],
            axis=1,
        )
        hay = np.empty_like(edges)
        np.put_along_axis(hay, self._places(seed, row, pairs)[:, :, None], edges, 1)
        sequence = np.full((batch, length + 1), -1, np.int64)
        sequence[:, : 2 * w * pairs] = self._spelled(hay).reshape(batch, -1)
        tail = np.empty((batch, m, asked), np.int64)
        tail[:, :, 0], tail[:, :, w + 1] = self.symbols, self.symbols + 1
        tail[:, :, 1 : w + 1], tail[:, :, w + 2 :] = self._spelled(nodes[:, :, 0]), self._spelled(nodes[:, :, -1])
        end = 2 * w * pairs + m * asked
        sequence[:, 2 * w * pairs : end] = tail.reshape(batch, -1)
        answers = np.zeros(sequence.shape, bool)
        answers[:, 2 * w * pairs : end].reshape(batch, m, asked)[:, :, w + 2 :] = True
        return sequence, answers

    def _places(self, seed: int, row: np.ndarray, pairs: int) -> np.ndarray:
        """Where in the haystack each pair stands, `[B, pairs]`."""
        place = draws.permutation(seed, row, "places", pairs)
        if self.direction != "random":
            on_threads = self.threads * self.hops
            mine = np.sort(place[:, :on_threads].reshape(len(row), self.threads, self.hops), axis=2)
            step = 1 if self.direction == "forward" else -1
            place[:, :on_threads] = mine[:, :, ::step].reshape(len(row), on_threads)
        return place

    def _spelled(self, names: np.ndarray) -> np.ndarray:
        """Names `[...]` as `[..., width]` symbols, the highest digit first."""
        powers = self.symbols ** np.arange(self.width - 1, -1, -1, dtype=np.int64)
        return names[..., None] // powers % self.symbols
