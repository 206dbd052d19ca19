"""The section of a report about experts: loads over experts and layers, and what else layers tell of themselves.

It reads `train/layers/NAME/LAYER` of metrics.jsonl and, where a trace was written, how experts follow each other.
"""

import math
import os
import pathlib
from typing import Any

import numpy as np

from experiments import workdir as files
from experiments.report import data, page, plots
from experiments.routing import traces
from experiments.settings.errors import Refused

PREFIX = "train/layers/"
DRAWN = {
    "max_violation": "MaxViolation: largest load / mean load - 1",
    "entropy": "Entropy of the router, nats",
    "costly": "Experts of a token that cost something",
    "dropped": "Share of the choices dropped",
}
MOST = 8  # lines of a chart
CELLS, EXPERTS = 1 << 20, 1024  # of a table of loads; whose every pair is counted
TEXTS, SHOWN, LAYERS = 8, 64, 3  # texts of an expert, experts of a layer, and layers whose texts are shown


def parts(run: data.Run, trace: pathlib.Path) -> list[str]:
    """HTML of the section, [] where the run has no experts; `trace`: where its trace would lie."""
    charts = []
    for name, label in DRAWN.items():
        layers = _layers(run, name)
        if curves := [_curve(run, name, layer, i) for i, layer in enumerate(_spread(layers))]:
            axis = plots.Axis(label, "plain", zero=True)
            svg = plots.chart(f"routing-{name}", curves, plots.horizontal("step"), axis, width=480, height=230)
            charts.append(f"<figure>{svg}</figure>" if svg else "")
    if not any(charts):
        return []
    load = loads(run)
    table = [_table(load)] if load.size else []
    return [*table, f'<div class="pair">{"".join(charts)}</div>', *_followed(trace), *_which(trace)]


def loads(run: data.Run) -> np.ndarray:
    """Shares of the choices at the last logged step, `[L, E]`; `[0, 0]` where the metrics do not hold them."""
    last = run.last(f"{PREFIX}load/00/00") or {}
    places = {tuple(int(i) for i in key.split("/")[-2:]): key for key in last if key.startswith(f"{PREFIX}load/")}
    size = np.max(list(places), axis=0) + 1 if places else np.zeros(2, int)
    if min(size) < 0 or math.prod(map(int, size)) > CELLS:  # A damaged line may ask for any number of places.
        raise ValueError(f"{files.METRICS} has loads of {size} layers and experts")
    found = np.full(size, np.nan)
    for at, key in places.items():
        found[at] = data.number(last, key)
    return found


def _layers(run: data.Run, name: str) -> list[str]:
    keys = {key for row in run.metrics for key in row if key.startswith(f"{PREFIX}{name}/")}
    return sorted(key.rpartition("/")[2] for key in keys)


def _spread(layers: list[str]) -> list[str]:
    """At most `MOST` of them, evenly over the depth, first and last included."""
    at = np.unique(np.linspace(0, len(layers) - 1, min(MOST, len(layers))).round().astype(int)) if layers else []
    return [layers[i] for i in at]


def _curve(run: data.Run, name: str, layer: str, colour: int) -> plots.Curve:
    return plots.Curve(*data.series(run, f"{PREFIX}{name}/{layer}"), label=f"layer {int(layer)}", colour=colour)


def _table(load: np.ndarray) -> str:
    """A table of percentages; the deeper a cell is shaded, the larger the share."""
    top = np.nanmax(load)
    rows = [[f"layer {i}", *(_cell(share, share / top if top else 0.0) for share in row)] for i, row in enumerate(load)]
    head = ["Share of the choices, %", *(f"{e}" for e in range(load.shape[1]))]
    return page.table(head, rows, numeric=range(1, load.shape[1] + 1), kind="narrow")


def _cell(share: float, depth: float) -> str:
    shade = f"background:color-mix(in srgb,var(--s0) {round(70 * depth)}%,transparent)"
    return f'<span style="{shade};padding:2px 5px">{100 * share:.1f}</span>'


def _followed(path: pathlib.Path) -> list[str]:
    """For each layer of a trace the pair of experts that follow each other most often for their number."""
    if not os.path.lexists(path):
        return []
    try:
        trace, experts = traces.read(str(path))
    except Refused as error:
        return [page.note(str(error))]
    if trace.shape[1] < 2 or experts > EXPERTS:
        return []
    found = traces.affinity(traces.transitions(trace, experts))
    rows: list[list[Any]] = []
    for layer, each in enumerate(found):
        a, b = np.unravel_index(np.argmax(each), each.shape)
        rows.append([f"layer {layer} to {layer + 1}", f"{a} to {b}", page.percent(float(each[a, b]))])
    text = page.note(f"From the trace of {len(trace):,} held-out tokens: the surest step from layer to layer.")
    return [text, page.table(["Layers", "Experts", "Probability"], rows, numeric=(2,), kind="narrow")]


def _which(path: pathlib.Path) -> list[str]:
    """For experts of the first layer, the last and one between them the tokens that tell most of them."""
    if not os.path.lexists(path):
        return []
    try:
        told, (trace, experts) = traces.read_texts(str(path)), traces.read(str(path))
    except Refused:
        return []  # `_followed` says so.
    if told is None or experts > EXPERTS:
        return []
    (tokens, texts), rows = told, []
    for layer in np.unique(np.linspace(0, trace.shape[1] - 1, min(LAYERS, trace.shape[1])).round().astype(int)):
        counted = traces.by_text(trace, tokens, len(texts), experts, int(layer))
        share = counted / np.maximum(counted.sum(1, keepdims=True), 1)
        for e, some in enumerate(traces.telling(counted, TEXTS)[:SHOWN]):
            cells = [f"<code>{page.escape(_visible(texts[m]))}</code> {page.percent(float(share[m, e]))}" for m in some]
            rows.append(
                [f"layer {layer}", f"{e}", page.percent(counted[:, e].sum() / max(counted.sum(), 1)), ", ".join(cells)]
            )
    heads = ["Layer", "Expert", "Load", "Tokens that tell most of it, and which share of their choices it has"]
    note = "Which tokens go where: those that an expert has more often than its load says, the most telling first."
    return [page.note(note), page.table(heads, rows, numeric=(1, 2), kind="prose")]


def _visible(text: str) -> str:
    """A token as it may be seen: blanks and ends of lines by their names."""
    return {" ": "space", "\n": "\\n", "\t": "\\t", "": "none"}.get(text, text)
