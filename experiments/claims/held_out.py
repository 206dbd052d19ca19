"""Held-out likelihood over the epochs of a run: its curve, the lowest value, and how far the end lies above that."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import workdir as files
from experiments.settings.errors import Refused

_BITS = "eval/bits_per_byte"


def curve(workdir: str | os.PathLike) -> dict[str, list[float]]:
    """`epochs` (tokens read over those of the training split) and `bits_per_byte` at every evaluation of a run.

    Errors: Refused for a run that was evaluated once only: that is no curve.
    """
    folder = pathlib.Path(workdir)
    lines, _ = files.read_lines(folder / files.METRICS)
    found = {line["step"]: line for line in lines if _BITS in line}  # A run that went on repeats none of its steps.
    if len(found) < 2:
        raise Refused(f"the run in {folder} has {len(found)} evaluations and no curve; let eval.every be e.g. 100.")
    whole = (files.read_json(folder / files.RUN) or {})["corpus"]["splits"]["train"]["tokens"]
    lines = [found[step] for step in sorted(found)]
    return {
        "epochs": [line["tokens"] / whole for line in lines],
        "bits_per_byte": [line[_BITS] for line in lines],
    }


def figures(row: Mapping[str, Any]) -> dict[str, float]:
    """Of one finished run: `lowest` bits per byte of its curve, `epochs_at_lowest`, and `rise`, the last less the
    lowest."""
    found = curve(row["workdir"])
    bits = found["bits_per_byte"]
    lowest = min(bits)
    return {"lowest": lowest, "rise": bits[-1] - lowest, "epochs_at_lowest": found["epochs"][bits.index(lowest)]}


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The runs of one arm: `epochs`, and `bits_per_byte` a list a seed. Errors: Refused where their steps differ."""
    found = [curve(row["workdir"]) for row in rows]
    if any(each["epochs"] != found[0]["epochs"] for each in found):
        raise Refused("the runs of one arm were evaluated at other steps; let eval.every be one for its seeds.")
    return {"epochs": found[0]["epochs"], "bits_per_byte": [each["bits_per_byte"] for each in found]}
