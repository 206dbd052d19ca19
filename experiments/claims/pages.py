"""The ledger as pages: docs/claims/README.md with one line a row, by family, and a page for each claim.

A page is made of the stored evidence and of the claim's file in configs/claims: its docstring says why and what to
expect, its `family` where it stands.
"""

import collections
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.claims import curve_plot, interval_plot, method
from experiments.claims.evidence import CONTROL_FAILED, COST, DOES_NOT, EQUAL, HOLDS, UNDECIDED, stem
from experiments.report import page
from experiments.report.markdown import code, inline
from experiments.report.markdown import row as markdown_row

README = "README.md"
OTHER = "other"
_HEAD = """# Claims of papers, re-tested

One line a row, from the evidence beside this page; each claim has a page with its arms, figure, command, seeds and
caveats. "Once more" is the verdict of a second run with other seeds. How a verdict comes about:
[evidence.md](../evidence.md). `python main.py --mode=ledger` writes these pages.
"""
_CAVEATS = {
    COST: "The budget did not decide: the row says what a decision would cost.",
    CONTROL_FAILED: "The control did not reach its level: this run tests nothing of the statement.",
    EQUAL: "Any difference is smaller than the smallest effect of interest.",
    UNDECIDED: "The 95% interval over seeds holds both answers.",
}


@functools.cache  # Making a claim makes its configs, and every page asks.
def stated(name: str) -> tuple[str, Mapping[str, Any]]:
    """(docstring, claim) of the file in configs/claims; ("", {}) where the house has none of that name."""
    module = f"configs.claims.{name.partition(':')[0].removesuffix('.py')}"
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        return "", {}
    made = importlib.import_module(module)
    return inspect.getdoc(made) or "", made.get_claim()


