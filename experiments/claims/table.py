"""Check: what a change of one setting does along another: a table of cells, drawn, and cells set against each other.

The claim has `base`; `lines` and `points` ({name: {dotted key: value}}, a cell being one of each; the names of points
are numbers); `axis` (what the points are); `contrasts`, each with `statement`, `published`, `measure` (a name in
`experiments.claims.measures.MEASURES`), `better` and `worse` (a line and a point each); and `seeds`.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.claims import arms, method
from experiments.claims.evidence import Evidence
from experiments.claims.measures import MEASURES, measure, program
from experiments.claims.measures import values as measured
from experiments.program import counting

Cell = tuple[str, str]  # line, point
FIGURE = "table"


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains every cell with every seed, measures, draws a figure a measure; one row a contrast, paired by seed."""
    seeds = claim["seeds"]
    values = dict(zip(_names(claim), cells(claim).values(), strict=True))
    found = arms.train(claim["base"], cells(claim), seeds, workdir, jobs=jobs, quiet=quiet)
    arms.compare(found, workdir)
    runs = dict(zip(values, found.values(), strict=True))
    measures = {contrast["measure"]: measure(contrast["measure"], "measure") for contrast in claim["contrasts"]}
    table = {name: measured(name, claim["base"], values, runs) for name in measures}
    states = {cell: program(claim["base"], given, counting.state_bytes) for cell, given in values.items()}
    for name, by_cell in table.items():
        _draw(claim, name, by_cell, states, workdir)
    numbers = {
        "seeds": list(seeds),
        "state_bytes": _nested(states),
        "parameters": _nested({cell: rows[0]["parameters"] for cell, rows in runs.items()}),
        **{name: _nested(by_cell) for name, by_cell in table.items()},
    }
    scale, rows = arms.scale(found, seeds), []
    for contrast in claim["contrasts"]:  # The first one of a measure shows its whole table, the others their two cells.
        rows.append(_row(claim, contrast, table, scale, numbers, whole=contrast["measure"] in measures))
        measures.pop(contrast["measure"], None)
    return rows


def cells(claim: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms: {"line, point": {dotted key: value}}."""
    lines, points = claim["lines"], claim["points"]
    return {", ".join((line, point)): {**lines[line], **points[point]} for line, point in _names(claim)}


def _names(claim: Mapping[str, Any]) -> list[Cell]:
    return [(line, point) for line in claim["lines"] for point in claim["points"]]


def _row(
    claim: Mapping[str, Any], contrast: Mapping[str, Any], table: Mapping[str, Mapping[Cell, list]], scale: str,
    numbers: dict, *, whole: bool,
) -> Evidence:  # fmt: skip
    name, (better, worse) = contrast["measure"], (tuple(contrast[side]) for side in ("better", "worse"))
    a, b = (np.asarray(table[name][cell]) for cell in (better, worse))
    judged = method.judge(claim, (MEASURES[name].sign * (a - b)).tolist(), pair=contrast)
    shown = table[name] if whole else (better, worse)
    values = "; ".join(f"{', '.join(cell)}: {np.mean(table[name][cell]):.3f}" for cell in shown)
    ahead = f"{', '.join(better)} ahead of {', '.join(worse)} by {judged.text(3)}"
    return judged.row(contrast, f"{MEASURES[name].label} by cell: {values}. {ahead}", scale, numbers)


def _nested(values: Mapping[Cell, Any]) -> dict[str, dict[str, Any]]:
    """{line: {point: value}}, as JSON has it."""
    lines = dict.fromkeys(line for line, _ in values)
    return {line: {point: value for (other, point), value in values.items() if other == line} for line in lines}


def _draw(claim: Mapping, name: str, values: Mapping[Cell, Sequence], states: Mapping[Cell, int], folder: Any) -> None:
    """`table-MEASURE.svg` and `.png`: against the points, and against the bytes of state a sequence, a line a line."""
    from experiments.scaling import plots

    with plots.drawing(7.2, 2.8, 2) as (figure, (left, right)):
        for line, by_point in _nested(values).items():
            x, y = [float(point) for point in by_point], [np.mean(v) for v in by_point.values()]
            left.errorbar(x, y, [np.std(v, ddof=1) for v in by_point.values()], marker="o", ms=3, label=line)
            right.plot([states[line, point] for point in by_point], y, marker="o", ms=3)
        left.set(xlabel=claim["axis"], ylabel=MEASURES[name].label, xscale="log")
        left.set_xticks([float(point) for point in claim["points"]], list(claim["points"]))
        left.set_xticks([], minor=True)
        right.set(xlabel="bytes of state a sequence", ylabel=MEASURES[name].label, xscale="log")
        right.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g} kB")
        right.xaxis.set_minor_formatter(lambda x, _: f"{x / 1000:g} kB")
        left.legend(fontsize=6)
        plots.save(figure, folder / f"{FIGURE}-{name}", ("svg", "png"))
