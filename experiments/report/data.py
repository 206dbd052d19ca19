"""The data of a report: a workdir read into memory, its series, and their statistics."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import workdir as files
from experiments.settings import history

# The horizontal axes: key, name, unit, logarithmic. Seconds come from timing.jsonl, the others from metrics.jsonl.
AXES = {
    "step": ("Steps", "training step", False),
    "tokens": ("Tokens", "training tokens", True),
    "flops": ("FLOPs", "training FLOPs", True),
    "seconds": ("Wall time", "training wall time", False),
}
BITS = "eval/bits_per_byte"


@dataclasses.dataclass(frozen=True)
class Run:
    """One workdir as found on disk. Every part may be empty; `notes` names the files that could not be read."""

    path: pathlib.Path
    record: dict[str, Any]
    run: dict[str, Any]
    result: dict[str, Any]
    metrics: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    notes: list[str]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def config(self) -> dict[str, Any]:
        return self._settings("config")

    @property
    def base(self) -> dict[str, Any]:
        """The defaults that the config is compared with, {} where the run kept none."""
        return self._settings("base")

    def _settings(self, name: str) -> dict[str, Any]:
        saved = mapping(self.record, name)
        return flatten(history.filled(saved)) if saved else {}

    @property
    def starts(self) -> list[Any]:
        starts = self.run.get("starts")
        return starts if isinstance(starts, list) else []

    @property
    def last_step(self) -> int | None:
        return max((row["step"] for row in self.metrics), default=None)

    @property
    def finished(self) -> bool:
        return bool(self.result) and number(self.result, "step") >= (self.last_step or 0)

    def last(self, key: str) -> dict[str, Any] | None:
        """The last metrics line that has `key`."""
        return next((row for row in reversed(self.metrics) if key in row), None)


def load(workdir: str | os.PathLike) -> Run:
    """Reads a workdir at any time of its life. Raises ValueError, one sentence, if it is no workdir at all."""
    path = pathlib.Path(workdir)
    names = (files.CONFIG, files.RUN, files.RESULT, files.METRICS, files.TIMING, files.SAMPLES)
    if not any((path / name).is_file() for name in names):
        raise ValueError(
            f"workdir={os.fspath(workdir)!r} holds no {files.CONFIG} or {files.METRICS}; give the --workdir of a run."
        )
    notes = []

    def objects(name: str) -> dict[str, Any]:
        try:
            return files.read_json(path / name) or {}
        except ValueError as error:
            notes.append(str(error))
            return {}

    def lines(name: str, numbers: bool = True) -> list[dict[str, Any]]:
        rows, damaged = files.read_lines(path / name, numbers=numbers)
        if damaged:
            shown = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
            notes.append(f"{name}: {len(damaged)} unreadable line(s) left out (line {shown}).")
        return rows

    record, run, result = objects(files.CONFIG), objects(files.RUN), objects(files.RESULT)
    return Run(
        path, record, run, result, lines(files.METRICS), lines(files.TIMING), lines(files.SAMPLES, numbers=False), notes
    )


def mapping(record: dict[str, Any], key: str) -> dict[str, Any]:
    """record[key] if it is an object, else an empty dict: a report is written whatever the files hold."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"width": 8}} as {"model.width": 8}; empty dicts stay as values."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def number(row: dict[str, Any], key: str) -> float:
    """row[key] as a float, NaN where it is missing or no number."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def seconds_at(run: Run, steps: np.ndarray) -> np.ndarray:
    """Training wall seconds `[n]` at `steps [n]`, linear between the lines of timing.jsonl; NaN beyond them."""
    known = np.array([(row["step"], number(row, "seconds")) for row in run.timing], np.float64).reshape(-1, 2)
    known = known[np.isfinite(known[:, 1])]
    if not len(known):
        return np.full(len(steps), np.nan)
    if known[0, 0] > 0:
        known = np.concatenate([[[0.0, 0.0]], known])
    return np.interp(steps, known[:, 0], known[:, 1], right=np.nan)


def series(run: Run, key: str, axis: str = "step", timing: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """All points of one curve as (x, y), float64, in file order; points without an x are left out, y may be NaN."""
    rows = [row for row in (run.timing if timing else run.metrics) if key in row]
    y = np.array([number(row, key) for row in rows], np.float64)
    if axis == "seconds":
        x = seconds_at(run, np.array([row["step"] for row in rows], np.float64))
    else:
        x = np.array([number(row, axis) for row in rows], np.float64)
    keep = np.isfinite(x) & ((x > 0) | (not AXES[axis][2]))
    return x[keep], y[keep]


def decimate(x: np.ndarray, y: np.ndarray, points: int = 1000, log: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """About `points` of a curve x, y `[n]` at most: per bucket of x the first, lowest, highest and last.

    No extreme is lost. Buckets are even in x as drawn (in log x if `log`). A bucket with a NaN keeps one, which
    draws as a gap.
    """
    if len(x) <= points:
        return x, y
    position = np.log(x) if log else x
    low, high = position.min(), position.max()
    buckets = max(1, points // 4)
    index = np.minimum((position - low) / max(high - low, 1e-300) * buckets, buckets - 1).astype(int)
    keep = set()
    for bucket in np.unique(index):
        here = np.flatnonzero(index == bucket)
        keep |= {int(here[0]), int(here[-1])}
        bad = ~np.isfinite(y[here])
        if bad.any():
            keep.add(int(here[np.argmax(bad)]))
        if not bad.all():
            keep |= {int(here[np.nanargmin(np.where(bad, np.nan, y[here]))])}
            keep |= {int(here[np.nanargmax(np.where(bad, np.nan, y[here]))])}
    order = sorted(keep)
    return x[order], y[order]


def smooth(y: np.ndarray, fraction: float = 0.03) -> np.ndarray:
    """Centred running mean `[n]` over `fraction` of y `[n]`, narrower near the start so that it follows a steep fall.

    A window reaches to both sides by at most a tenth of the points before it, and is cut off at the end. Values that
    are not finite are skipped.
    """
    n = len(y)
    place = np.arange(n)
    half = np.round(np.minimum(0.5 * fraction * n, 0.1 * place)).astype(int)
    good = np.isfinite(y)
    totals = np.concatenate([[0.0], np.cumsum(np.where(good, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(good)])
    low, high = place - half, np.minimum(place + half, n - 1) + 1
    number_seen = counts[high] - counts[low]
    return np.where(number_seen > 0, (totals[high] - totals[low]) / np.maximum(number_seen, 1), np.nan)


def references(run: Run, suffix: str) -> list[tuple[str, float]]:
    """Known levels in run.json's corpus facts: "unigram_bits_per_byte": 4.56 is drawn as the line "unigram"."""
    levels = []
    for key, value in mapping(run.run, "corpus").items():
        if key.endswith("_" + suffix) and isinstance(value, int | float) and math.isfinite(value):
            levels.append((key.removesuffix("_" + suffix).replace("_", " "), float(value)))
    return levels


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of the 95% Student-t interval over runs; NaN half width below two values."""
    values = np.array([value for value in values if math.isfinite(value)], np.float64)
    if not len(values):
        return math.nan, math.nan
    if len(values) < 2:
        return float(values[0]), math.nan
    from scipy import stats

    spread = values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * spread)


def mean_curve(
    curves: Sequence[tuple[np.ndarray, np.ndarray]], points: int = 1000
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(x, mean, lowest, highest) of several curves, where all of them are defined; linear between their points."""
    curves = [(x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in curves]
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return (np.empty(0),) * 4
    low, high = max(x.min() for x, _ in curves), min(x.max() for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(grid >= low) & (grid <= high)]
    grid = grid[np.unique(np.linspace(0, len(grid) - 1, min(len(grid), points)).astype(int))] if len(grid) else grid
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    return grid, values.mean(0), values.min(0), values.max(0)


@dataclasses.dataclass(frozen=True)
class Contrast:
    """The difference of two groups, second minus first, in bits per byte."""

    kind: str  # "paired", "unpaired", or "none" below two seeds
    pairs: int
    mean: float
    half_width: float
    p: float


def contrast(first: dict[tuple, float], second: dict[tuple, float]) -> Contrast:
    """Compares two groups, each {seeds: value}: paired by seed if the seeds match, else Welch's test.

    "Match" means that every seed of the smaller group is in the other and at least two are shared.
    """
    first, second = ({k: v for k, v in side.items() if math.isfinite(v)} for side in (first, second))
    shared = [seed for seed in first if seed in second]
    a, b = np.array(list(first.values()), np.float64), np.array(list(second.values()), np.float64)
    mean = float(b.mean() - a.mean()) if len(a) and len(b) else math.nan
    from scipy import stats

    if len(shared) >= 2 and len(shared) == min(len(first), len(second)):
        change = np.array([second[seed] - first[seed] for seed in shared], np.float64)
        mean, half = mean_interval(change)
        if half > 0:
            p = float(2 * stats.t.sf(abs(mean) / (half / stats.t.ppf(0.975, len(change) - 1)), len(change) - 1))
        else:
            p = 1.0 if mean == 0 else 0.0
        return Contrast("paired", len(shared), mean, half, p)
    if min(len(a), len(b)) >= 2 and a.var() + b.var() > 0:
        test = stats.ttest_ind(b, a, equal_var=False)
        low, high = test.confidence_interval(0.95)
        return Contrast("unpaired", 0, mean, float(high - low) / 2, float(test.pvalue))
    return Contrast("none", 0, mean, math.nan, math.nan)


def at_compute(run: Run, flops: float, key: str = BITS) -> float:
    """`key` when the run had spent `flops`, linear in log FLOPs between evaluations; NaN outside them."""
    x, y = series(run, key, "flops")
    keep = np.isfinite(y)
    if not keep.any() or not x[keep].min() <= flops <= x[keep].max():
        return math.nan
    return float(np.interp(math.log(flops), np.log(x[keep]), y[keep]))


def shared_compute(runs: Sequence[Run], key: str = BITS) -> float:
    """The most FLOPs at which every run that was evaluated has been evaluated; NaN if there is none."""
    ends = [series(run, key, "flops")[0] for run in runs if run.last(key)]
    return float(min(x.max() for x in ends)) if ends and all(len(x) for x in ends) else math.nan


def status(run: Run) -> tuple[str, str]:
    """(the state of the run, a warning if it needs one)."""
    step = run.last_step
    if step is None:
        return "nothing logged yet", ""
    train = run.last("train/loss")
    if train and not math.isfinite(number(train, "train/loss")):
        return (
            f"stopped at step {step:,}",
            f"The training loss was not finite at step {train['step']:,}; the run stopped.",
        )
    if run.finished:
        return f"finished at step {step:,}", ""
    return (
        f"unfinished at step {step:,}",
        "The run is under way or was stopped; this page shows what it has written so far.",
    )


def last_timing(run: Run, key: str) -> float:
    """The highest value of a cumulative timing."""
    values = series(run, key, timing=True)[1]
    return float(np.nanmax(values)) if np.isfinite(values).any() else math.nan


def median_timing(run: Run, key: str) -> float:
    """The median of a rate over the run."""
    values = series(run, key, timing=True)[1]
    return float(np.nanmedian(values)) if np.isfinite(values).any() else math.nan


def usable_axes(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The horizontal axes (key, name) for which any run has points."""
    keys = ("train/loss", "eval/loss", BITS)
    return [
        (axis, about[0])
        for axis, about in AXES.items()
        if any(len(series(run, key, axis)[0]) for run in runs for key in keys)
    ]


def kind(row: dict[str, Any]) -> str:
    """The kind of an evaluation's bits: "=" exact, "<=" an upper bound, "~" no likelihood or unknown."""
    said = row.get("eval/kind", "=")
    return said if said in ("=", "<=") else "~"
