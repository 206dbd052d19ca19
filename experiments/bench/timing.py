"""Fair timing on a noisy machine: candidates of a row take turns in one process; compare CPU seconds and wall."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax

Made = TypeVar("Made")
# Seconds of one turn, above which a candidate is not called again in it.
LONG_TURN = 0.2


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

    Every turn waits for the candidate's result. `calls` repeats within a turn, for candidates of microseconds (slow
    ones are called less often). An accelerator runs the calls one after the other, so there a turn waits for the last
    one only, and the transfer to the device and back is not counted.
    """
    wait = jax.block_until_ready if jax.default_backend() == "cpu" else lambda result: result
    repeats = {name: _repeats(call, calls) for name, call in candidates.items()}
    seconds: dict[str, tuple[list, list]] = {name: ([], []) for name in candidates}
    order = list(candidates)
    for turn in range(rounds):
        for name in order if turn % 2 == 0 else order[::-1]:  # Neither side always follows the other.
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeats[name]):
                result = wait(candidates[name]())
            jax.block_until_ready(result)
            seconds[name][0].append((time.perf_counter() - wall) / repeats[name])
            seconds[name][1].append((time.process_time() - cpu) / repeats[name])
    return {name: Timing(tuple(wall), tuple(cpu)) for name, (wall, cpu) in seconds.items()}


def _repeats(call: Callable[[], object], most: int) -> int:
    """How often a candidate is called in a turn, from a call that follows a first one."""
    jax.block_until_ready(call())
    if most == 1:
        return 1
    begun = time.perf_counter()
    jax.block_until_ready(call())
    return max(1, min(most, int(LONG_TURN / (time.perf_counter() - begun))))


def ratio(a: Timing, b: Timing) -> float:
    """How many times faster `a` is than `b`: the median over rounds of b's wall time over a's, round by round."""
    return statistics.median(y / x for x, y in zip(a.wall, b.wall, strict=True))


def cpu_ratio(a: Timing, b: Timing) -> float:
    """The same in CPU seconds, which hold on a shared machine."""
    return statistics.median(y / x for x, y in zip(a.cpu, b.cpu, strict=True))


class Steady:
    """A clock of CPU seconds as they are at one speed of the machine: for what goes by its own clock, as queues do.

    Others make a machine faster or slower by tens of per cent within seconds, CPU seconds included. Between any two
    calls a fixed piece of work is timed; what passes is multiplied by its seconds when the clock was made over those of
    now (of the last calls, the newest most). Its own seconds do not pass.

    Args:
      work: the piece, which waits for its result.
      clock: of seconds.
      memory: calls over which what is now is taken.
    """

    def __init__(self, work: Callable[[], object], *, clock: Callable[[], float] = time.process_time, memory: int = 16):
        self.work, self.clock, self.share = work, clock, 1 / memory
        self.time = 0.0
        self._timed()
        self.usual = self.now = statistics.median(self._timed() for _ in range(8 * memory))
        self._last = clock()

    def __call__(self) -> float:
        """Seconds since it was made."""
        self.time += (self.clock() - self._last) * self.usual / self.now
        self.now += self.share * (min(self._timed(), 2 * self.now) - self.now)  # One that was interrupted says little.
        self._last = self.clock()
        return self.time

    def _timed(self) -> float:
        begun = self.clock()
        self.work()
        return self.clock() - begun


def quiet(run: Callable[[], Made], runs: int) -> list[Made]:
    """What so many runs made in which nothing was compiled. Where shapes depend on times any run may compile something.

    Errors: RuntimeError where all of some do.
    """
    found, compiled = [], []

    def count(event: str, seconds: float, **_: object) -> None:
        if event.startswith("/jax/core/compile"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for _ in range(8 + runs):
            before = len(compiled)
            made = run()
            if len(compiled) == before:
                found.append(made)
            if len(found) == runs:
                return found
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    raise RuntimeError("something compiles in every run; give it fewer shapes, e.g. a smaller capacity.")
