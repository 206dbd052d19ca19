"""Check: a faster way of filling answers in needs fewer FLOPs than a plain one, at equal accuracy.

The claim has `base`, `arms` {"model": .., "guide": ..} ({dotted key: value} each; the guide is autoregressive),
`settings` {name: changes of `config.generate.diffusion`}, `fast` and `plain` (names of two of them), `times`, the ratio
of FLOPs that is claimed, `within`, the loss of exact answers that counts as none, and `seeds`.
"""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import answers, arms
from experiments.claims.rows import DOES_NOT, HOLDS, UNDECIDED, Row, interval
from experiments.generation.canvas import Filler
from experiments.program import counting, inputs
from experiments.workdir import trained

FIGURES = ("flops", "calls", "seconds", "exact")


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Row]:
    """Trains model and guide with every seed, and fills the same held-out rows in by every setting."""
    seeds, settings = claim["seeds"], claim["settings"]
    found = arms.train(claim["base"], claim["arms"], seeds, workdir, jobs=jobs, quiet=quiet)
    pairs = [
        (trained.load(model["workdir"]), trained.load(guide["workdir"]))
        for model, guide in zip(found["model"], found["guide"], strict=True)
    ]
    curve = {name: [spent(*pair, changes) for pair in pairs] for name, changes in settings.items()}
    figures = {name: {key: [row[key] for row in rows] for key in FIGURES} for name, rows in curve.items()}
    fast, plain = (figures[claim[name]] for name in ("fast", "plain"))
    ratio = interval(np.divide(plain["flops"], fast["flops"]).tolist())
    gain = interval(np.subtract(fast["exact"], plain["exact"]).tolist())
    base = np.mean(plain["flops"])
    shown = "; ".join(
        f"{name} {base / np.mean(row['flops']):.1f}x, {100 * np.mean(row['exact']):.1f}%, "
        f"{np.mean(row['calls']):.1f} calls, {np.mean(row['seconds']):.3f} s"
        for name, row in figures.items()
    )
    return [
        Row(
            statement=claim["statement"],
            published=claim["published"],
            measured=f"{ratio[0]:.1f} times fewer FLOPs [{ratio[1]:.1f}, {ratio[2]:.1f}], exact answers "
            f"{100 * gain[0]:+.1f} points [{100 * gain[1]:+.1f}, {100 * gain[2]:+.1f}]; {shown}",
            scale=arms.scale(found, seeds),
            verdict=verdict(ratio, gain, claim["times"], claim["within"]),
            numbers={"seeds": list(seeds), "ratio": ratio, "gain": gain, "curve": figures},
        )
    ]


def verdict(ratio: tuple, gain: tuple, times: float, within: float) -> str:
    """Holds where both intervals (mean, low, high) lie on the right side: the ratio above `times`, the gain of exact
    answers above -`within`."""
    if ratio[1] > times and gain[1] > -within:
        return HOLDS
    return DOES_NOT if ratio[2] < times or gain[2] < -within else UNDECIDED


def spent(model: Any, guide: Any, changes: Mapping[str, Any]) -> dict[str, float]:
    """FLOPs, calls, seconds (all but the first batch, which compiles) and exact answers a row, over the eval batches.

    FLOPs are those of the forward passes, of the guide too: a multiply-add is 2; every token of a call sees the whole
    row (its block's mask or a cache change what is fed, not what is seen).
    """
    options = model.config.generate.to_dict()
    options["diffusion"] = options["diffusion"] | dict(changes)
    filler = Filler(model.program, model.corpus.tokenizer, guide)
    costs = [counting.flops_per_token(made.program)["total"] / 3 for made in (model, guide)]
    found, seconds = [], []
    for batch in inputs.eval_batches(model.config, model.corpus):
        begun = time.perf_counter()
        tokens, work = filler.answered(model.params, batch, options)
        seconds.append((time.perf_counter() - begun) / len(tokens))
        judged = answers.judge(batch, tokens, work.calls, model.corpus.valid.task.end)
        found.append({
            "flops": float(np.mean(work.fed * costs[0] + work.guided * costs[1])),
            "calls": judged["calls"], "exact": judged["exact"],
        })  # fmt: skip
    means = {key: float(np.mean([row[key] for row in found])) for key in ("flops", "calls", "exact")}
    return means | {"seconds": float(np.mean(seconds[1:]))}
