"""What stands beside the curves of a report: measures by their names, other texts, and the numbers to take away."""

import base64
import csv
import io
import json
from collections.abc import Callable

from experiments import workdir as files
from experiments.report import data, page

# What somebody else's file, or a damaged one, may make of numbers and texts that are expected.
_DAMAGED = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
_MAX_DOWNLOAD = 1 << 18  # bytes that a page carries so
_NAMES = {
    "train/nll": "Negative log-likelihood, nats per token",
    "eval/tokens": "Held-out tokens",
    "train/accuracy": "Share of tokens predicted",
}


def named(key: str) -> str:
    """A logged measure in words: "train/report/load" is "training: load"."""
    split, _, name = key.partition("/")
    where = {"train": "training: ", "eval": "held out: "}.get(split)
    if key in _NAMES or where is None:
        return _NAMES.get(key, key)
    return where + name.removeprefix("report/").replace("_", " ").replace("/", ", ")


def readable(name: str, made: Callable[[], list[str]]) -> list[str]:
    """What `made` gives of what an evaluation left under `name`; a note in its place where that is damaged."""
    try:
        return made()
    except files.WorkdirError as error:
        return [page.note(str(error))]
    except _DAMAGED:
        return [page.note(f"{name} holds what no evaluation wrote; move it away and evaluate again.")]


def texts(run: data.Run) -> list[str]:
    """The table of the last evaluation of other texts, where there was one."""
    found = files.read_json(run.path / files.TEXTS) or {}
    rows = [
        [
            page.escape(text["name"]),
            page.bits({data.BITS: text["bits_per_byte"], f"{data.BITS}_se": text["se"], "eval/kind": text["kind"]}),
            f"{text['documents']:,}" + (f" of {text['of']:,}" if text["documents"] < text["of"] else ""),
            f"{text['bytes']:,}",
            page.escape(text["path"]),
        ]
        for text in found.get("texts", [])
    ]
    said = f"Step {found['step']:,}; each document by itself, from its beginning." if rows else ""
    head = ["Text", "Bits per byte", "Documents", "Bytes", "Path"]
    return [page.table(head, rows, numeric=(1, 2, 3)), page.note(said)] if rows else []


def downloads(*runs: data.Run) -> str:
    """The logged numbers as files that the page carries, where they are not too many; of several runs with their names
    in a column `run`."""
    several = len(runs) > 1
    rows = [({"run": run.name} if several else {}) | row for run in runs for row in run.metrics]
    if not rows:
        return ""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    made = {"csv": text.getvalue().encode(), "json": json.dumps(rows).encode()}
    if sum(map(len, made.values())) > _MAX_DOWNLOAD:
        return page.note(f"The logged numbers are in {files.METRICS} of {'each run' if several else 'the run'}.")
    links = [
        f'<a download="{"comparison" if several else page.escape(runs[0].name)}.{kind}" href="data:text/{kind};base64,'
        f'{base64.b64encode(content).decode()}">{kind.upper()}</a>'
        for kind, content in made.items()
    ]
    return f'<p class="note">The logged numbers: {", ".join(links)}.</p>'
