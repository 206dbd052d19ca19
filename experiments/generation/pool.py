"""How many rows of how many slots a decoding state has: the shape that its pool allows, and which rows must wait.

Rows lie side by side in one state, `rows x slots`. The pool bounds the product, so the state is as wide as its longest
row needs now, and a pool smaller than lanes x capacity serves many short rows or few long ones. A block table would
waste nothing, but its gather reads and writes every slot that attention then reads again, at every token; rows side by
side are copied when the shape changes (`--mode=bench --bench_filter=blocks/`).
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Shape:
    """Rows and slots of a state."""

    rows: int
    slots: int

    @property
    def size(self) -> int:
        """Slots in all."""
        return self.rows * self.slots


@dataclasses.dataclass(frozen=True)
class Pool:
    """Slots for at most `lanes` rows.

    Attributes:
      lanes: rows at most.
      capacity: tokens of a row at most.
      size: slots in all, at least `smallest`.
      block: slots are given in blocks of so many, and their number in a row doubles, so that few shapes compile.
      least: rows at least, the number of devices that they are cut over; `lanes` is a multiple of it.
    """

    lanes: int
    capacity: int
    size: int
    block: int = 64
    least: int = 1

    @property
    def smallest(self) -> int:
        """Slots that the pool needs to serve any row."""
        return self.least * self.longest

    @property
    def longest(self) -> int:
        """Slots of a row of `capacity` tokens, in whole blocks."""
        return -(-self.capacity // self.block) * self.block

    def room(self, tokens: int) -> int:
        """`tokens` or more: one of few numbers, blocks doubled."""
        slots = self.block
        while slots < tokens:
            slots *= 2
        return slots

    def slots(self, tokens: int) -> int:
        """Slots of a row that is to hold `tokens`."""
        return min(self.room(tokens), self.longest)

    def shape(self, rows: int, tokens: int) -> Shape | None:
        """The state for so many rows of which the longest is to hold `tokens`; None where the pool has none."""
        slots, width = self.slots(tokens), self.lanes
        while width > self.least and width * slots > self.size:
            width = -(-width // (2 * self.least)) * self.least
        return Shape(width, slots) if rows <= width and width * slots <= self.size else None


def staying(pool: Pool, needs: Mapping[int, int]) -> tuple[list[int], Shape]:
    """Which rows go on, and in which state: the oldest, as many as the pool holds.

    Args:
      pool: what there is.
      needs: row -> tokens that it is to hold, the oldest row first; at least one.
    """
    kept = list(needs)
    while (shape := pool.shape(len(kept), max(needs[row] for row in kept))) is None:
        kept.pop()
    return kept, shape
