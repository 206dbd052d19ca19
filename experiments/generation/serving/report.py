"""What a log of the simulator, or of the engine, says: times, goodput, memory."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.generation.serving.simulator import Log, Served


@dataclasses.dataclass(frozen=True)
class Report:
    """Of all requests, in seconds: makespan; medians and 99th percentiles of the time to the first token, of gaps
    between tokens, of the queue.

    Attributes:
      tokens: written a second.
      goodput: requests a second that met all limits.
      met: their share.
      preempted: preemptions in all; again: tokens read a second time.
      read: tokens of prompts that were read.
    """

    makespan: float
    first: tuple[float, float]
    gap: tuple[float, float]
    queued: tuple[float, float]
    tokens: float
    goodput: float
    met: float
    preempted: int
    again: int
    read: int


def meets(served: Served, first: float, gap: float, stall: float = float("inf")) -> bool:
    """Whether a request kept all limits: its first token in `first`, its mean gap in `gap`, every gap in `stall`."""
    gaps = served.gaps
    return served.first <= first and (not gaps or sum(gaps) / len(gaps) <= gap and max(gaps) <= stall)


def report(log: Log, *, first: float = float("inf"), gap: float = float("inf"), stall: float = float("inf")) -> Report:
    """The figures of a log; `first`, `gap`, `stall`: limits in seconds that good requests keep (SLO), see `meets`."""
    served = list(log.served.values())
    good = sum(meets(s, first, gap, stall) for s in served)
    gaps = [x for s in served for x in s.gaps]
    return Report(
        makespan=log.makespan,
        first=_two([s.first for s in served]),
        gap=_two(gaps),
        queued=_two([s.queued for s in served]),
        tokens=sum(len(s.times) for s in served) / log.makespan,
        goodput=good / log.makespan,
        met=good / len(served),
        preempted=sum(s.preempted for s in served),
        again=sum(s.again for s in served),
        read=sum(n for step in log.steps for n, _ in step.work.chunks),
    )


def _two(values: Sequence[float]) -> tuple[float, float]:
    """(median, 99th percentile), 0 of nothing."""
    if not len(values):
        return 0.0, 0.0
    return float(np.median(values)), float(np.quantile(values, 0.99))
