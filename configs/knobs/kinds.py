"""What a knob is: one line with its default, its sentence, its range or names, its smoke size and who reads it.

    lact = group("Large-chunk test-time training.", of="model.mixer=lact")
    lact.chunk_size = whole(2048, "Tokens per update.", least=1, small=8)

Every constructor takes the default, then the sentence, and these words:

    least, most   the range of a number, both ends allowed
    small         a smoke run takes at most this
    smoke         a smoke run takes exactly this
    of            who reads it: "KEY=NAME|NAME or KEY=NAME", on top of what its group says. KEY names a part, or several
                  between commas; a NAME also stands for "NAME:anything"; "*" stands for any value but 0, "" and False.
                  "KEY!=NAME": all but those; so write where parts that are still to come may well read the knob.
                  A knob that nothing reads may not be set, and takes no part in the identity of a run.
    before        the value under which runs were made whose saved config lacks the key. Every knob that is added says
                  it; it may differ from the default, and it stays as it is when the default changes.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

NEVER = object()  # `before` of the knobs that every saved config holds.


@dataclasses.dataclass(frozen=True)
class Reader:
    """One place where a part is named: `key` of the config, and the `names` under which the knob is read.

    `but`: under all but those.
    """

    key: str
    names: tuple[str, ...]
    but: bool = False

    def matches(self, value: Any) -> bool:
        """Whether the knob is read where `value` stands."""
        if self.names == ("*",):
            return bool(value)
        words = [word.strip() for word in str(value).split(",")]
        named = [word in self.names or word.partition(":")[0] in self.names for word in words]
        return not all(named) if self.but else any(named)


@dataclasses.dataclass(frozen=True)
class Knob:
    """One key of the config; see the words above.

    `choices` are the names that it takes, `table` says where they stand ("models.mixers:MIXERS") with `choices` beside
    them. `of`: every one of the tuples must hold a reader that matches.
    """

    default: Any
    says: str
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    table: str = ""
    small: Any = None
    smoke: Any = None
    of: tuple[tuple[Reader, ...], ...] = ()
    before: Any = NEVER


def readers(text: str) -> tuple[tuple[Reader, ...], ...]:
    """ "KEY=NAME|NAME or KEY!=NAME" as `Knob.of`; () for ""."""
    if not text:
        return ()
    ways = (re.fullmatch(r"([\w.]+?)(!?)=(.*)", way).groups() for way in text.split(" or "))
    return (tuple(Reader(key, tuple(names.split("|")), bool(but)) for key, but, names in ways),)


class Group:
    """Knobs and groups by name, in the order of their lines; `of` holds for all of them."""

    def __init__(self, says: str, of: str = ""):
        vars(self).update(_says=says, _of=readers(of), _held={})

    def __setattr__(self, name: str, value: "Knob | Group") -> None:
        if name in self._held:
            raise ValueError(f"the knob {name!r} stands twice in its group")
        self._held[name] = value

    def __getattr__(self, name: str) -> "Knob | Group":
        try:
            return vars(self)["_held"][name]
        except KeyError:
            raise AttributeError(name) from None

    def knobs(self, prefix: str = "", of: tuple = ()) -> Iterator[tuple[str, Knob]]:
        """Dotted key and knob of everything below, with all readers of its groups."""
        of += self._of
        for name, value in self._held.items():
            if isinstance(value, Group):
                yield from value.knobs(f"{prefix}{name}.", of)
            else:
                yield f"{prefix}{name}", dataclasses.replace(value, of=of + value.of)

    def sentences(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Dotted key and sentence of every group below that has one."""
        for name, value in self._held.items():
            if isinstance(value, Group):
                yield f"{prefix}{name}", value._says
                yield from value.sentences(f"{prefix}{name}.")


def group(says: str = "", *, of: str = "") -> Group:
    """An empty group."""
    return Group(says, of)


def _knob(default: Any, says: str, *, of: str = "", **words: Any) -> Knob:
    return Knob(default, says, of=readers(of), **words)


def whole(default: int, says: str, **words: Any) -> Knob:
    """A whole number."""
    return _knob(int(default), says, **words)


def number(default: float, says: str, **words: Any) -> Knob:
    """A real number."""
    return _knob(float(default), says, **words)


def switch(default: bool, says: str, **words: Any) -> Knob:
    """True or False."""
    return _knob(bool(default), says, **words)


def text(default: str, says: str, **words: Any) -> Knob:
    """Any text."""
    return _knob(default, says, **words)


def texts(default: tuple, says: str, **words: Any) -> Knob:
    """A tuple of texts; of groups in `data.components`."""
    return _knob(tuple(default), says, **words)


def one_of(default: str, names: tuple[str, ...], says: str, **words: Any) -> Knob:
    """One of the names written out here, for what has no table."""
    return _knob(default, says, choices=tuple(names), **words)


def part(default: str, table: str, says: str, *, also: tuple[str, ...] = (), **words: Any) -> Knob:
    """A name in a table of the house ("models.channels:CHANNELS"), or one of `also`; a comma list where it says so."""
    return _knob(default, says, table=table, choices=tuple(also), **words)
