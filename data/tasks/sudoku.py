"""Sudoku on 4 x 4 cells: every puzzle has one solution, which takes the constraints in some order to find."""

import dataclasses
import functools
import itertools
from typing import ClassVar

import numpy as np

from data.tasks import draws

CELLS = 16


@dataclasses.dataclass(frozen=True)
class Sudoku:
    """16 cells of a puzzle, SOLVE, 16 cells of its solution, row by row; answers are the cells that were blank.

    Cells are blanked in random order, each only while one solution remains, up to `blanks` of them; of a random solved
    grid 10 to 12 cells can go. Symbols: the digits 0..3, BLANK (4), SOLVE (5).
    """

    blanks: int = 12

    num_symbols: ClassVar[int] = 6
    best_loss: ClassVar[float] = 0.0
    best_accuracy: ClassVar[float] = 1.0
    best_kind: ClassVar[str] = "exact"
    chance_loss: ClassVar[None] = None

    def check(self) -> None:
        if self.blanks > 12:
            raise ValueError(f"blanks={self.blanks}: four cells at least make a puzzle unique; use 12 or fewer.")

    def least_length(self) -> int:
        return 2 * CELLS

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence `[B, length + 1]`, answers `[B, length + 1]` bool) of rows `row` `[B]`; see `data.tasks.Task`."""
        grids = solved()
        solution = grids[draws.integers(seed, row, "grid", 1, len(grids))[:, 0]]
        order = draws.permutation(seed, row, "order", CELLS)
        agrees = solution[:, None] == grids  # [B, 288, 16]
        blank = np.zeros(solution.shape, bool)
        for cell in order.T:
            more = blank.copy()
            np.put_along_axis(more, cell[:, None], True, 1)
            unique = (agrees | more[:, None]).all(-1).sum(-1) == 1
            blank = np.where((unique & (blank.sum(1) < self.blanks))[:, None], more, blank)
        sequence = np.full((len(solution), length + 1), -1, np.int64)
        sequence[:, :CELLS] = np.where(blank, 4, solution)
        sequence[:, CELLS] = 5
        sequence[:, CELLS + 1 : 2 * CELLS + 1] = solution
        answers = np.zeros(sequence.shape, bool)
        answers[:, CELLS + 1 : 2 * CELLS + 1] = blank
        return sequence, answers


@functools.cache
def solved() -> np.ndarray:
    """All 288 solved grids, `[288, 16]`."""
    lines = list(itertools.permutations(range(4)))
    pairs = [(a, b) for a in lines for b in lines if len({*a[:2], *b[:2]}) == 4]  # Two rows of two whole boxes.
    grids = [
        (*a, *b, *c, *d)
        for a, b in pairs
        for c, d in pairs
        if all(len({a[i], b[i], c[i], d[i]}) == 4 for i in range(4))
    ]
    return np.array(grids, np.int64)
