"""How far something long has come: a line of the terminal that is written again, or a line of the log now and then."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

_SOON, _SELDOM = 0.5, 30.0  # seconds between two writings, on a terminal and in a log


@contextlib.contextmanager
def shown(what: str, total: int = 0, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A function that is told of bytes as they are dealt with.

    Args:
      what: "reading text".
      total: bytes of all of it; 0: not known.
      done: of these, what an earlier process did.

    Nothing is shown of what takes less than a few seconds.
    """
    begin = last = time.monotonic()
    now, written = done, False
    terminal = sys.stderr.isatty()

    def add(count: int) -> None:
        nonlocal now, last, written
        now += count
        time_ = time.monotonic()
        if time_ - last < (_SOON if terminal else _SELDOM) or time_ - begin < 2:
            return
        last, written = time_, True
        said = line(what, now, total, (now - done) / (time_ - begin))
        if terminal:
            print(f"\r\x1b[K{said}", end="", file=sys.stderr, flush=True)
        else:
            logging.getLogger("data").warning("%s", said)

    yield add
    if written and terminal:
        print(file=sys.stderr)


def line(what: str, done: int, total: int, rate: float) -> str:
    """What is shown: `done` of `total` bytes (0: not known) at `rate` bytes a second, and the time that is left."""
    speed = f"{rate / 1e6:.1f} MB/s"
    if not total:
        return f"{what}: {done / 1e6:,.0f} MB, {speed}"
    left = (total - done) / rate if rate else 0.0
    minutes, seconds = divmod(round(left), 60)
    clock = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"
    return f"{what}: {100 * done // total} % of {total / 1e6:,.0f} MB, {speed}, {clock} left"
