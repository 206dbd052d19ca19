"""Check: one arm answers a task better than another at equal compute.

The claim has `base`, `arms` {name: {dotted key: value}}, `better` and `worse` (names of arms), and `seeds`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.claims import answers, arms
from experiments.claims.rows import Row, above, interval


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Row]:
    """Trains both arms with every seed and compares the share of rows answered without a mistake, paired by seed."""
    seeds = claim["seeds"]
    found = arms.train(claim["base"], claim["arms"], seeds, workdir, jobs=jobs, quiet=quiet)
    scores = {arm: [answers.score(row["workdir"]) for row in rows] for arm, rows in found.items()}
    arms.compare(found, workdir)
    exact = {arm: [score["exact"] for score in by_seed] for arm, by_seed in scores.items()}
    better, worse = exact[claim["better"]], exact[claim["worse"]]
    mean, low, high = interval([b - w for b, w in zip(better, worse, strict=True)])
    means = {arm: sum(values) / len(values) for arm, values in exact.items()}
    shares = ", ".join(f"{arm} {100 * value:.1f}%" for arm, value in means.items())
    return [
        Row(
            statement=claim["statement"],
            published=claim["published"],
            measured=f"exact answers {shares}; difference {100 * mean:+.1f} points "
            f"[{100 * low:+.1f}, {100 * high:+.1f}]",
            scale=arms.scale(found, seeds),
            verdict=above(low, high),
            numbers={
                "seeds": list(seeds), "exact": exact, "mean": mean, "low": low, "high": high,
                "accuracy": {arm: [s["accuracy"] for s in by_seed] for arm, by_seed in scores.items()},
                "loss": {arm: [row["loss"] for row in rows] for arm, rows in found.items()},
                "flops": {arm: [row["flops"] for row in rows] for arm, rows in found.items()},
            },
        )
    ]  # fmt: skip
