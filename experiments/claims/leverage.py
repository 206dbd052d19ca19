"""Check: how much more compute a dense model needs for a mixture's loss, and whether a law of it tells unseen shapes.

The claim has `base`; `arms` ({name: {dotted key: value}}), one of them `dense`; `shapes` ({arm: (experts E, choices K,
width h of an expert)}) of the others; `unseen`, the arms that the law is tried on, each by a fit to all others;
`after`, the step from which evaluations count; `pairs`, each with `statement`, `published` and `measure`, a name in
MEASURES; and `seeds`. `ends` ({"activation" | "granularity": (arm, arm)}) are the shapes whose logarithms two measures
set against each other.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import arms, method
from experiments.claims.evidence import Evidence
from experiments.report import data
from experiments.scaling import leverage

MEASURES = {
    "unseen": "error of the mean of the others less that of the law, in log EL",
    "activation": "log EL of few active experts less that of many",
    "granularity": "log EL of fine experts less that of coarse ones",
}
CONSTANTS = ("a", "d", "gamma", "beta", "a_start")


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains every arm with every seed, reads its held-out losses along the way, and fits a law a seed."""
    seeds, base = claim["seeds"], claim["base"]
    found = arms.train(base, claim["arms"], seeds, workdir, jobs=jobs, quiet=quiet)
    arms.compare(found, workdir)
    curves = [{arm: _curve(rows[k]["workdir"]) for arm, rows in found.items()} for k in range(len(seeds))]
    read = [figures(claim, each, claim["base"].model.width) for each in curves]
    numbers = {name: [each[name] for each in read] for name in read[0] if name != "leverage"}
    numbers["leverage"] = {arm: [each["leverage"][arm] for each in read] for arm in claim["shapes"]}
    numbers["log_leverage"] = {arm: np.log(values).tolist() for arm, values in numbers["leverage"].items()}
    scale = arms.scale(found, seeds)
    return [_row(claim, pair, numbers, scale) for pair in claim["pairs"]]


def _curve(workdir: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(step, training FLOPs, held-out loss) of each evaluation."""
    rows = [row for row in data.load(workdir).metrics if "eval/loss" in row]
    return tuple(np.array([float(row[key]) for row in rows]) for key in ("step", "flops", "eval/loss"))


def figures(claim: Mapping[str, Any], curves: Mapping[str, Any], width: int) -> dict[str, Any]:
    """The measures of one seed, the constants of the fit to all shapes, and EL of each shape at its last evaluation."""
    points, last = {}, {}
    for arm, (experts, k, hidden) in claim["shapes"].items():
        step, C, loss = curves[arm]
        EL = leverage.at_equal_loss(*curves["dense"][1:], C, loss)
        some = (step >= claim["after"]) & np.isfinite(EL)
        A, G = leverage.activation_ratio(k, 0, experts), leverage.granularity(width, hidden)
        points[arm] = np.stack([np.full(some.sum(), A), np.full(some.sum(), G), C[some], EL[some]])
        last[arm] = float(EL[some][-1]) if some.any() else np.nan
    made: dict[str, Any] = {"law": [], "mean": []}
    for arm in claim["unseen"]:
        seen = np.concatenate([points[other] for other in points if other != arm], axis=1)
        A, G, C, EL = points[arm]
        law = leverage.fit(*seen)
        made["law"].append(np.mean(np.abs(np.log(leverage.leverage(A, G, C, law) / EL))))
        made["mean"].append(np.mean(np.abs(np.mean(np.log(seen[3])) - np.log(EL))))
    law = leverage.fit(*np.concatenate([*points.values()], axis=1))
    errors = {f"error of the {name}": float(np.mean(values)) for name, values in made.items()}
    ends = {name: float(np.log(last[few]) - np.log(last[many])) for name, (few, many) in claim["ends"].items()}
    constants = {name: float(getattr(law, name)) for name in CONSTANTS}
    unseen = errors["error of the mean"] - errors["error of the law"]
    return {**errors, "unseen": unseen, **ends, **constants, "leverage": last}


def _row(claim: Mapping[str, Any], pair: Mapping[str, Any], numbers: Mapping[str, Any], scale: str) -> Evidence:
    name = pair["measure"]
    judged = method.judge(claim, numbers[name], pair=pair)
    shown = ", ".join(f"{arm} {np.mean(values):.2f}" for arm, values in numbers["leverage"].items())
    law = ", ".join(f"{key} {np.mean(numbers[key]):.3g}" for key in CONSTANTS)
    errors = " and ".join(f"{100 * np.mean(numbers[f'error of the {kind}']):.1f}% ({kind})" for kind in ("law", "mean"))
    measured = f"leverage: {shown}; law: {law}; error on unseen shapes {errors}; {MEASURES[name]} {judged.text(3)}"
    return judged.row(pair, measured, scale, {"seeds": list(claim["seeds"]), **numbers})
