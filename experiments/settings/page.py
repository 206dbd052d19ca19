"""docs/knobs.md: every knob with its default, its range or names, who reads it and its sentence.

python -m experiments.settings.page     rewrites it
"""

import pathlib
from collections.abc import Iterator

from configs import knobs
from experiments.settings.overrides import shown

PLACE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "knobs.md"

_HEAD = """# Every knob

Written by `python -m experiments.settings.page` from [configs/knobs](../configs/knobs); do not edit. On the command
line a knob is `--config.KEY=VALUE`. A knob that nothing in the config reads is refused when it is set to something else
than its default. "Before" is the value under which runs were made whose saved config lacks the key.
"""


def page() -> str:
    """The page as text."""
    lines, group = [_HEAD], None
    for key, knob in knobs.KNOBS.items():
        above, _, leaf = key.rpartition(".")
        if above != group:
            group = above
            lines += _heading(group)
        says = " ".join([knob.says, *_owners(knob, group), *_before(knob)])
        lines.append(f"| `{leaf}` | " + " | ".join(map(_cell, (f"`{shown(knob.default)}`", _holds(knob), says))) + " |")
    return "\n".join(lines) + "\n"


def _heading(group: str) -> Iterator[str]:
    yield f"\n## {group or 'The top'}\n"
    own = [knobs.KNOBS[key].of for key in knobs.KNOBS if key.rpartition(".")[0] == group]
    common = [ways for ways in own[0] if all(ways in of for of in own)]
    if told := " ".join(filter(None, (knobs.GROUPS.get(group, ""), *map(_told, common)))):
        yield f"{told}\n"
    yield "| knob | default | holds | |"
    yield "|---|---|---|---|"


def _owners(knob: knobs.Knob, group: str) -> list[str]:
    """Who reads this knob beyond what its whole group says."""
    own = [other.of for key, other in knobs.KNOBS.items() if key.rpartition(".")[0] == group]
    return [_told(ways) for ways in knob.of if not all(ways in of for of in own)]


def _told(ways: tuple[knobs.Reader, ...]) -> str:
    words = [
        f"`{way.key}`" if way.names == ("*",) else f"`{way.key}{'!' * way.but}={'|'.join(way.names)}`" for way in ways
    ]
    return f"Read by {' or '.join(words)}."


def _before(knob: knobs.Knob) -> list[str]:
    return [] if knob.before is knobs.NEVER else [f"Before: `{shown(knob.before)}`."]


def _holds(knob: knobs.Knob) -> str:
    if knob.table:
        also = "".join(f", `{name}`" if name else ", `''`" for name in knob.choices)
        return f"a name in `{knob.table.replace(':', '.')}`{also}"
    if knob.choices:
        return ", ".join(f"`{name}`" if name else "`''`" for name in knob.choices)
    kind = {bool: "true, false", int: "whole", float: "number", str: "text", tuple: "tuple"}[type(knob.default)]
    if knob.least is None:
        return kind
    return f"{kind}, {knob.least:g} and up" if knob.most is None else f"{kind}, {knob.least:g} to {knob.most:g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PLACE.write_text(page())
