"""Fair timing on a noisy machine: candidates of a row take turns in one process; compare CPU seconds and wall."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

import jax


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per call of one candidate over the rounds."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]  # all threads of the process

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    @property
    def median_cpu(self) -> float:
        return statistics.median(self.cpu)

    @property
    def spread(self) -> float:
        """Half the distance from the first to the last round, as a share of the median."""
        return (max(self.wall) - min(self.wall)) / 2 / self.median


def interleave(candidates: Mapping[str, Callable[[], object]], *, rounds: int = 5, calls: int = 1) -> dict[str, Timing]:
    """Times every candidate once a round, in turn, after one warm-up call each.

    A candidate's result is waited for. `calls` repeats within a turn, for candidates of microseconds; an accelerator
    runs them one after the other, so there only the last is waited for, and the way to it and back is not counted.
    """
    wait = jax.block_until_ready if jax.default_backend() == "cpu" else lambda result: result
    for call in candidates.values():
        jax.block_until_ready(call())
    seconds: dict[str, tuple[list, list]] = {name: ([], []) for name in candidates}
    order = list(candidates)
    for turn in range(rounds):
        for name in order if turn % 2 == 0 else order[::-1]:  # Neither side always follows the other.
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(calls):
                result = wait(candidates[name]())
            jax.block_until_ready(result)
            seconds[name][0].append((time.perf_counter() - wall) / calls)
            seconds[name][1].append((time.process_time() - cpu) / calls)
    return {name: Timing(tuple(wall), tuple(cpu)) for name, (wall, cpu) in seconds.items()}


def ratio(a: Timing, b: Timing) -> float:
    """How many times faster `a` is than `b`: the median over rounds of b's wall time over a's, round by round."""
    return statistics.median(y / x for x, y in zip(a.wall, b.wall, strict=True))


def cpu_ratio(a: Timing, b: Timing) -> float:
    """The same in CPU seconds, which hold on a shared machine."""
    return statistics.median(y / x for x, y in zip(a.cpu, b.cpu, strict=True))
