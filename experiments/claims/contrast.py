"""Check: one arm is better than another at equal compute, paired by seed.

Keys of the claim:
  base: the config of every run.
  arms: {name: {dotted key: value}} on `base`.
  seeds: of the runs.
  better, worse: names of arms; or `pairs`, [{"statement", "published", "better", "worse"}], a row each.
  score: what is compared, a name in `experiments.claims.measures.MEASURES`; "exact" if it is missing. A pair may have
    its own.
  reference: an arm (may be missing); the numbers of a row then hold under `ahead` by how much each arm is better by
    the claim's score, which a control may read.
  equal_to: an arm (may be missing); every other arm trains for as many steps as cost the FLOPs of this one,
    but those that set `train.steps` themselves.
  curves: True (may be missing): the first row keeps the held-out curve of every run, and its page draws them.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from data import tasks
from experiments.claims import arms, held_out, method
from experiments.claims.evidence import Evidence
from experiments.claims.measures import Measure, measure
from experiments.settings.errors import Refused


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains every arm with every seed and compares each pair by the claim's score."""
    seeds, pairs, main = claim["seeds"], claim.get("pairs", [claim]), claim.get("score", "exact")
    asked = {main: [*claim["arms"]]}
    for pair in pairs:
        asked.setdefault(pair.get("score", main), []).extend((pair["better"], pair["worse"]))
    scores = {name: _by_run(name) for name in asked}
    given = {arm: dict(values) for arm, values in claim["arms"].items()}
    if "equal_to" in claim:
        arms.equalise(claim["base"], given, claim["equal_to"])
    found = arms.train(claim["base"], given, seeds, workdir, jobs=jobs, quiet=quiet)
    arms.compare(found, workdir)
    kinds = {arm: rows[0].get("eval/kind", "=") for arm, rows in found.items()}
    figures, shown = {}, {}
    for name, some in asked.items():
        measured = {arm: [scores[name].of(row) for row in found[arm]] for arm in dict.fromkeys(some)}
        for key in next(iter(measured.values()))[0]:
            figures[key] = {arm: [figure[key] for figure in by_seed] for arm, by_seed in measured.items()}
        for arm, by_seed in measured.items():
            mean = {key: sum(figure[key] for figure in by_seed) / len(seeds) for key in by_seed[0]}
            shown[name, arm] = f"{arm} {scores[name].text(kinds[arm], mean)}"
    if "reference" in claim:
        given, sign = figures[main], scores[main].sign
        figures["ahead"] = {arm: _ahead(sign, values, given[claim["reference"]]) for arm, values in given.items()}
    figures["kind"] = kinds
    for key in ("loss", "flops", "parameters"):
        figures[key] = {arm: [row[key] for row in rows] for arm, rows in found.items()}
    figures |= _known(claim["base"].data)
    scale = arms.scale(found, seeds)
    made = [_row(claim, pair, pair.get("score", main), figures, shown, scale) for pair in pairs]
    if claim.get("curves"):
        made[0].numbers["curves"] = {arm: held_out.curves(rows) for arm, rows in found.items()}
    return made


def _by_run(name: str) -> Measure:
    made = measure(name, "score")
    if made.of is None:
        raise Refused(f"score={name!r} of the claim is no number of one run; use the check table for it.")
    return made


def _ahead(sign: int, better: Sequence[float], worse: Sequence[float]) -> list[float]:
    """By how much the first are better, by seed."""
    return [sign * (b - w) for b, w in zip(better, worse, strict=True)]


def _row(
    claim: Mapping[str, Any], pair: Mapping[str, Any], name: str, figures: Mapping[str, Any],
    shown: Mapping[tuple[str, str], str], scale: str,
) -> Evidence:  # fmt: skip
    """One comparison, by how much better is better."""
    values, better, worse = figures[name], pair["better"], pair["worse"]
    score = measure(name, "score")
    judged = method.judge(claim, _ahead(score.sign, values[better], values[worse]), pair=pair)
    by = score.difference.format(*judged.ends) + _between(name, figures)
    measured = f"{shown[name, better]}, {shown[name, worse]}; better by {by}"
    return judged.row(pair, measured, scale, {"seeds": list(claim["seeds"]), **figures})


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
