"""study.html: the runs of a scaling study, its curves, fits with intervals, and the next run, as one page."""

import base64
import io
import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments import workdir as files
from experiments.report import page
from experiments.scaling.io import Runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "study.html"
CAPTIONS = {
    "loss": "Loss against compute. Each line is the fit at one size, each point a run",
    "isoflop": "Loss against size at each budget, with the parabola through it and its lowest point",
    "frontier": "The sizes and tokens that the fit calls best at a budget, with 95% bands",
}


def write(record: Mapping[str, Any], runs: Runs, figures: Mapping[str, "Figure"], folder: pathlib.Path) -> pathlib.Path:
    """Writes the page of a `study` into `folder` and returns its path; it needs no other file."""
    body = [
        f'<header><p class="kicker">Scaling study</p><h1>{record["runs"]} runs</h1>{_tiles(record)}</header>',
        page.section("fit", "Fits", *[part for name in record["laws"] for part in _law(name, record["laws"][name])]),
        page.section("isoflop", "IsoFLOP minima", *_isoflop(record.get("isoflop", {}))),
        page.section("curves", "Curves", *[_figure(k + 1, *pair) for k, pair in enumerate(figures.items())]),
        page.section("runs", "Runs", _runs(runs), *[page.note(f"Left out: {text}") for text in record["left_out"]]),
    ]
    path = folder / NAME
    files.write_file(path, page.document("Scaling study", body).encode("utf-8"))
    return path


def _tiles(record: Mapping[str, Any]) -> str:
    tiles = []
    for name, law in record["laws"].items():
        tiles.append(page.tile(f"{name}: median error on {law['held_out_runs']} held-out runs", _percent(law)))
        known = sum(law["identified"]["determined"].values())
        tiles.append(page.tile(f"{name}: parameters determined", f"{known} of {len(law['values'])}"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _percent(law: Mapping[str, Any]) -> str:
    return page.percent(law["held_out_median"])


def _law(name: str, law: Mapping[str, Any]) -> list[str]:
    said, rows = law["identified"], []
    for parameter, value in law["values"].items():
        low, high = law["intervals"].get(parameter, (math.nan, math.nan))
        verdict = "determined" if said["determined"][parameter] else '<span class="changed">not determined</span>'
        rows.append([page.escape(parameter), f"{value:.4g}", f"{low:.4g} to {high:.4g}", verdict])
    held = (
        f"Residual {page.percent(law['residual'])}. Fitted to the runs of least compute it predicts the other "
        f"{law['held_out_runs']} with a median error of {_percent(law)}, "
        f"at most {page.percent(law['held_out_largest'])}."
    )
    spans = ", ".join(f"{key.replace('_', ' ')} {value:.1f}" for key, value in said["spans"].items())
    parts = [
        f"<h3>{page.escape(name)}</h3>",
        page.table(["Parameter", "Value", "95% interval", "By these runs"], rows, numeric=(1, 2), kind="narrow prose"),
        page.note(held),
        page.note(f"Decades that the runs cover: {spans}."),
        *(page.note(text, "warn") for text in said["remarks"]),
    ]
    return [*parts, page.note(following(said["next_run"]))] if said["next_run"] else parts


def following(run: Mapping[str, Any]) -> str:
    """The run that would narrow a fit most, in a sentence."""
    before, after = ("no bound" if run[key] is None else f"{run[key]:.3g}" for key in ("before", "after"))
    return (
        f"What would narrow it most: one run of {page.count(run['parameters'])} parameters on "
        f"{page.count(run['tokens'])} tokens ({run['flops']:.2g} FLOPs), after which the standard error of "
        f"{run['parameter']} would be {after} instead of {before} (of runs of up to four times the largest compute)."
    )


def _isoflop(found: Mapping[str, Any]) -> list[str]:
    if "exponents" not in found:
        return [page.note(f"None: {found.get('reason', 'not tried')}")]
    low, high = found["intervals"].get("a", (math.nan, math.nan))
    rows = [
        [f"{C:.3g}", page.count(N)] for C, N in zip(found["budgets"], found["parameters"], strict=True)
    ]  # fmt: skip
    return [
        page.note(f"N* grows as C^{found['exponents']['a']:.3f}, 95% interval {low:.3f} to {high:.3f}."),
        page.table(["Budget, FLOPs", "Parameters at the minimum"], rows, numeric=(1,), kind="narrow"),
        *(page.note(text) for text in found["left_out"]),
    ]


def _figure(number: int, name: str, figure: "Figure") -> str:
    """A figure as an image within the page, so that its ids cannot clash with those of another figure."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawn = base64.b64encode(buffer.getvalue().encode()).decode()
    title = CAPTIONS.get(name, f"{name.removesuffix('_held_out')}: predicted against measured, held-out runs")
    # White paper under it in a dark scheme too: its ink is dark.
    source = f"data:image/svg+xml;base64,{drawn}"
    image = f'<img alt="{page.escape(title)}" src="{source}" style="max-width:100%;background:#fff">'
    return f"<figure>{image}<figcaption><b>Figure {number}.</b> {page.escape(title)}.</figcaption></figure>"


def _runs(runs: Runs) -> str:
    columns = [runs.columns[key] for key in ("parameters", "tokens", "flops", "loss")]
    rows = [
        [page.escape(name), page.count(N), page.count(D), f"{C:.3g}", f"{loss:.4g}"]
        for name, N, D, C, loss in zip(runs.names, *columns, strict=True)
    ]
    return page.table(["Run", "Parameters", "Tokens", "FLOPs", "Loss"], rows, numeric=(1, 2, 3, 4))
