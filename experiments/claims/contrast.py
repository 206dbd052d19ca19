"""Check: one arm is better than another at equal compute.

The claim has `base`, `arms` {name: {dotted key: value}}, `better` and `worse` (names of arms), `seeds`, and may have
`measure` (a name in MEASURES, else exact). Several comparisons of the same runs are `pairs`, a list of dicts with
`statement`, `published`, `better` and `worse` of their own.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from data import tasks
from experiments.claims import answers, arms
from experiments.claims.rows import Row, above, interval
from experiments.errors import Refused
from experiments.preflight import suggest

# What is compared -> whether more of it is better. exact: rows of a task answered without a mistake; loss: held out.
MEASURES = {"exact": True, "loss": False}


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Row]:
    """Trains all arms with every seed and compares what the claim measures, paired by seed; a row for each pair."""
    measure, seeds = claim.get("measure", "exact"), claim["seeds"]
    if measure not in MEASURES:
        hint = suggest(measure, MEASURES)
        raise Refused(f"measure={measure!r} of the claim is unknown; {hint}choose one of: {', '.join(MEASURES)}.")
    found = arms.train(claim["base"], claim["arms"], seeds, workdir, jobs=jobs, quiet=quiet)
    arms.compare(found, workdir)
    numbers: dict[str, Any] = {"seeds": list(seeds)}
    if measure == "exact":
        scores = {arm: [answers.score(row["workdir"]) for row in rows] for arm, rows in found.items()}
        for key in ("exact", "accuracy"):
            numbers[key] = {arm: [score[key] for score in by_seed] for arm, by_seed in scores.items()}
    for key in ("loss", "flops", "parameters"):
        numbers[key] = {arm: [row[key] for row in rows] for arm, rows in found.items()}
    numbers |= _known(claim["base"].data)
    scale = arms.scale(found, seeds)
    return [_row(measure, pair, scale, numbers) for pair in claim.get("pairs", [claim])]


def _row(measure: str, pair: Mapping[str, Any], scale: str, numbers: Mapping[str, Any]) -> Row:
    """Mean difference, better minus worse, paired by seed."""
    values = numbers[measure]
    better, worse = values[pair["better"]], values[pair["worse"]]
    mean, low, high = interval([b - w for b, w in zip(better, worse, strict=True)])
    means = {arm: sum(values[arm]) / len(values[arm]) for arm in (pair["better"], pair["worse"])}
    if measure == "exact":
        shares = ", ".join(f"{arm} {100 * value:.1f}%" for arm, value in means.items())
        measured = f"exact answers {shares}; difference {100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    else:
        losses = ", ".join(f"{arm} {value:.4f}" for arm, value in means.items())
        known = [f"{name} {numbers[key]:.4f}" for key, name in _KNOWN.items() if numbers.get(key) is not None]
        measured = f"nats a token: {losses}; difference {mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        measured += f" ({', '.join(known)})" if known else ""
    return Row(
        statement=pair["statement"],
        published=pair["published"],
        measured=measured,
        scale=scale,
        verdict=above(low, high) if MEASURES[measure] else above(-high, -low),
        numbers={**numbers, "mean": mean, "low": low, "high": high},
    )


_KNOWN = {"best_loss": "best possible", "chance_loss": "by chance"}


def _known(options: Any) -> dict[str, float | None]:
    """The losses between which any model of a task lies, where all arms have the same task."""
    kind, _, name = options.source.partition(":")
    if kind != "task":
        return {}
    task = tasks.make(name, options.name)
    return {key: getattr(task, key) for key in _KNOWN}
