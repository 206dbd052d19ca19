"""Check: a law fitted to small runs, most of them near the optimum, predicts over-trained runs of more compute.

The claim has `base`, `small` and `large` (lists of {dotted key: value}: the runs that are fitted, and those that are
predicted), `law` (a name in `experiments.scaling.LAWS`), `seeds`, and `within`, the error that counts as reliable.
Its numbers have under `fit` the root mean square residual of log loss over the small runs, by seed: by what share the
law misses the runs that it was fitted to, which a control may read.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import scaling
from experiments.claims import arms, method
from experiments.claims.evidence import Evidence


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains the grid with every seed; for each seed fits its small runs and takes the mean error on its large ones."""
    seeds = claim["seeds"]
    runs = {f"small {k}": values for k, values in enumerate(claim["small"])}
    runs |= {f"large {k}": values for k, values in enumerate(claim["large"])}
    found = arms.train(claim["base"], runs, seeds, workdir, jobs=jobs, quiet=quiet)
    fits = [_predicted(claim["law"], {arm: rows[k] for arm, rows in found.items()}) for k in range(len(seeds))]
    errors = [float(np.mean(np.abs(error))) for _, error in fits]
    judged = method.judge(claim, [-error for error in errors], bound=-claim["within"])  # Reliable: below the bound.
    mean, low, high = -judged.mean, -judged.high, -judged.low
    small, large = ([row for arm, rows in found.items() if arm.startswith(kind) for row in rows] for kind in _KINDS)
    beyond = min(row["flops"] for row in large) / max(row["flops"] for row in small)
    ratio = max(row["tokens"] / row["parameters"] for row in large)
    return [
        Evidence(
            statement=claim["statement"],
            published=claim["published"],
            measured=f"mean relative error {100 * mean:.2f}% [{100 * low:.2f}, {100 * high:.2f}] on "
            f"{len(claim['large'])} runs of {beyond:.1f} times the compute, up to {ratio:.0f} tokens per parameter",
            scale=arms.scale(found, seeds),
            verdict=judged.verdict,
            numbers={
                **judged.numbers, "seeds": list(seeds), "errors": [error.tolist() for _, error in fits], "mean": mean,
                "low": low, "high": high, "within": claim["within"], "law": claim["law"], "beyond": beyond,
                "values": [fitted.values for fitted, _ in fits], "fit": [fitted.residual for fitted, _ in fits],
            },
        )
    ]  # fmt: skip


_KINDS = ("small", "large")


def _predicted(law: str, rows: Mapping[str, Mapping[str, Any]]) -> tuple[scaling.Fit, np.ndarray]:
    """The fit to the small runs of one seed, and the relative errors of what it says of the large ones."""
    small, large = ([row for arm, row in rows.items() if arm.startswith(kind)] for kind in _KINDS)
    fitted = scaling.fit(law, _columns(small))
    measured = _columns(large)
    return fitted, fitted.predict(measured) / measured["loss"] - 1


def _columns(rows: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    made = {key: np.array([row[key] for row in rows], float) for key in ("parameters", "tokens", "flops", "loss")}
    return made | {"tokens_per_parameter": made["tokens"] / made["parameters"]}
