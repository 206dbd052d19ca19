"""Check: one arm is better than another at equal compute, paired by seed.

Keys of the claim:
  base: the config of every run.
  arms: {name: {dotted key: value}} on `base`.
  seeds: of the runs.
  better, worse: names of arms; or `pairs`, [{"statement", "published", "better", "worse"}], a row each.
  score: what is compared, a name in `experiments.claims.measures.MEASURES`; "exact" if it is missing.
  equal_to: an arm (may be missing); every other arm trains for as many steps as cost the FLOPs of this one.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from data import tasks
from experiments.claims import arms, method
from experiments.claims.evidence import Evidence
from experiments.claims.measures import measure
from experiments.settings.errors import Refused


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains every arm with every seed and compares each pair by the claim's score."""
    seeds, name = claim["seeds"], claim.get("score", "exact")
    score = measure(name, "score")
    if score.of is None:
        raise Refused(f"score={name!r} of the claim is no number of one run; use the check table for it.")
    given = {arm: dict(values) for arm, values in claim["arms"].items()}
    if "equal_to" in claim:
        arms.equalise(claim["base"], given, claim["equal_to"])
    found = arms.train(claim["base"], given, seeds, workdir, jobs=jobs, quiet=quiet)
    scores = {arm: [score.of(row) for row in rows] for arm, rows in found.items()}
    arms.compare(found, workdir)
    kinds = {arm: rows[0].get("eval/kind", "=") for arm, rows in found.items()}
    names = tuple(next(iter(scores.values()))[0])
    figures: dict[str, Any] = {
        key: {arm: [figure[key] for figure in by_seed] for arm, by_seed in scores.items()} for key in names
    }
    means = {arm: {key: sum(figures[key][arm]) / len(seeds) for key in names} for arm in found}
    shown = {arm: f"{arm} {score.text(kinds[arm], means[arm])}" for arm in found}
    figures["kind"] = kinds
    for key in ("loss", "flops", "parameters"):
        figures[key] = {arm: [row[key] for row in rows] for arm, rows in found.items()}
    figures |= _known(claim["base"].data)
    scale = arms.scale(found, seeds)
    return [_row(claim, pair, name, figures, shown, scale) for pair in claim.get("pairs", [claim])]


def _row(
    claim: Mapping[str, Any], pair: Mapping[str, Any], name: str, figures: Mapping[str, Any],
    shown: Mapping[str, str], scale: str,
) -> Evidence:  # fmt: skip
    """One comparison, by how much better is better."""
    values, better, worse = figures[name], pair["better"], pair["worse"]
    score = measure(name, "score")
    differences = [score.sign * (b - w) for b, w in zip(values[better], values[worse], strict=True)]
    judged = method.judge(claim, differences, pair=pair)
    by = score.difference.format(*judged.ends) + _between(name, figures)
    return Evidence(
        statement=pair["statement"],
        published=pair["published"],
        measured=f"{shown[better]}, {shown[worse]}; better by {by}",
        scale=scale,
        verdict=judged.verdict,
        numbers={"seeds": list(claim["seeds"]), **judged.to_dict(), **figures},
    )


def _known(options: Any) -> dict[str, float | None]:
    """The losses between which any model lies, where all arms have the same task."""
    kind, _, name = options.source.partition(":")
    task = tasks.make(name, options.name) if kind == "task" else None
    return {key: getattr(task, key, None) for key in ("best_loss", "chance_loss")}


def _between(name: str, figures: Mapping[str, Any]) -> str:
    """Those losses in words, where losses are compared."""
    if name != "loss" or figures["best_loss"] is None:
        return ""
    return f" (best possible {figures['best_loss']:.4f}, by chance {figures['chance_loss']:.4f})"
