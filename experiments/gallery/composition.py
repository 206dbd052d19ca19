"""Which control of decoding goes with what, asked of the code that refuses: a table of docs/control.md.

    python -m experiments.gallery.composition     rewrites it

It stands between the line `<!-- composition -->` and the next heading. A cell is "yes", or what the engine says when it
refuses; `tests/models/decoding/control/composition_test.py` traces a decoder for each "yes".
"""

import pathlib
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from configs import base, knobs
from experiments import workdir as files
from experiments.generation import drafting
from experiments.generation.serving import cached
from models.decoding import parts as sockets
from models.decoding import stream
from models.decoding.control import CONTROLS

MARK = "<!-- composition -->"
PLACE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "control.md"
SAMPLING = ("allowed", "roles", *sockets.SAMPLING)
NEEDS = {"budget": "remaining", "early_exit": "exits"}  # The objective whose heads a control reads.
MEMORIES = ("window", "h2o")


def settings(control: str, **changes: Any) -> dict[str, Any]:
    """`config.generate` with one control."""
    return base.get_config().generate.to_dict() | {"control": control} | changes


def refusals(control: str, **changes: Any) -> list[str]:
    """What is said of a control together with other settings of `generate`, in a Transformer."""
    options, config = settings(control, **changes), base.get_config()
    config.objective = NEEDS.get(control, config.objective)
    parts = sockets.make([options], settings(control), every=True)
    program = SimpleNamespace(config=config)
    return [*drafting.problems(parts, options, program, rewinds=lambda: True)]


def _with(**changes: Any) -> Callable[[str], str]:
    return lambda control: " ".join(refusals(control, **changes))


def _memories(control: str) -> str:
    found = [" ".join(refusals(control, memory=name)) for name in MEMORIES]
    if len({bool(one) for one in found}) > 1:
        raise ValueError(f"{control!r} is refused with some of {MEMORIES}; give each a column of its own.")
    return found[0]


def _beside(control: str) -> str:
    parts = sockets.make([settings(control)], settings(control), every=True)
    mine = stream.plain(parts) and not any(part.whole for _, part in parts.control)
    return "" if mine else "its prompts are read apart from rounds"


def _diffusion(control: str) -> str:
    readers = knobs.KNOBS["generate.control"].of
    (reader,) = readers[0]
    return "no such objective reads it" if reader.but and "masked_diffusion" in reader.names else ""


COLUMNS: Mapping[str, Callable[[str], str]] = {
    "drafts in a chain": _with(drafter="lookup"),
    "a tree of drafts": _with(drafter="trie"),
    "memories that drop tokens": _memories,
    "a prompt's piece beside a round": _beside,
    "kept beginnings of prompts": lambda control: cached.refusal(settings(control)),
    "diffusion objectives": _diffusion,
}


def cells() -> dict[str, tuple[str, ...]]:
    """By control, a sentence for each of `COLUMNS`; "": the two go together."""
    named = sorted(name for name in CONTROLS if name not in SAMPLING)
    return {name: tuple(ask(name) for ask in COLUMNS.values()) for name in named}


def table() -> str:
    """The table; controls with equal cells are one line."""
    short = lambda says: f"no: {re.split('[;,] ', says)[0]}" if says else "yes"  # noqa: E731
    lines: dict[tuple[str, ...], list[str]] = {}
    for name, found in cells().items():
        lines.setdefault(tuple(short(one.removeprefix(f"generate.control={name!r} ")) for one in found), []).append(
            name
        )
    rows = [[", ".join(f"`{name}`" for name in names), *found] for found, names in lines.items()]
    shown = [["control", *COLUMNS], ["---"] * (1 + len(COLUMNS)), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in shown)


def page(text: str) -> str:
    """The page's text with its table as it is today."""
    before, _, rest = text.partition(MARK)
    return f"{before}{MARK}\n\n{table()}\n{rest[rest.index('<!-- end -->') :]}"


if __name__ == "__main__":
    files.write_file(PLACE, page(PLACE.read_text()).encode())
