"""SIGTERM and SIGINT as a wish that a loop can see, instead of an exception in the middle of it."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class Stop:
    """`requested`: the name of the signal that came, "" before."""

    requested = ""


@contextlib.contextmanager
def collected() -> Iterator[Stop]:
    """Collects SIGTERM and SIGINT: the loop saves and leaves at its next step; a second signal acts at once."""
    stop = Stop()

    def handle(number: int, frame: Any) -> None:
        stop.requested = signal.Signals(number).name
        signal.signal(number, previous[number])

    previous = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, handle)
    except ValueError:  # Not the main thread (a notebook's executor, a test): signals stay with whoever owns them.
        pass
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
