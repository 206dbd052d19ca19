"""The clock of a run: training alone counts, and rates count from the end of the first step."""

import contextlib
import resource
import sys
import time
from typing import Any

import jax


class Clock:
    """Wall time of training, without evaluation and saving, and what follows from it."""

    def __init__(self, elapsed: float, tokens_per_step: int, seconds_per_token: float):
        self._before, self._tokens, self._ideal = elapsed, tokens_per_step, seconds_per_token
        self._start = time.perf_counter()
        self._paused_at: float | None = None
        self._mark: tuple[int, float] | None = None
        self._waited = 0.0

    def elapsed(self) -> float:
        return self._before + (self._paused_at or time.perf_counter()) - self._start

    def pause(self) -> None:
        self._paused_at = time.perf_counter()

    def resume(self) -> None:
        self._start += time.perf_counter() - self._paused_at
        self._paused_at = None

    @contextlib.contextmanager
    def waiting_for_data(self):
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def first_step(self, step: int, metrics: Any) -> None:
        """Rates count from the end of the first step, which compiles."""
        jax.block_until_ready(metrics)
        self._mark = (step + 1, self.elapsed())

    def read(self, step: int) -> dict[str, float]:
        now = self.elapsed()
        timing = {"seconds": now, "data_wait_seconds": self._waited, "peak_memory_bytes": peak_memory()}
        if self._mark and step > self._mark[0]:
            rate = (step - self._mark[0]) * self._tokens / max(now - self._mark[1], 1e-9)
            timing |= {"tokens_per_second": rate, "mfu": rate * self._ideal}
            self._mark = (step, now)
        return timing


def peak_memory() -> int:
    """Peak bytes of the accelerator where it reports them, else of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
