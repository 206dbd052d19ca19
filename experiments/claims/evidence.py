"""What a claim ends as: a row of the ledger, its verdict by rule."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.report.data import mean_interval
from experiments.settings.errors import Refused

EXACT, HOLDS, DOES_NOT, UNDECIDED, NOT_HERE = "exact", "holds", "does not", "undecided", "not testable here"
VERDICTS = (EXACT, HOLDS, DOES_NOT, UNDECIDED, NOT_HERE)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A row of the ledger.

    statement: what the paper claims, one sentence.
    published: what it measured.
    measured: what was measured here, with its interval.
    scale: size, data and seeds.
    verdict: one of VERDICTS.
    numbers: the figures behind it, plain JSON."""

    statement: str
    published: str
    measured: str
    scale: str
    verdict: str
    numbers: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of Student's 95% interval. Raises Refused for fewer than two values."""
    if len(values) < 2:
        raise Refused(f"seeds: {len(values)} give no interval; use at least 2, e.g. (0, 1, 2).")
    mean, half = mean_interval(values)
    return mean, mean - half, mean + half


def above(low: float, high: float, bound: float = 0.0) -> str:
    """The verdict on "greater than `bound`" for an interval: undecided while the bound is inside."""
    return HOLDS if low > bound else DOES_NOT if high < bound else UNDECIDED
