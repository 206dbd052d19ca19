"""Check: what a change of one setting does along another: a table of cells, drawn, and cells set against each other.

The claim has `base`; `lines` and `points` ({name: {dotted key: value}}, a cell being one of each; the names of points
are numbers); `axis` (what the points are); `contrasts`, each with `statement`, `published`, `measure`, `better` and
`worse` (a line and a point each); and `seeds`. Measures: "loss" (held out, lower is better), "accuracy" and "exact" (of
a task's answers), "share" (FLOPs of a training step per second over this machine's measured matmul rate).
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.bench import timing
from experiments.claims import answers, arms
from experiments.claims.rows import Row, above, interval
from experiments.program import build, counting, global_batch, inputs, sharding
from experiments.sweep import trials

Cell = tuple[str, str]  # line, point
ROUNDS = 5
LABELS = {
    "loss": "held-out loss, nats",
    "accuracy": "accuracy",
    "exact": "exact answers",
    "share": "share of matmul rate",
}
FIGURE = "table"


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Row]:
    """Trains every cell with every seed, measures, draws a figure a measure; one row a contrast, paired by seed."""
    seeds = claim["seeds"]
    values = dict(zip(_names(claim), cells(claim).values(), strict=True))
    found = arms.train(claim["base"], cells(claim), seeds, workdir, jobs=jobs, quiet=quiet)
    arms.compare(found, workdir)
    runs = dict(zip(values, found.values(), strict=True))
    measures = dict.fromkeys(contrast["measure"] for contrast in claim["contrasts"])
    table = {measure: MEASURES[measure](claim["base"], values, runs) for measure in measures}
    states = {cell: _program(claim["base"], given, counting.state_bytes) for cell, given in values.items()}
    for measure, measured in table.items():
        _draw(claim, measure, measured, states, workdir)
    numbers = {
        "seeds": list(seeds),
        "state_bytes": _nested(states),
        "parameters": _nested({cell: rows[0]["parameters"] for cell, rows in runs.items()}),
        **{measure: _nested(measured) for measure, measured in table.items()},
    }
    scale, rows = arms.scale(found, seeds), []
    for contrast in claim["contrasts"]:  # The first one of a measure shows its whole table, the others their two cells.
        rows.append(_row(contrast, table, scale, numbers, whole=contrast["measure"] in measures))
        measures.pop(contrast["measure"], None)
    return rows


def cells(claim: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms: {"line, point": {dotted key: value}}."""
    lines, points = claim["lines"], claim["points"]
    return {", ".join((line, point)): {**lines[line], **points[point]} for line, point in _names(claim)}


def _names(claim: Mapping[str, Any]) -> list[Cell]:
    return [(line, point) for line in claim["lines"] for point in claim["points"]]


def _row(
    contrast: Mapping[str, Any], table: Mapping[str, Mapping[Cell, list]], scale: str, numbers: dict, *, whole: bool
) -> Row:
    measure, (better, worse) = contrast["measure"], (tuple(contrast[side]) for side in ("better", "worse"))
    a, b = (np.asarray(table[measure][cell]) for cell in (better, worse))
    mean, low, high = interval((b - a if measure == "loss" else a - b).tolist())
    shown = table[measure] if whole else (better, worse)
    values = "; ".join(f"{', '.join(cell)}: {np.mean(table[measure][cell]):.3f}" for cell in shown)
    return Row(
        statement=contrast["statement"],
        published=contrast["published"],
        measured=f"{LABELS[measure]} by cell: {values}. {', '.join(better)} ahead of {', '.join(worse)} by {mean:+.3f} "
        f"[{low:+.3f}, {high:+.3f}]",
        scale=scale,
        verdict=above(low, high),
        numbers=numbers | {"mean": mean, "low": low, "high": high},
    )


def _nested(values: Mapping[Cell, Any]) -> dict[str, dict[str, Any]]:
    """{line: {point: value}}, as JSON has it."""
    lines = dict.fromkeys(line for line, _ in values)
    return {line: {point: value for (other, point), value in values.items() if other == line} for line in lines}


def _program(base: Any, values: Mapping[str, Any], use: Any) -> Any:
    """`use(program)` of one cell."""
    (trial,) = trials.resolve(base, [dict(values)])
    corpus = inputs.load(trial.config)
    mesh = sharding.make_mesh(trial.config, jax.devices()[:1])
    return use(build(trial.config, vocab_size=corpus.tokenizer.vocab_size, mesh=mesh))


def _losses(base: Any, cells: Mapping[Cell, Any], runs: Mapping[Cell, list]) -> dict[Cell, list[float]]:
    return {cell: [row["loss"] for row in rows] for cell, rows in runs.items()}


def _answers(key: str, base: Any, cells: Mapping[Cell, Any], runs: Mapping[Cell, list]) -> dict[Cell, list[float]]:
    return {cell: [answers.score(row["workdir"])[key] for row in rows] for cell, rows in runs.items()}


def _shares(base: Any, cells: Mapping[Cell, Any], runs: Mapping[Cell, list]) -> dict[Cell, list[float]]:
    """Training steps of all cells take turns; a value a round."""
    made = {cell: _program(base, values, _step) for cell, values in cells.items()}
    rate = counting.matmul_rate(seconds=0.5)
    timed = timing.interleave({cell: step for cell, (step, _) in made.items()}, rounds=ROUNDS)
    return {cell: [made[cell][1] / seconds / rate for seconds in timed[cell].wall] for cell in cells}


def _step(program: Any) -> tuple[Any, float]:
    """A call that trains one step, and its FLOPs."""
    config = program.config
    batch = global_batch(next(iter(inputs.eval_batches(config, inputs.load(config)))), program)
    state, step = [program.init()], program.train_step()

    def call() -> Any:
        state[0], metrics = step(state[0], batch)
        return metrics

    tokens = config.eval.batch_size or config.data.batch_size // config.train.accumulation
    return call, counting.flops_per_token(program)["total"] * tokens * config.data.length


MEASURES = {
    "loss": _losses,
    "accuracy": functools.partial(_answers, "accuracy"),
    "exact": functools.partial(_answers, "exact"),
    "share": _shares,
}


def _draw(
    claim: Mapping, measure: str, values: Mapping[Cell, Sequence], states: Mapping[Cell, int], folder: Any
) -> None:
    """`table-MEASURE.svg` and `.png`: against the points, and against the bytes of state a sequence, a line a line."""
    from experiments.scaling import plots

    with plots.drawing(7.2, 2.8, 2) as (figure, (left, right)):
        for line, by_point in _nested(values).items():
            x, y = [float(point) for point in by_point], [np.mean(v) for v in by_point.values()]
            left.errorbar(x, y, [np.std(v, ddof=1) for v in by_point.values()], marker="o", ms=3, label=line)
            right.plot([states[line, point] for point in by_point], y, marker="o", ms=3)
        left.set(xlabel=claim["axis"], ylabel=LABELS[measure], xscale="log")
        left.set_xticks([float(point) for point in claim["points"]], list(claim["points"]))
        left.set_xticks([], minor=True)
        right.set(xlabel="bytes of state a sequence", ylabel=LABELS[measure], xscale="log")
        right.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g} kB")
        right.xaxis.set_minor_formatter(lambda x, _: f"{x / 1000:g} kB")
        left.legend(fontsize=6)
        plots.save(figure, folder / f"{FIGURE}-{measure}", ("svg", "png"))
