"""The gallery for a terminal: presets, claims and knobs, all of them or those that a filter finds."""

import shutil
import sys
import textwrap

from experiments import gallery
from experiments.gallery import Entry, knobs
from experiments.gallery.knobs import Knob
from experiments.settings.errors import Refused
from experiments.settings.keys import suggest
from experiments.settings.visible import visible

_WIDEST = 110  # Longer lines are hard to read.


def listing(words: str = "", width: int = 0) -> str:
    """What `--mode=list` prints.

    Args:
      words: every one of them must stand in what is shown; the name of a knob or of a group shows that alone.
      width: columns; 0 = those of the terminal, 80 where there is none.

    Errors: Refused where nothing is found.
    """
    width = width or (min(_WIDEST, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 80)
    shown, every = gallery.entries(), knobs.knobs() if words else []
    exact = [knob for knob in every if _named(knob, words)]
    if exact:
        return _knobs(exact, width)
    shown = [entry for entry in shown if _finds(words, _words(entry))]
    every = [knob for knob in every if _finds(words, f"{knob.key} {knob.says}") and knob.default]
    if not shown and not every:
        known = [*(entry.family for entry in gallery.entries()), *(knob.key.rstrip(".") for knob in knobs.knobs())]
        hint = suggest(words, known) or "try --filter=attention, or leave it away."
        raise Refused(f"--filter={words} finds nothing; {hint.strip()}")
    parts = [_entries(shown, width)] if shown else []
    return "\n\n".join([*parts, _knobs(every, width)] if every else parts)


def _named(knob: Knob, words: str) -> bool:
    name = words.strip().rstrip(".")
    return knob.key.rstrip(".") == name or knob.key.startswith(f"{name}.")


def _finds(words: str, text: str) -> bool:
    return all(word in text.lower() for word in words.lower().split())


def _words(entry: Entry) -> str:
    return " ".join([entry.family, entry.title, entry.preset, entry.says, entry.source, gallery.judged(entry)])


def _entries(entries: list[Entry], width: int) -> str:
    lines, before = [], None
    for entry in entries:
        if entry.family != before and entry.preset:
            lines += ["", *_wrapped(entry.title, f"{entry.family}: ", width, "")]
        elif entry.family != before:
            lines.append("")
        before = entry.family
        name = f"  {entry.preset}: " if entry.preset else f"{entry.family}: "
        lines += _wrapped(entry.says, name, width, "      ")
        lines += _wrapped("; ".join(filter(None, [entry.source, gallery.judged(entry)])), "      ", width, "      ")
        if entry.needs:
            lines += ["      first:", *_command(entry.needs, width), "      then:"]
        lines += _command(entry.command, width)
    return "\n".join(lines[1:])


def _command(command: str, width: int) -> list[str]:
    """A command on one line, or on several that a shell takes as one; a word too long for a line stays whole."""
    if 6 + len(command) <= width:
        return [f"      {command}"]
    lines = [" " * 5]
    for word in command.split(" "):
        if len(f"{lines[-1]} {word} \\") > width:
            lines.append(" " * 9)
        lines[-1] += f" {word}"
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _knobs(found: list[Knob], width: int) -> str:
    lines = []
    for knob in found:
        if not knob.default:
            lines += _wrapped(knob.says, f"--config.{knob.key}*  ", width, "      ")
            continue
        lines.append(f"--config.{knob.key}={knob.default}")
        lines += _wrapped(knob.says, "      ", width, "      ")
    return "\n".join(lines)


def _wrapped(text: str, first: str, width: int, rest: str) -> list[str]:
    """`text` behind `first`, later lines behind `rest`; words are never cut."""
    return textwrap.wrap(
        visible(text), width, initial_indent=first, subsequent_indent=rest or "    ", break_long_words=False,
        break_on_hyphens=False,
    ) or ([first.rstrip()] if first.strip() else [])  # fmt: skip
