"""Groups of digits from the left or from the right (Singh and Strouse 2024, arXiv:2402.14903)."""

import re
from typing import Literal

Direction = Literal["left", "right"]
_NUMBERS = re.compile(rb"[0-9]+")


def groups(count: int, direction: Direction = "right", size: int = 3) -> list[int]:
    """Lengths of the groups of a number of `count` digits, ceil(count / size) of them.

    From the left all but the last group are full (7 digits: 3 3 1), from the right all but the first (1 3 3), whose
    borders stand at powers of 10^size in every number.
    """
    if direction not in ("left", "right"):
        raise ValueError(f"direction={direction!r} is unknown; use 'left' or 'right'.")
    full, rest = divmod(count, size)
    short = [rest] if rest else []
    return [size] * full + short if direction == "left" else short + [size] * full


def split(text: bytes, direction: Direction = "right", size: int = 3) -> list[bytes]:
    """Cuts each number of ASCII digits into groups; text between numbers stays whole. The parts join to `text`."""
    parts, at = [], 0
    for number in _NUMBERS.finditer(text):
        if at < number.start():
            parts.append(text[at : number.start()])
        at = number.start()
        for length in groups(number.end() - at, direction, size):
            parts.append(text[at : at + length])
            at += length
    return [*parts, text[at:]] if at < len(text) else parts
