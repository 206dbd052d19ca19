"""The ledger: stored rows of claims, their pages, and the counts in docs/LEDGER.md between two markers.

docs/claims holds one small JSON file for each claim, as `experiments.claims.run` wrote it: committed evidence with the
command, the date and the machine. All tables are made of these files, pages also of the claims' own (`pages`).
"""

import pathlib
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from experiments import workdir as files
from experiments.claims import FILE, curve_plot, interval_plot, pages
from experiments.claims.evidence import VERDICTS
from experiments.gallery import page as gallery
from experiments.report import page
from experiments.report.markdown import inline
from experiments.report.markdown import row as markdown_row
from experiments.settings.errors import Refused
from experiments.workdir import disk

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- claims: written by --mode=ledger -->", "<!-- end of claims -->"
LEDGER, STORE, PAGE = "LEDGER.md", "claims", "ledger.html"
_HEADS = ("claim", "published", "measured here", "scale", "verdict")
_ROW = ("statement", "published", "measured", "scale", "verdict")


def store(workdirs: Sequence[pathlib.Path], docs: pathlib.Path = DOCS) -> None:
    """Copies claim.json of each workdir into the evidence. Refused where there is none, or it is damaged."""
    records = []
    for workdir in workdirs:
        record = files.read_json(workdir / FILE)
        if record is None:
            raise Refused(f"--runs={workdir} holds no {FILE}; give the --workdir of a --mode=claim that finished.")
        records.append(_checked(record, workdir / FILE))
    for record in records:
        path = docs / STORE / f"{pages.stem(record['claim'])}.json"
        files.write_json(path, _with_second(record, files.read_json(path) or {}, path))


