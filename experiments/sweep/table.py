"""Results of a sweep: sweep.csv and sweep.json, a page that compares the runs, and the fit that the sweep asks for.

The tables hold deterministic numbers only (wall times stay in each trial's timing.jsonl), so a sweep that was killed
and started again ends with the same bytes as one left alone.
"""

import csv
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import workdir as files
from experiments.settings.errors import sentence
from experiments.sweep import process
from experiments.sweep.trials import Trial

CSV = "sweep.csv"
JSON = "sweep.json"
COMPARISON = "comparison.html"
SCALING = "scaling"
_COLUMNS = ("parameters", "non_embedding", "tokens", "flops", "loss", "eval/bits_per_byte", "eval/bits_per_byte_se")


def rows(trials: Sequence[Trial], workdir: pathlib.Path, failed: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row per trial, in their order.

    A row has `name`, `hash`, `status` (finished, failed, unfinished), `error` (of a failed trial) and `values`. A
    finished trial also has the columns that `experiments.scaling.read_csv` reads, and its evaluation.
    """
    return [_row(trial, workdir / trial.digest, failed.get(trial.digest, "")) for trial in trials]


def _row(trial: Trial, folder: pathlib.Path, error: str) -> dict[str, Any]:
    row = {"name": trial.name, "hash": trial.digest, "values": trial.values}
    if not process.finished(folder):
        return row | {"status": "failed" if error else "unfinished", "error": error}
    result = files.read_json(folder / files.RESULT) or {}
    counts = (files.read_json(folder / files.RUN) or {}).get("parameters", {})
    numbers = {key: value for key, value in result.items() if key not in ("seconds", "eval/loss")}
    known = {"non_embedding": counts.get("non_embedding"), "loss": result.get("eval/loss")}
    return row | {"status": "finished", **numbers, **{k: v for k, v in known.items() if v is not None}}


def write(found: Sequence[Mapping[str, Any]], workdir: pathlib.Path) -> None:
    """Writes sweep.json and sweep.csv, each whole."""
    files.write_json(workdir / JSON, {"trials": list(found)})
    keys = list(dict.fromkeys(key for row in found for key in row["values"]))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["name", "hash", "status", *keys, *_COLUMNS])
    for row in found:
        values = [row["values"].get(key, "") for key in keys]
        table.writerow([row["name"], row["hash"], row["status"], *values, *(row.get(key, "") for key in _COLUMNS)])
    files.write_file(workdir / CSV, text.getvalue().encode())


def compare(found: Sequence[Mapping[str, Any]], workdir: pathlib.Path) -> pathlib.Path | None:
    """Writes the page that compares the finished trials; None where there is none."""
    from experiments import report

    finished = [workdir / row["hash"] for row in found if row["status"] == "finished"]
    return report.compare(finished, workdir / COMPARISON) if finished else None


def study(settings: Mapping[str, Any], workdir: pathlib.Path) -> str:
    """Fits the laws that `settings` (of `experiments.scaling.study`) name to sweep.csv; figures go to the workdir.

    Returns the table, or the sentence that says why these runs cannot be fitted.
    """
    from experiments import scaling

    try:
        record = scaling.study(scaling.read_csv(workdir / CSV), folder=workdir / SCALING, **settings)
    except ValueError as error:
        if not sentence(error):
            raise
        return f"no fit: {error}"
    return f"{scaling.table(record)}\nfigures: {workdir / SCALING}\npage: {workdir / SCALING / scaling.PAGE}"


def text(found: Sequence[Mapping[str, Any]]) -> str:
    """The table as text, best first, failed ones last."""
    width = max(len(row["name"]) for row in found)
    key = "eval/bits_per_byte"
    ordered = sorted(found, key=lambda row: row.get(key, float("inf")))
    lines = [f"{'trial':<{width}}  {'bits per byte':>20}  {'parameters':>12}  {'tokens':>14}"]
    for row in ordered:
        if not {key, f"{key}_se", "eval/kind", "parameters", "tokens"} <= row.keys():  # Unfinished, or damaged.
            lines.append(f"{row['name']:<{width}}  {row['status']}")
            continue
        bits = f"{row['eval/kind']} {row[key]:.4f} ± {row[f'{key}_se']:.4f}"
        lines.append(f"{row['name']:<{width}}  {bits:>20}  {row['parameters']:>12,}  {row['tokens']:>14,}")
    return "\n".join(lines)


def best(found: Sequence[Mapping[str, Any]], workdir: pathlib.Path) -> str:
    """The trial with the fewest bits per byte, by what it sets, and its folder; "" where none was evaluated."""
    key = "eval/bits_per_byte"
    rows = [row for row in found if math.isfinite(row.get(key, math.nan))]
    if not rows:
        return ""
    row = min(rows, key=lambda row: row[key])
    values = " ".join(f"--config.{name}={value}" for name, value in row["values"].items()) or "the base config"
    return f"best: {values}\n  {row.get('eval/kind', '=')} {row[key]:.4f} bits per byte, in {workdir / row['hash']}"