def by_family(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The records by the family that their claims name, in the order of the names."""
    found: dict[str, list] = {}
    for record in records:
        found.setdefault(stated(record["claim"])[1].get("family", OTHER), []).append(record)
    return dict(sorted(found.items()))


def number(row: Mapping[str, Any]) -> str:
    """What was found, short: a mean with its interval, a ratio, or the largest error."""
    numbers = row.get("numbers", {})
    for key in ("ratio", None):
        ends = numbers.get(key) if key else [numbers.get(name) for name in ("mean", "low", "high")]
        if isinstance(ends, Sequence) and len(ends) == 3 and all(isinstance(end, int | float) for end in ends):
            return "{:.3g} [{:.3g}, {:.3g}]".format(*ends)
    for key, text in (("error", "largest error"), ("total_variation", "total variation")):
        if isinstance(numbers.get(key), int | float):
            return f"{text} {numbers[key]:.0e}"
    return "see its page"


def readme(records: Sequence[Mapping[str, Any]]) -> str:
    """The table of all rows by family, as Markdown."""
    parts = [_HEAD]
    for family, some in by_family(records).items():
        parts += [f"## {family}\n", markdown_row(["claim", "verdict", "once more", "found", "page"]), "|---" * 5 + "|"]
        for record in some:
            name = stem(record["claim"])
            second = [row["verdict"] for row in record.get("again", {}).get("rows", [])] or [""] * len(record["rows"])
            for row, verdict in zip(record["rows"], second, strict=True):
                cells = map(inline, (row["statement"], row["verdict"], verdict, number(row)))
                parts.append(markdown_row([*cells, f"[{name}]({name}.md)"]))
        parts.append("")
    return "\n".join(parts)


def counts(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many rows have each verdict, the most frequent first."""
    found: dict[str, int] = {}
    for record in records:
        for row in record["rows"]:
            found[row["verdict"]] = found.get(row["verdict"], 0) + 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def again(records: Sequence[Mapping[str, Any]]) -> str:
    """What became of the rows that were run once more with other seeds, in a sentence; "" where none was."""
    both = [
        (first["verdict"], second["verdict"])
        for record in records if "again" in record
        for first, second in zip(record["rows"], record["again"]["rows"], strict=True)
    ]  # fmt: skip
    if not both:
        return ""
    held = collections.Counter(second for first, second in both if first == HOLDS)
    said = ", ".join(f"{count} {verdict}" for verdict, count in held.most_common())
    turned = sum(second == HOLDS for first, second in both if first == DOES_NOT)
    refuted, count = sum(first == DOES_NOT for first, _ in both), sum("again" in record for record in records)
    return (
        f"Run once more with other seeds: {len(both)} rows of {count} claims. Of "
        f"{held.total()} that hold the second run says: {said or 'nothing'}; of {refuted} that do not, {turned} hold."
    )


def caveats(record: Mapping[str, Any], claim: Mapping[str, Any]) -> list[str]:
    """What a reader should not take the rows for."""
    said = [_CAVEATS[verdict] for verdict in _CAVEATS if any(row["verdict"] == verdict for row in record["rows"])]
    judged = [row for row in record["rows"] if "seeds" in row.get("numbers", {})]
    for seeds in sorted({len(row["numbers"]["seeds"]) for row in judged}):
        said.append(f"{seeds} seeds on a small scale: it may be otherwise at the scale of the paper.")
    if judged and not any("control" in row["numbers"] for row in judged):
        said.append("No positive control and no smallest effect of interest were stated when this was run.")
    if record.get("judged_anew"):
        said.append("Control and effect were stated after these runs: the stored numbers were judged anew.")
    if "tuned" not in record and len(claim.get("arms", ())) > 1 and judged:
        said.append("All arms have the rates of the config; they were not tuned for each arm.")
    return said


def _costs(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    hours = [row["numbers"]["hours"] for row in record["rows"] if "hours" in row.get("numbers", {})]
    taken = f"{max(hours):.2g} hours of runs" if hours else "not recorded; see the text of the claim"
    seeds = sorted({len(row["numbers"]["seeds"]) for row in record["rows"] if "seeds" in row.get("numbers", {})})
    return [
        ("run on", _ran(record)),
        ("seeds", ", ".join(map(str, seeds)) or "none: nothing is drawn by seed"),
        ("cost", taken),
    ]


def _ran(record: Mapping[str, Any]) -> str:
    return f"{record['date']}, {record['machine']}"


def _arms(claim: Mapping[str, Any], record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, what it sets) of each arm, size, line, point or setting of the claim."""
    made = []
    for group in ("arms", "sizes", "lines", "points", "settings"):
        some = method.listed(claim) if "borrow" in claim and group == "arms" else claim.get(group)
        if isinstance(some, Mapping):
            for name, values in some.items():
                chosen = record.get("tuned", {}).get(name, {}).get("chosen", {})
                flat = {**values, **chosen} if isinstance(values, dict) else {}
                said = ", ".join(f"{key} = {_short(value)}" for key, value in flat.items())
                made.append((f"{name}", said or ("its own config" if not isinstance(values, dict) else "the base")))
    return made


def _short(value: Any) -> str:
    text = "by a rule" if callable(value) else repr(value).replace("'", "")
    return text if len(text) <= 120 else f"{text[:117]}..."


def markdown(record: Mapping[str, Any]) -> str:
    """The page of one claim as Markdown; its figure stands beside it as NAME.svg."""
    doc, claim = stated(record["claim"])
    name, title = stem(record["claim"]), claim.get("statement") or record["rows"][0]["statement"]
    lines = [
        f"# {inline(title)}",
        "",
        f"Source: {inline(record['source'])}. [All claims](README.md)",
        "",
        "## What",
        "",
    ]
    for row in record["rows"]:
        lines += [
            f"- **{inline(row['verdict'])}**: {inline(row['statement'])}",
            f"  - published: {inline(row['published'])}",
            f"  - measured here: {inline(row['measured'])}",
            f"  - scale: {inline(row['scale'])}",
        ]
    if interval_plot.draw(record["rows"]):
        lines += ["", "## Figure", "", f"![Differences with their intervals, a row each]({name}.svg)"]
    if curve_plot.draw(record["rows"]):
        lines += ["", f"![Held-out bits per byte as training goes on, a line an arm]({name}-curves.svg)"]
    if doc:
        lines += ["", "## Why, and what to expect", "", *_paragraphs(doc)]
    if arms := _arms(claim, record):
        lines += ["", "## Arms", "", markdown_row(["arm", "what it sets"]), "|---|---|"]
        lines += [markdown_row([inline(arm), inline(said)]) for arm, said in arms]
    lines += ["", "## Cost and seeds", ""]
    lines += [f"- {key}: {inline(value)}" for key, value in _costs(record)]
    lines += [f"- command: {code(record['command'])}", ""]
    if second := record.get("again"):
        lines += ["## Once more, with other seeds", ""]
        for row in second["rows"]:
            lines += [f"- **{inline(row['verdict'])}**: {inline(row['statement'])}", f"  - {inline(row['measured'])}"]
        lines += [f"- run on: {inline(_ran(second))}", f"- command: {code(second['command'])}", ""]
    lines += ["## Caveats", ""]
    lines += [f"- {inline(text)}" for text in caveats(record, claim)] or ["- None beside its scale."]
    return "\n".join([*lines, ""])


def _texts(doc: str) -> list[str]:
    """The paragraphs of a claim's docstring without its command, each on one line."""
    return [" ".join(part.split()) for part in doc.split("\n\n") if "python main.py" not in part]


def _paragraphs(doc: str) -> list[str]:
    """The docstring of a claim's file as lines of Markdown."""
    return [line for text in _texts(doc) for line in (inline(text), "")][:-1]


def _marked(text: str) -> str:
    """A paragraph as HTML, with what stands between backticks as code."""
    parts = map(page.escape, text.split("`"))
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))


