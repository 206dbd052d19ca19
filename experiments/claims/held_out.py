"""Held-out likelihood over the epochs of a run: its curve, the lowest value, and how far the end lies above that."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report import data
from experiments.settings.errors import Refused


def curve(workdir: str | os.PathLike) -> dict[str, list[float]]:
    """`epochs` (tokens read over those of the training split) and `bits_per_byte` at every evaluation of a run.

    Errors: Refused for a run that was evaluated once only: that is no curve.
    """
    run = data.load(workdir)
    tokens, bits = data.series(run, data.BITS, "tokens")
    if len(bits) < 2:
        raise Refused(f"the run in {run.path} has {len(bits)} evaluations and no curve; let eval.every be e.g. 100.")
    whole = run.run["corpus"]["splits"]["train"]["tokens"]
    return {"epochs": (tokens / whole).tolist(), "bits_per_byte": bits.tolist()}


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
