"""How fast batches come: tokens per second of a loader, by wall clock and by CPU time."""

import time
from typing import Any

from data.loader import Loader


def measure(loader: Loader, *, batches: int = 500, through: str = "batch", warmup: int = 20) -> dict[str, Any]:
    """Reads `batches` batches and times them; every cell of this process's rows counts as a token, padding too.

    Args:
      loader: what to read; with a number of epochs it must hold `warmup + batches` steps.
      batches: how many to time.
      through: "batch" calls `loader.batch(step)`; "iterator" takes them from `loader.iterate()`, thread included.
      warmup: how many to read before the clock starts.

    Returns: tokens_per_second, tokens_per_cpu_second (CPU time of the whole process), us_per_batch, batches, through.
    Errors: ValueError for another `through`, or for more batches than the loader holds.
    """
    if through not in ("batch", "iterator"):
        raise ValueError(f"through={through!r} is not a way to read; use 'batch' or 'iterator'.")
    if warmup + batches > len(loader):
        raise ValueError(f"batches={batches} and warmup={warmup} are more than the {len(loader)} steps; use fewer.")
    take = loader.iterate().__next__ if through == "iterator" else map(loader.batch, range(warmup + batches)).__next__
    for _ in range(warmup):
        take()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(batches):
        batch = take()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokens = batch["tokens"].size * batches
    return {
        "tokens_per_second": tokens / wall,
        "tokens_per_cpu_second": tokens / cpu,
        "us_per_batch": wall / batches * 1e6,
        "batches": batches,
        "through": through,
    }
