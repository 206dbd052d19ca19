r"""Regular expressions as trees: a parser of the regular part of Python's syntax, and characters as UTF-8 bytes.

Read are: characters, `.` (all but a newline), classes `[a-z]`, `[^a]`, \d \w \s \D \W \S (ASCII), \n \t \r \f \v \0
\xHH \uHHHH, groups `(...)` and `(?:...)`, `|`, `*` `+` `?` `{m}` `{m,}` `{m,n}`, also with a lazy `?`, which changes no
language. `^` at the start and `$` at the end say nothing, since the whole text must match.
"""

import dataclasses
from collections.abc import Iterator

LAST = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]
"""Code points, from and to inclusive, in order and apart."""
DIGIT: Ranges = ((48, 57),)
WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
SPACE: Ranges = ((9, 13), (32, 32))
CONTROL = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "0": 0, "a": 7}


@dataclasses.dataclass(frozen=True)
class Chars:
    """One character of the ranges."""

    ranges: Ranges


@dataclasses.dataclass(frozen=True)
class Sequence:
    """Its parts one after another; without a part: the empty text."""

    parts: tuple


@dataclasses.dataclass(frozen=True)
class Either:
    """One of its parts."""

    parts: tuple


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Its part `least` to `most` times; most -1: without end."""

    part: object
    least: int
    most: int


def parse(pattern: str) -> object:
    """The tree of a pattern: `Chars`, `Sequence`, `Either`, `Repeat`.

    Errors: ValueError where the pattern is not of the syntax above, e.g. looks ahead or back.
    """
    reader = _Reader(pattern)
    tree = reader.either()
    if reader.at < len(pattern):
        raise reader.error("has a ) without a (")
    return tree


def normal(ranges: Iterator[tuple[int, int]] | Ranges) -> Ranges:
    """Ranges in order, those that touch as one."""
    made: list[list[int]] = []
    for low, high in sorted(ranges):
        if made and low <= made[-1][1] + 1:
            made[-1][1] = max(made[-1][1], high)
        else:
            made.append([low, high])
    return tuple(map(tuple, made))


def inverse(ranges: Ranges) -> Ranges:
    """All other code points."""
    edges, start = [], 0
    for low, high in normal(ranges):
        if low > start:
            edges.append((start, low - 1))
        start = high + 1
    return (*edges, (start, LAST)) if start <= LAST else tuple(edges)


def utf8(ranges: Ranges) -> Iterator[tuple[tuple[int, int], ...]]:
    """The ranges as sequences of ranges of bytes: one stands for the characters whose bytes lie in its ranges.

    Code points 0xD800 to 0xDFFF, which are no characters, are left out.
    """
    whole = [(0, 0x7F, 1), (0x80, 0x7FF, 2), (0x800, 0xD7FF, 3), (0xE000, 0xFFFF, 3), (0x10000, LAST, 4)]
    for low, high in ranges:
        for first, last, size in whole:
            if max(low, first) <= min(high, last):
                yield from _split(max(low, first), min(high, last), size)


def _split(low: int, high: int, size: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Cuts low..high, all of `size` bytes, until each piece is a product of ranges of bytes."""
    for level in range(1, size):
        block = 1 << (6 * level)
        if low // block != high // block:
            if low % block:
                edge = low // block * block + block - 1
                yield from _split(low, edge, size)
                yield from _split(edge + 1, high, size)
                return
            if high % block != block - 1:
                edge = high // block * block - 1
                yield from _split(low, edge, size)
                yield from _split(edge + 1, high, size)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))


class _Reader:
    """A pattern and the place where it is read."""

    def __init__(self, pattern: str):
        self.pattern, self.at = pattern, 0

    def error(self, what: str) -> ValueError:
        return ValueError(f"the pattern {self.pattern!r} {what} at character {self.at}; an example that works: [a-z]+")

    def peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self, *ones: str) -> str:
        """The next text if it is one of these, read; else ''."""
        for one in ones:
            if self.pattern.startswith(one, self.at):
                self.at += len(one)
                return one
        return ""

    def either(self) -> object:
        parts = [self.sequence()]
        while self.take("|"):
            parts.append(self.sequence())
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def sequence(self) -> object:
        parts = []
        while self.peek() and self.peek() not in "|)":
            parts.append(self.repeated(self.one()))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def repeated(self, part: object) -> object:
        while sign := self.take("*", "+", "?", "{"):
            least, most = self.counts() if sign == "{" else {"*": (0, -1), "+": (1, -1), "?": (0, 1)}[sign]
            self.take("?")
            if self.peek() == "+":
                raise self.error("has a possessive quantifier, which is not read,")
            part = Repeat(part, least, most)
        return part

    def counts(self) -> tuple[int, int]:
        end = self.pattern.find("}", self.at)
        low, comma, high = self.pattern[self.at : max(end, 0)].partition(",")
        if not (low + high).isdigit() or (high and low and int(high) < int(low)):
            raise self.error("has a { without counts (write \\{ for the character)")
        self.at = end + 1
        least = int(low or 0)
        return least, (int(high) if high else -1) if comma else least

    def one(self) -> object:
        if self.take("("):
            if self.take("?") and not self.take(":"):
                raise self.error("has a group (?..., which is not regular or not read,")
            tree = self.either()
            if not self.take(")"):
                raise self.error("has a ( without a )")
            return tree
        if self.take("["):
            return Chars(self.members())
        if self.take("."):
            return Chars(inverse(((10, 10),)))
        if self.peek() in "*+?":
            raise self.error("repeats nothing")
        if (self.peek() == "^" and self.at == 0) or (self.peek() == "$" and self.at == len(self.pattern) - 1):
            self.at += 1
            return Sequence(())
        if self.peek() in "^$":
            raise self.error(f"has a {self.peek()} inside (write \\{self.peek()} for the character)")
        return Chars(self.character())

    def character(self) -> Ranges:
        """The ranges of one character or of a class like \\d."""
        sign = self.peek()
        self.at += 1
        if sign != "\\":
            return ((ord(sign), ord(sign)),)
        sign = self.peek()
        self.at += 1
        classes = {"d": DIGIT, "w": WORD, "s": SPACE}
        if sign.lower() in classes and sign:
            ranges = classes[sign.lower()]
            return ranges if sign.islower() else inverse(ranges)
        if sign in ("x", "u"):
            digits = self.pattern[self.at : self.at + (2 if sign == "x" else 4)]
            self.at += len(digits)
            try:
                return ((int(digits, 16),) * 2,)
            except ValueError:
                raise self.error(f"has a \\{sign} without its digits") from None
        if not sign or (sign.isalnum() and sign not in CONTROL):
            raise self.error(f"has a \\{sign}, which is not read,")
        point = CONTROL.get(sign, ord(sign))
        return ((point, point),)

    def members(self) -> Ranges:
        """What stands in [...]."""
        no, found, first = self.take("^"), [], True
        while first or self.peek() != "]":
            if not self.peek():
                raise self.error("has a [ without a ]")
            first = False
            ranges = self.character()
            if self.peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                low, high = ranges[0][0], self.character()[0][1]
                if low > high:
                    raise self.error("has a range from a later to an earlier character")
                ranges = ((low, high),)
            found += ranges
        self.at += 1
        return inverse(tuple(found)) if no else normal(tuple(found))
