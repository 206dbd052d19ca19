"""Shapes (M rows, D, F, sizes of the groups) for tests, benchmarks and tuning."""

from typing import NamedTuple


class Shape(NamedTuple):
    """M rows of width D times a matrix `[D, F]` a group; `sizes` may add up to less than M."""

    M: int
    D: int
    F: int
    sizes: tuple[int, ...]


SMALL = {
    "even": Shape(32, 16, 24, (8, 8, 8, 8)),
    "ragged": Shape(45, 20, 12, (7, 0, 19, 1, 18)),
    "a tail that belongs to nobody": Shape(40, 8, 8, (0, 13, 0, 9, 0)),
    "all on one": Shape(37, 8, 16, (0, 0, 37)),
    "nobody": Shape(9, 8, 8, (0, 0)),
    "one row each": Shape(3, 16, 8, (1, 1, 1)),
}
LARGE = {"8 experts": Shape(8192, 512, 1408, (1024,) * 8), "64 experts": Shape(8192, 2048, 1024, (128,) * 64)}
