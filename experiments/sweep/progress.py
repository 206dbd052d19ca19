"""Progress of a running sweep: a bar on a terminal, a line every half minute in a log."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

_EVERY = 30.0  # seconds between lines of a log


class SweepProgress:
    """Progress in FLOPs over all trials of a sweep; context manager.

    The time left assumes the mean rate of this session, which is right only once small and large trials have run.

    total: FLOPs of all trials.
    quiet: whether nothing is shown.
    """

    def __init__(self, total: float, *, quiet: bool = False):
        self._console = Console(quiet=quiet, soft_wrap=True, highlight=False)
        self._total = max(total, 1.0)
        self._begin: tuple[float, float] | None = None
        self._printed = time.monotonic()
        self._bar: Bar | None = None
        self._visible = sys.stdout.isatty() and not quiet

    def __enter__(self) -> "SweepProgress":
        if self._visible:
            self._bar = Bar(BarColumn(), TextColumn("{task.description}"), console=self._console)
            self._task = self._bar.add_task("", total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, work: float, counts: Mapping[str, int]) -> None:
        """Shows where the sweep is.

        Args:
          work: FLOPs done by now, those of earlier sessions included.
          counts: number of trials by state, and under "all".
        """
        now = time.monotonic()
        self._begin = self._begin or (now, work)
        text = f"{counts['finished']}/{counts['all']} trials, {counts['running']} running"
        if counts["failed"]:
            text += f", {counts['failed']} failed"
        text += f", {100 * work / self._total:.0f}%{self._left(now, work)}"
        if self._bar:
            self._bar.update(self._task, completed=work, description=text)
        elif now - self._printed >= _EVERY:
            self._printed = now
            self._console.print(text)

    def _left(self, now: float, work: float) -> str:
        start, before = self._begin
        if work <= before:
            return ""
        left = (now - start) * (self._total - work) / (work - before)
        return f", {left / 60:.0f} min left" if left > 90 else f", {left:.0f} s left"

    def say(self, text: str) -> None:
        """Shows one line."""
        self._console.print(text, markup=False)