def html(record: Mapping[str, Any]) -> str:
    """The page of one claim as HTML that needs nothing else."""
    doc, claim = stated(record["claim"])
    title = claim.get("statement") or record["rows"][0]["statement"]
    heads = ["Statement", "Published", "Measured here", "Scale", "Verdict"]
    keys = ("statement", "published", "measured", "scale", "verdict")
    rows = [[page.escape(row[key]) for key in keys] for row in record["rows"]]
    figure = interval_plot.draw(record["rows"])
    body = [
        f'<header><p class="kicker">{page.escape(record["source"])}</p><h1>{page.escape(title)}</h1></header>',
        page.section("what", "What", page.table(heads, rows, kind="prose")),
    ]
    if figure:
        caption = "<figcaption>Differences with their intervals, a row each, every row to its own scale.</figcaption>"
        body.append(page.section("figure", "Figure", f"<figure>{figure}{caption}</figure>"))
    if curves := curve_plot.draw(record["rows"]):
        caption = "<figcaption>Means over seeds; bands reach from the lowest to the highest seed.</figcaption>"
        body.append(page.section("curves", "Curves", f"<figure>{curves}{caption}</figure>"))
    if doc:
        texts = (f"<p>{_marked(text)}</p>" for text in _texts(doc))
        body.append(page.section("why", "Why, and what to expect", *texts))
    if arms := _arms(claim, record):
        table = page.table(["Arm", "What it sets"], [[page.escape(a), page.escape(b)] for a, b in arms], kind="prose")
        body.append(page.section("arms", "Arms", table))
    costs = [[page.escape(key), page.escape(value)] for key, value in _costs(record)]
    command = f"<pre>{page.escape(record['command'])}</pre>"
    body.append(page.section("cost", "Cost and seeds", page.table(["", ""], costs, kind="narrow prose"), command))
    if second := record.get("again"):
        some = [[page.escape(row[key]) for key in ("statement", "measured", "verdict")] for row in second["rows"]]
        found = page.table(["Statement", "Measured", "Verdict"], some, kind="prose")
        ran = f"<p>{page.escape(_ran(second))}</p><pre>{page.escape(second['command'])}</pre>"
        body.append(page.section("again", "Once more, with other seeds", found, ran))
    said = caveats(record, claim) or ["None beside its scale."]
    items = "".join(f"<li>{page.escape(text)}</li>" for text in said)
    body.append(page.section("caveats", "Caveats", f"<ul>{items}</ul>"))
    return page.document(title, body)
