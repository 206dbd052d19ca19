"""The progress of a run: a bar on a terminal, a line every few seconds in a log."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class StepProgress:
    """Progress over `total` steps of so many tokens, from `start`; context manager."""

    def __init__(self, total: int, start: int, tokens_per_step: int, *, quiet: bool = False):
        self._console = Console(quiet=quiet, soft_wrap=True, highlight=False)
        self._total, self._start, self._tokens = total, start, tokens_per_step
        self._bar: Bar | None = None
        self._printed = time.monotonic()
        self._quiet = quiet

    def __enter__(self) -> "StepProgress":
        if sys.stdout.isatty() and not self._quiet:
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, console=self._console)
            self._task = self._bar.add_task("compiling", total=self._total, completed=self._start)
            self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, *, loss: float, **timing: float) -> None:
        """Shows where the run is; in a log at most every five seconds."""
        text = f"loss {loss:.4f}"
        if "tokens_per_second" in timing:
            text += f"  {_si(timing['tokens_per_second'])} tok/s  MFU {timing['mfu']:.0%}"
        text += f"  {timing['peak_memory_bytes'] / 2**30:.1f} GiB"
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
        elif time.monotonic() - self._printed > 5:
            self._printed = time.monotonic()
            self._console.print(f"step {step}/{self._total}  {text}{self._left(step, timing)}")

    def _left(self, step: int, timing: dict) -> str:
        if "tokens_per_second" not in timing or step <= self._start:
            return ""
        left = (self._total - step) * self._tokens / timing["tokens_per_second"]  # Of steps as they are now.
        return f"  {left / 60:.0f} min left" if left > 90 else f"  {left:.0f} s left"

    def compiled(self, seconds: float) -> None:
        """Tells how long the first step took, where a person waited for it."""
        if seconds > 5:
            self.say(f"first step after {seconds:.0f} s; it compiles, the others do not")

    def note(self, step: int, held_out: dict[str, Any]) -> None:
        """Shows an evaluation."""
        kind = held_out["eval/kind"]
        self.say(
            f"step {step}: held-out bits per byte {kind} {held_out['eval/bits_per_byte']:.3f} "
            f"(standard error {held_out['eval/bits_per_byte_se']:.3f})"
        )

    def say(self, text: str) -> None:
        """Shows one line."""
        self._console.print(text)


def _si(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"
