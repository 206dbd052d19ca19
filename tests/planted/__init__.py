"""Single bugs of every room, each of which some test must see: `python -m tests.planted_bugs` plants them one by one.

A room's file holds `BUGS`. Old text occurs exactly once in its file (`tests/planted_bugs_test.py` holds it to that),
so that whoever changes the line changes the bug with it.
"""

import dataclasses
import importlib
import pkgutil

ROOMS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


@dataclasses.dataclass(frozen=True)
class Bug:
    """`old` of `file` becomes `new`; `tests` are files (or single tests) of pytest that should then fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The file's text with the bug. Raises ValueError where the old text is not there exactly once."""
        count = text.count(self.old)
        if count != 1:
            raise ValueError(
                f"bug {self.name!r}: its old text is in {self.file} {count} times; write it anew in tests/planted."
            )
        return text.replace(self.old, self.new)


def bugs() -> tuple[Bug, ...]:
    """All of them, by room."""
    return tuple(bug for room in ROOMS for bug in importlib.import_module(f"tests.planted.{room}").BUGS)
