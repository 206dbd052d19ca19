"""Everything at once: from runs to fits, intervals, frontier, held-out error and figures, as plain JSON and text."""

import pathlib
from typing import Any

import numpy as np

from experiments import workdir as files
from experiments.scaling import page, plots
from experiments.scaling.fit import HUBER, Fit, extrapolate, fit
from experiments.scaling.identify import identify
from experiments.scaling.io import Runs
from experiments.scaling.isoflop import isoflop
from experiments.scaling.laws import compute_optimal


def study(
    runs: Runs,
    *,
    laws: tuple[str, ...] = ("chinchilla", "overtraining"),
    bootstrap: int = 400,
    share: float = 0.75,
    delta: float = HUBER,
    groups: Any = None,
    folder: str | pathlib.Path = "",
    formats: tuple[str, ...] = plots.FORMATS,
    seed: int = 0,
) -> dict[str, Any]:
    """Fits `laws` to `runs`, each also on the smaller `share` of compute to predict the rest.

    Args:
      laws, bootstrap, delta, groups, seed: as for `fit`.
      share: of the runs, those of least compute, for the held-out error.
      folder: where figures (in each of `formats`), `scaling.json` and the page `study.html` go; "" writes nothing.

    Returns: plain JSON: `runs`, `left_out`, `laws` (per law `values`, `intervals` at 95%, `residual`,
      `held_out_median`, `held_out_largest`, `held_out_runs`, and `identified`, an `identify.Identified`), and where
      they can be had `frontier` (compute decades, N* and D* with intervals) and `isoflop`.
    """
    columns = runs.columns
    flops = columns["flops"]
    record: dict[str, Any] = {"runs": len(runs), "left_out": list(runs.left_out), "laws": {}}
    figures = {}
    for name in laws:
        whole = fit(name, columns, delta=delta, bootstrap=bootstrap, groups=groups, seed=seed)
        ahead = extrapolate(name, columns, share=share, delta=delta, groups=groups)
        record["laws"][name] = {
            "values": whole.values,
            "intervals": {k: list(v) for k, v in whole.intervals().items()},
            "residual": whole.residual,
            "starts_agreed": whole.starts_agreed,
            "held_out_median": ahead.median,
            "held_out_largest": ahead.largest,
            "held_out_runs": len(ahead.error),
            "identified": identify(whole, columns).to_dict(),
        }
        figures[f"{name}_held_out"] = plots.held_out, (ahead, columns)
        if name == "chinchilla":
            decades = np.geomspace(flops.min(), 100 * flops.max(), 9)
            record["frontier"] = _frontier(whole, decades)
            figures["loss"] = plots.loss_against_compute, (whole, columns)
            if np.isfinite(record["frontier"]["loss"]["value"]).all():  # An exponent that is not positive has none.
                figures["frontier"] = plots.frontier, (whole, decades)
    try:
        minima = isoflop(columns, bootstrap=bootstrap, seed=seed)
    except ValueError as error:  # most collections of runs are no isoFLOP grid
        record["isoflop"] = {"reason": str(error)}
    else:
        record["isoflop"] = {
            "exponents": minima.exponents,
            "intervals": {k: list(v) for k, v in minima.intervals.items()},
            "budgets": minima.budgets.tolist(),
            "parameters": minima.parameters.tolist(),
            "left_out": list(minima.left_out),
        }
        figures["isoflop"] = plots.isoflops, (minima, columns)
    if folder:
        files.write_json(pathlib.Path(folder) / "scaling.json", record)
        drawn = {name: draw(*arguments) for name, (draw, arguments) in figures.items()}
        for name, figure in drawn.items():
            plots.save(figure, pathlib.Path(folder) / name, formats)
        page.write(record, runs, drawn, pathlib.Path(folder))
    return record


def _frontier(fitted: Fit, flops: np.ndarray) -> dict[str, Any]:
    """N*, D* and loss over compute, and the exponents, each with its interval."""
    found: dict[str, Any] = {"flops": flops.tolist()}
    for key in ("parameters", "tokens", "loss", "a", "b"):
        value, low, high = fitted.derived(lambda values, key=key: compute_optimal(values, flops)[key])
        found[key] = {"value": value.tolist(), "low": np.asarray(low).tolist(), "high": np.asarray(high).tolist()}
    return found


def table(record: dict[str, Any]) -> str:
    """The record of `study` as a table of plain text: one line per parameter, then the held-out error."""
    lines = [f"{record['runs']} runs" + (f", {len(record['left_out'])} left out" if record["left_out"] else "")]
    for name, found in record["laws"].items():
        lines.append(f"\n{name}  (residual {100 * found['residual']:.2f}%)")
        for parameter, value in found["values"].items():
            low, high = found["intervals"].get(parameter, (float("nan"), float("nan")))
            mark = "" if found["identified"]["determined"][parameter] else "   not determined"
            lines.append(f"  {parameter:<8} {value:>12.5g}   95% [{low:.5g}, {high:.5g}]{mark}")
        lines.append(
            f"  held out {found['held_out_runs']} runs of most compute: median error "
            f"{100 * found['held_out_median']:.2f}%, largest {100 * found['held_out_largest']:.2f}%"
        )
        lines += [f"  {text}" for text in found["identified"]["remarks"]]
        if found["identified"]["next_run"]:
            lines.append(f"  {page.following(found['identified']['next_run'])}")
    if "exponents" in record.get("isoflop", {}):
        low, high = record["isoflop"]["intervals"].get("a", (float("nan"), float("nan")))
        lines.append(
            f"\nisoFLOP minima  N* ~ C^{record['isoflop']['exponents']['a']:.4f}   95% [{low:.4f}, {high:.4f}]"
        )
    return "\n".join(lines)
