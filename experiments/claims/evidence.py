"""What a claim ends as: a row of the ledger, its verdict by rule."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.data import mean_interval
from experiments.settings.errors import Refused

RUNS, TUNING = "runs", "tuning"  # folders of the workdir of a claim
EXACT, HOLDS, DOES_NOT, UNDECIDED, NOT_HERE = "exact", "holds", "does not", "undecided", "not testable here"
EQUAL, COST, CONTROL_FAILED = "equal within the effect", "cost too high", "control failed"
VERDICTS = (EXACT, HOLDS, DOES_NOT, EQUAL, COST, CONTROL_FAILED, UNDECIDED, NOT_HERE)


def stem(name: str) -> str:
    """The name of a claim's files, of the config file that it was run from."""
    return name.replace(".py", "").replace(":", "_")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A row of the ledger.

    statement: what the paper claims, one sentence.
    published: what it measured.
    measured: what was measured here, with its interval.
    scale: size, data and seeds.
    verdict: one of VERDICTS.
    numbers: the figures behind it, plain JSON.
    """

    statement: str
    published: str
    measured: str
    scale: str
    verdict: str
    numbers: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Judged:
    """A difference with its interval and verdict.

    mean, low, high: of the differences by seed.
    verdict: one of VERDICTS.
    numbers: what a row keeps beside them.
    """

    mean: float
    low: float
    high: float
    verdict: str
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ends(self) -> tuple[float, float, float]:
        return self.mean, self.low, self.high

    def to_dict(self) -> dict[str, Any]:
        """What a row keeps: the interval and the numbers."""
        return {"mean": self.mean, "low": self.low, "high": self.high, **self.numbers}

    def text(self, digits: int = 4) -> str:
        """The mean and its interval."""
        mean, low, high = (f"{x:+.{digits}f}" for x in self.ends)
        return f"{mean} [{low}, {high}]"

    def row(self, pair: Mapping[str, Any], measured: str, scale: str, numbers: Mapping[str, Any]) -> Evidence:
        """The row of `pair`, which has "statement" and "published"; it keeps `numbers` and those of the interval."""
        stated = {name: pair[name] for name in ("statement", "published")}
        return Evidence(
            **stated, measured=measured, scale=scale, verdict=self.verdict, numbers={**numbers, **self.to_dict()}
        )


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of Student's 95% interval. Raises Refused for fewer than two values."""
    if len(values) < 2:
        raise Refused(f"seeds: {len(values)} give no interval; use at least 2, e.g. (0, 1, 2).")
    mean, half = mean_interval(values)
    return mean, mean - half, mean + half


def above(low: float, high: float, bound: float = 0.0) -> str:
    """The verdict on "greater than `bound`" for an interval: undecided while the bound is inside."""
    return HOLDS if low > bound else DOES_NOT if high < bound else UNDECIDED
