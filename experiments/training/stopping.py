"""SIGTERM, SIGINT and SIGHUP as a wish that a loop can see, instead of an exception in the middle of it."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from experiments.settings import processes


class Stop:
    """`requested`: the name of the signal that came, "" before."""

    requested = ""

    def look(self, step: int) -> None:
        """Before every step of a loop that many processes run together: they stop at the same one."""
        if processes.many():
            self.requested = processes.told_to_stop(step)


@contextlib.contextmanager
def collected() -> Iterator[Stop]:
    """Collects SIGTERM, SIGINT and SIGHUP: the loop saves and leaves at its next step; a second signal acts at once.

    A signal that is ignored stays so: a run under nohup outlives its terminal. Of many processes a SIGTERM stops all
    before the same step; jax hears it, and keeps its handler.
    """
    stop = Stop()
    if processes.many():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        stop.requested = signal.Signals(number).name
        signal.signal(number, previous[number])

    previous = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handle)
    except ValueError:  # Not the main thread (a notebook's executor, a test): signals stay with whoever owns them.
        pass
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
