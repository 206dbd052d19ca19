"""One list of shapes for tests, benchmarks and tuning: T tokens, D input width, P parameter tokens, V output width."""

from typing import NamedTuple


class Shape(NamedTuple):
    """Lengths of one call, in the letters of the house."""

    T: int
    D: int
    P: int
    V: int


BENCH = (Shape(4096, 768, 3072, 768), Shape(8192, 1536, 6144, 1536))  # feed-forward of the 150M and 1.5B models
CPU_BENCH = (Shape(4096, 256, 256, 256), Shape(4096, 256, 1024, 256))  # projection and feed-forward of a laptop model
ODD = Shape(63, 72, 1000, 40)  # nothing divides anything
TILED = Shape(300, 40, 520, 24)  # more than one tile along tokens and along P, in every kernel
