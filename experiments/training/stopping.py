"""SIGTERM, SIGINT and SIGHUP as a flag that the loop reads between steps, instead of an exception inside a step."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from experiments.settings import processes


class Stop:
    """The flag. `requested` is the name of the signal that came, "" before."""

    requested = ""

    def __init__(self):
        self._looked, self._slowest = time.monotonic(), 0.0

    def look(self, step: int) -> None:
        """Call before every step. Many processes that run the loop together stop at the same step."""
        if processes.many():
            now = time.monotonic()
            self._looked, self._slowest = now, max(self._slowest, now - self._looked)
            self.requested = processes.told_to_stop(step)

    def late(self, since: float) -> bool:
        """Whether the next step should have come by now, after a signal at `since` (of time.monotonic)."""
        waited = time.monotonic() - max(since, self._looked)
        return not self.requested and waited > processes.STOP + self._slowest


@contextlib.contextmanager
def collected() -> Iterator[Stop]:
    """Collects SIGTERM, SIGINT and SIGHUP: the loop saves and leaves at its next step; a second signal acts at once.

    A signal that is ignored stays so: a run under nohup outlives its terminal. Of many processes a SIGTERM or SIGHUP
    to one stops all before the same step. One of many may wait for another that is gone or hangs, inside a call that
    no exception reaches: it ends without the loop when the next step does not come (`Stop.late`).
    """
    stop = Stop()
    with _heard_by_all(stop) if processes.many() else _heard(stop):
        yield stop


@contextlib.contextmanager
def _heard(stop: Stop) -> Iterator[None]:
    def handle(number: int, frame: Any) -> None:
        stop.requested = signal.Signals(number).name
        signal.signal(number, previous[number])

    with _handled((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), handle) as previous:
        yield


@contextlib.contextmanager
def _heard_by_all(stop: Stop) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    # Python writes the number of a signal here as it comes, whatever the main thread waits in; its handlers run later.
    before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(stop, ear), name="signals", daemon=True)
    watch.start()
    try:
        with _handled((signal.SIGTERM, signal.SIGHUP), lambda number, frame: None):
            yield
    finally:
        signal.set_wakeup_fd(before)
        mouth.close()
        watch.join()
        ear.close()


@contextlib.contextmanager
def _handled(numbers: tuple[int, ...], handle: Any) -> Iterator[dict[int, Any]]:
    """Signals that are not ignored have the handler `handle`; yields those that they had."""
    previous: dict[int, Any] = {}
    try:
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handle)
    except ValueError:  # Not the main thread (a notebook's executor, a test): signals stay with whoever owns them.
        pass
    try:
        yield previous
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(stop: Stop, ear: socket.socket) -> None:
    """Hands the first signal on, and ends this process at the second, or where no step comes to act on the first."""
    came: dict[int, float] = {}
    while True:
        try:
            word = ear.recv(1)
        except TimeoutError:
            if stop.late(max(came.values())):
                _end(max(came, key=came.get), f"and no step came within {processes.STOP} seconds to act on it")
            continue
        if not word:  # The loop is left.
            return
        if word[0] not in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            continue
        if word[0] in came:
            _end(word[0], "twice")
        came[word[0]] = time.monotonic()
        if word[0] != signal.SIGINT:  # That one interrupts the main thread, if anything can.
            processes.tell_all_to_stop()
        ear.settimeout(1)


def _end(number: int, why: str) -> None:
    name = signal.Signals(number).name
    os.write(2, f"error: {name} came {why}; the same command goes on from the last checkpoint.\n".encode())
    os._exit(128 + number)
