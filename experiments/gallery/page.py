"""docs/GALLERY.md: what `--mode=list` prints, as a page."""

import itertools
import pathlib

from experiments import gallery
from experiments import workdir as files
from experiments.gallery import Entry
from experiments.report.markdown import code, inline, row

NAME = "GALLERY.md"
_HEAD = """# Gallery

What this house can run: every preset, sweep and claim, with its source and what was found here. `python main.py
--mode=list` prints the same, `--filter=WORDS` what the words find, and the settings beside it. `--mode=ledger` writes
this page from the records in [configs](../configs) and the evidence in [docs/claims](claims/README.md), where each
claim has a page.
"""
_PARTS = (("", "Models"), ("sweeps", "Sweeps"), ("claims", "Claims"))


def markdown(evidence: pathlib.Path = gallery.EVIDENCE) -> str:
    """The whole page, with the verdicts of the claims in `evidence`."""
    entries, parts = gallery.entries(evidence), [_HEAD]
    for folder, title in _PARTS:
        some = [entry for entry in entries if folder == entry.family.rpartition("/")[0]]
        parts.append(f"## {title}\n")
        parts += [_claims(some)] if folder == "claims" else map(_family, _families(some))
    return "\n".join(parts)


def write(docs: pathlib.Path, evidence: pathlib.Path = gallery.EVIDENCE) -> pathlib.Path:
    """Writes the page into `docs` and returns its path."""
    files.write_file(docs / NAME, markdown(evidence).encode())
    return docs / NAME


def _families(entries: list[Entry]) -> list[list[Entry]]:
    return [list(some) for _, some in itertools.groupby(entries, key=lambda entry: entry.family)]


def _family(entries: list[Entry]) -> str:
    """A heading, the command of the first preset, and a line for each."""
    first = entries[0]
    link = f"[configs/{first.family}.py](../configs/{first.family}.py)"
    run = [f"{first.needs}  # a run that the next one reads"] * bool(first.needs) + [first.command]
    lines = [f"### {first.family}", "", f"{inline(first.title)} ({link}).", "", "```", *run, "```", ""]
    lines += [row(["preset", "what it is", "source", "evidence: verdicts"]), "|---|---|---|---|"]
    for entry in entries:
        name = code(entry.preset) if entry.preset else "no name"
        lines.append(row([name, inline(entry.says), inline(entry.source), inline(gallery.judged(entry))]))
    return "\n".join([*lines, ""])


def _claims(entries: list[Entry]) -> str:
    command = entries[0].command
    lines = ["```", command, "```", "", row(["claim", "what it states", "source", "verdicts"]), "|---|---|---|---|"]
    for entry in entries:
        name = entry.family.rpartition("/")[2]
        found = gallery.judged(entry).partition(": ")[2]
        lines.append(row([f"[{name}](../configs/claims/{name}.py)", inline(entry.says), inline(entry.source), found]))
    return "\n".join([*lines, ""])
