"""Runs to fit: anyone's, from a CSV file, or this project's, from a folder of workdirs."""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from experiments import workdir as files
from experiments.scaling.laws import FLOPS_PER_PARAMETER_TOKEN

PUBLISHED = pathlib.Path(__file__).parent / "published"
_COUNTS = ("total", "non_embedding")


@dataclasses.dataclass(frozen=True)
class Runs:
    """R finished runs.

    columns: `[R]` float64 each, always `parameters`, `tokens`, `flops`, `tokens_per_parameter` and `loss`.
    labels: `[R]` text columns.
    left_out: rows or workdirs that were not read, and why, one sentence each.
    """

    names: tuple[str, ...]
    columns: dict[str, np.ndarray]
    labels: dict[str, tuple[str, ...]]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def select(self, kept: np.ndarray) -> "Runs":
        """The runs where `kept` (`[R]` bool, or indices) says so, in their order."""
        kept = np.arange(len(self))[kept]
        labels = {name: tuple(values[i] for i in kept) for name, values in self.labels.items()}
        columns = {name: values[kept] for name, values in self.columns.items()}
        return Runs(tuple(self.names[i] for i in kept), columns, labels, self.left_out)


def read_csv(
    path: str | pathlib.Path, columns: Mapping[str, str] | None = None, *, flops_per: float = FLOPS_PER_PARAMETER_TOKEN
) -> Runs:
    """The runs in a CSV file with one header line; lines that begin with # are comments.

    Args:
      path: the file.
      columns: our name -> the file's name, for those that differ, such as {"parameters": "Model Size"}. Needed are
        `loss` (nats per token) and two of `parameters`, `tokens`, `flops`; the third follows from C = flops_per N D.
        A column `name` names the runs; every other column of numbers is kept, others are labels.
      flops_per: FLOPs per parameter and token.

    Rows without a number in a needed column are left out and named in `left_out`. Errors: ValueError where a needed
    column or every row is missing; FileNotFoundError.
    """
    path = pathlib.Path(path)
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    header = list(rows[0]) if rows else []
    named = {ours: theirs for ours, theirs in (columns or {}).items()}
    for ours, theirs in named.items():
        if theirs not in header:
            raise ValueError(f"columns[{ours!r}]={theirs!r} is not in {path.name!r}; its columns are {header}.")
    named |= {name: name for name in header if name not in named.values() and name not in named}
    needed = ["loss", *(n for n in ("parameters", "tokens", "flops") if n in named)]
    if "loss" not in named or len(needed) < 3:
        raise ValueError(
            f"{path.name!r} has the columns {header}; name its loss and two of parameters, tokens and flops, such as "
            "columns={'parameters': 'N', 'tokens': 'D', 'loss': 'final loss'}."
        )
    kept, left_out = [], []
    for number, row in enumerate(rows, 1):
        bad = [name for name in needed if not _number(row[named[name]]) > 0]
        if bad:
            left_out.append(f"row {number}: {bad[0]}={row[named[bad[0]]]!r} is not a positive number")
        else:
            kept.append(row)
    if not kept:
        raise ValueError(f"{path.name!r} has no row with a number in each of {needed}; use one line per run.")
    read, labels = {}, {}
    for ours, theirs in named.items():
        values = [row[theirs] for row in kept]
        numbers = np.array([_number(v) for v in values])
        if ours in needed or (ours != "name" and not np.isnan(numbers).all()):
            read[ours] = numbers
        else:
            labels[ours] = tuple(str(v) for v in values)
    names = labels.pop("name", None) or tuple(str(k) for k in range(1, len(kept) + 1))
    return Runs(names, _completed(read, flops_per), labels, tuple(left_out))


def read_workdirs(folder: str | pathlib.Path, *, count: str = "total", target: str = "eval/loss") -> Runs:
    """The finished runs in the workdirs under `folder` (at any depth).

    Args:
      folder: a sweep's workdir, or any folder of workdirs.
      count: which parameters N counts: "total", or "non_embedding" (Kaplan et al. 2020 use the latter).
      target: the key of result.json that is the loss.

    Columns also hold the other numbers of result.json (as they are named there) and `seconds`. A workdir without
    result.json, or whose numbers are not finite, is named in `left_out`. Labels: `hash`, that of the config.
    Errors: ValueError where `count` is unknown or no run is finished.
    """
    if count not in _COUNTS:
        raise ValueError(f"count={count!r} is not known; use one of {', '.join(map(repr, _COUNTS))}.")
    folder = pathlib.Path(folder).expanduser()
    rows, names, hashes, left_out = [], [], [], []
    for config in sorted(folder.rglob(files.CONFIG)):
        workdir = config.parent
        if workdir.name.startswith(f"{files.REPLACED}-"):  # Of a run that was started over.
            continue
        name = workdir.relative_to(folder).as_posix()
        try:
            row, digest = _read_workdir(workdir, count, target)
        except ValueError as error:
            left_out.append(f"{name}: {error}")
            continue
        rows.append(row)
        names.append(name)
        hashes.append(digest)
    if not rows:
        reasons = f" ({left_out[0]})" if left_out else ""
        raise ValueError(f"{str(folder)!r} holds no finished run{reasons}; use a folder of workdirs with result.json.")
    keys = {key for row in rows for key in row}
    columns = {key: np.array([row.get(key, math.nan) for row in rows], np.float64) for key in sorted(keys)}
    return Runs(tuple(names), _completed(columns, FLOPS_PER_PARAMETER_TOKEN), {"hash": tuple(hashes)}, tuple(left_out))


def _read_workdir(workdir: pathlib.Path, count: str, target: str) -> tuple[dict[str, float], str]:
    """(numbers, config hash) of one finished run. Errors: ValueError with the reason why it cannot be used."""
    result = files.read_json(workdir / files.RESULT)
    if result is None:
        raise ValueError("the run is not finished")
    row = {k: float(v) for k, v in result.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    counts = (files.read_json(workdir / files.RUN) or {}).get("parameters", {})
    if count == "non_embedding":
        size = counts.get("non_embedding", counts.get("total", math.nan) - counts.get("embedding", math.nan))
    else:
        size = row.get("parameters", counts.get("total", math.nan))
    row |= {"parameters": float(size), "loss": row.get(target, math.nan)}
    for key in ("parameters", "tokens", "flops", "loss"):
        value = row.get(key, math.nan)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{target if key == 'loss' else key}={value!r} is not a positive number")
    return row, str((files.read_json(workdir / files.CONFIG) or {}).get("hash", ""))


def _completed(columns: dict[str, np.ndarray], flops_per: float) -> dict[str, np.ndarray]:
    """The columns with whichever of parameters, tokens and flops was missing, and tokens per parameter."""
    if "parameters" not in columns:
        columns["parameters"] = columns["flops"] / (flops_per * columns["tokens"])
    if "tokens" not in columns:
        columns["tokens"] = columns["flops"] / (flops_per * columns["parameters"])
    if "flops" not in columns:
        columns["flops"] = flops_per * columns["parameters"] * columns["tokens"]
    columns["tokens_per_parameter"] = columns["tokens"] / columns["parameters"]
    return columns


def _number(text: str | None) -> float:
    try:
        value = float(text or "nan")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