def _with_second(record: dict[str, Any], stored: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """What is stored of a claim once `record` has come: a run of other seeds stands as "again" beside the claim's own
    run, as long as both have the same rows. Refused where there is no such run."""
    alike = [row["statement"] for row in stored.get("rows", ())] == [row["statement"] for row in record["rows"]]
    if "first_seed" not in record:
        return record | ({"again": stored["again"]} if alike and "again" in stored else {})
    if not alike:
        raise Refused(
            f"--runs: '{path}' holds no run of the same rows; store the claim's run without --first_seed first."
        )
    kept = ("mean", "low", "high", "seeds")
    rows = [
        {key: row[key] for key in ("statement", "measured", "scale", "verdict")}
        | {"numbers": {key: row["numbers"][key] for key in kept if key in row["numbers"]}}
        for row in record["rows"]
    ]
    return stored | {
        "again": {key: record[key] for key in ("first_seed", "command", "date", "machine")} | {"rows": rows}
    }


def write(docs: pathlib.Path = DOCS, page_folder: pathlib.Path | None = None) -> tuple[pathlib.Path, pathlib.Path]:
    """Rewrites the counts of LEDGER.md, the pages of claims, GALLERY.md and ledger.html; returns the paths of the first
    and the last.

    The markers of LEDGER.md are lines of their own; what stands before the first and behind the last is kept. HTML goes
    to `page_folder`, or else to `docs`.
    """
    paths = sorted((docs / STORE).glob("*.json"))
    records = [_checked(files.read_json(path), path) for path in paths]
    ledger = docs / LEDGER
    lines = ledger.read_text("utf-8").split("\n")
    begin, end = (lines.index(BEGIN), len(lines) - 1 - lines[::-1].index(END)) if {BEGIN, END} <= {*lines} else (0, 0)
    if begin >= end:
        raise Refused(f"{LEDGER} needs the lines {BEGIN!r} and {END!r} once each; put them where the table belongs.")
    text = "\n".join([*lines[: begin + 1], f"{markdown(records)}{END}", *lines[end + 1 :]])
    files.write_file(ledger, text.encode())
    written = written_pages(records)
    for name, text in written.items():
        files.write_file(docs / STORE / name, text.encode())
    for path in (docs / STORE).iterdir():  # of claims whose evidence is gone
        if path.suffix in (".md", ".svg") and path.name not in written:
            disk.remove(path)
    for record in records:
        out = (page_folder or docs) / STORE / f"{pages.stem(record['claim'])}.html"
        files.write_file(out, pages.html(record).encode())
    gallery.write(docs, docs / STORE)
    out = (page_folder or docs) / PAGE
    files.write_file(out, _page(records).encode())
    return ledger, out


def written_pages(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The Markdown pages and figures of docs/claims, text by name."""
    made = {pages.README: pages.readme(records)}
    for record in records:
        name = pages.stem(record["claim"])
        made[f"{name}.md"] = pages.markdown(record)
        if figure := interval_plot.draw(record["rows"]):
            made[f"{name}.svg"] = figure + "\n"
        if curves := curve_plot.draw(record["rows"]):
            made[f"{name}-curves.svg"] = curves + "\n"
    return made


def _checked(record: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """A record with every part that a row needs. Refused, naming the file, where one is missing."""
    if not isinstance(record, dict):
        raise Refused(f"'{path}' is not the record of a claim; run its claim again.")
    missing = [key for key in ("claim", "source", "command", "date", "machine") if not _is_text(record.get(key))]
    if not missing and not re.fullmatch(r"\w[\w.:-]*", record["claim"]):
        missing = ["claim"]
    rows = record.get("rows")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        missing, rows = [*missing, "rows"], []
    for row in rows:
        missing += [key for key in _ROW if not _is_text(row.get(key))]
        if row.get("verdict") not in VERDICTS:
            missing.append("verdict")
    second = record.get("again", {}).get("rows", rows)
    if [row.get("statement") for row in second] != [row.get("statement") for row in rows]:
        missing.append("again")
    if missing:
        raise Refused(f"'{path}' has no usable {missing[0]!r}; run its claim again.")
    return record


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """What LEDGER.md says of the claims: how many rows have each verdict, by family, and where they are."""
    if not records:
        return "\nNo claim has been run yet.\n\n"
    heads, *rows = _counted(records)
    lines = ["", markdown_row(map(inline, heads)), "|---" * len(heads) + "|"]
    lines += [markdown_row(map(inline, row)) for row in rows]
    said = f"Every row, by family: [claims/{pages.README}](claims/{pages.README})."
    return "\n".join([*lines, "", *textwrap.wrap(" ".join([said, pages.again(records)]).strip(), 120), "", ""])


def _counted(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """How many rows have each verdict: the heads, a row a family, and the sums."""
    total = pages.counts(records)
    made = [["family", "rows", *total]]
    for family, some in (pages.by_family(records) | {"all": records}).items():
        found = pages.counts(some)
        made.append([family, str(sum(found.values())), *(str(found.get(verdict, 0)) for verdict in total)])
    return made


def _page(records: Sequence[dict[str, Any]]) -> str:
    """The ledger as one page that needs nothing else: how many rows have each verdict, and all rows by family."""
    count = sum(len(record["rows"]) for record in records)
    title = f"{count} claim{'s' * (count != 1)}, re-tested"
    body = [f'<header><p class="kicker">Ledger</p><h1>{title}</h1></header>']
    if records:
        heads, *rows = [[page.escape(cell) for cell in row] for row in _counted(records)]
        numbers = page.table(heads, rows, numeric=range(1, len(heads)))
        body.append(page.section("verdicts", "Verdicts", numbers))
    else:
        body.append(page.note("No claim has been run yet."))
    for number, (family, some) in enumerate(pages.by_family(records).items()):
        body.append(page.section(f"family-{number}", family.capitalize(), _rows(some)))
    commands = "".join(
        f"<p>{page.escape(record['date'])}, {page.escape(record['machine'])}</p>"
        f"<pre>{page.escape(record['command'])}</pre>"
        for record in records
    )
    return page.document("Ledger of claims", [*body, page.section("commands", "Commands", commands)])


def _rows(records: Sequence[dict[str, Any]]) -> str:
    """All rows of the records as a table whose statements lead to the pages of their claims."""
    rows = [
        [f'<a href="{STORE}/{page.escape(pages.stem(record["claim"]))}.html">{page.escape(row["statement"])}</a> '
         f"({page.escape(record['source'])})"]
        + [page.escape(row[key]) for key in _ROW[1:]]
        for record in records for row in record["rows"]
    ]  # fmt: skip
    return page.table([head.capitalize() for head in _HEADS], rows, kind="prose")
