"""Check: one trained model, many settings of its generator: what each costs and how well it answers.

Keys of the claim:
  base: the config of every run.
  arms: {"model": .., "guide": ..}, {dotted key: value} each; the guide is autoregressive, and may be missing.
  settings: {name: changes of `config.generate`}.
  fast, plain: names of two of the settings.
  cost: a name in COSTS; "flops" if it is missing.
  times: the ratio of costs that is claimed.
  within: the loss of exact answers that counts as none.
  seeds: of the runs.
"""

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.claims import answers, arms, method
from experiments.claims.evidence import DOES_NOT, HOLDS, UNDECIDED, Evidence
from experiments.generation.canvas import Filler
from experiments.program import counting, inputs
from experiments.settings.errors import Refused
from experiments.settings.keys import suggest
from experiments.workdir import trained

COSTS = {"flops": "FLOPs", "calls": "calls", "seconds": "seconds"}
FIGURES = (*COSTS, "exact")


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains model and guide with every seed, and fills the same held-out rows in by every setting."""
    seeds, settings, cost = claim["seeds"], claim["settings"], claim.get("cost", "flops")
    if cost not in COSTS:
        raise Refused(f"cost={cost!r} of the claim is unknown; {suggest(cost, COSTS)}choose of: {', '.join(COSTS)}.")
    found = arms.train(claim["base"], claim["arms"], seeds, workdir, jobs=jobs, quiet=quiet)
    models = [trained.load(row["workdir"]) for row in found["model"]]
    guides = [trained.load(row["workdir"]) for row in found.get("guide", ())] or [None] * len(models)
    pairs = list(zip(models, guides, strict=True))
    curve = {name: [spent(*pair, changes) for pair in pairs] for name, changes in settings.items()}
    figures = {name: {key: [row[key] for row in rows] for key in FIGURES} for name, rows in curve.items()}
    fast, plain = (figures[claim[name]] for name in ("fast", "plain"))
    judged = method.judge(claim, np.divide(plain[cost], fast[cost]).tolist(), bound=claim["times"])
    ratio = judged.ends
    gain = method.judge(claim, np.subtract(fast["exact"], plain["exact"]).tolist()).ends
    if not np.isfinite([*plain[cost], *fast[cost]]).all():
        raise Refused(f"cost={cost!r} is not counted for objective={models[0].config.objective!r}; use cost='calls'.")
    base = np.mean(plain[cost])
    shown = "; ".join(
        f"{name} {base / np.mean(row[cost]):.1f}x, {100 * np.mean(row['exact']):.1f}%, "
        f"{np.mean(row['calls']):.1f} calls, {np.mean(row['seconds']):.3f} s"
        for name, row in figures.items()
    )
    return [
        Evidence(
            statement=claim["statement"],
            published=claim["published"],
            measured=f"{ratio[0]:.1f} times fewer {COSTS[cost]} [{ratio[1]:.1f}, {ratio[2]:.1f}], exact answers "
            f"{100 * gain[0]:+.1f} points [{100 * gain[1]:+.1f}, {100 * gain[2]:+.1f}]; {shown}",
            scale=arms.scale(found, seeds),
            verdict=verdict(ratio, gain, claim["times"], claim["within"]),
            numbers={**judged.numbers, "seeds": list(seeds), "ratio": ratio, "gain": gain, "curve": figures},
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

    FLOPs are those of the forward passes, the guide's included; a multiply-add is 2. Each token that a call is fed is
    counted as seeing the whole row, whatever the mask. They are NaN if the generator does not report the tokens it fed.

    Args:
      changes: of `config.generate`, a nested dict.
    """
    options = merged(model.config.generate.to_dict(), changes)
    answer, found, seconds = _answerer(model, guide, options), [], []
    for batch in inputs.eval_batches(model.config, model.corpus):
        begun = time.perf_counter()
        tokens, calls, flops = answer(batch)
        seconds.append((time.perf_counter() - begun) / len(tokens))
        judged = answers.judge(batch, tokens, calls, model.corpus.valid.task.end)
        found.append({"flops": float(np.mean(flops)), "calls": judged["calls"], "exact": judged["exact"]})
    means = {key: float(np.mean([row[key] for row in found])) for key in ("flops", "calls", "exact")}
    return means | {"seconds": float(np.mean(seconds[1:]))}


def merged(options: Mapping[str, Any], changes: Mapping[str, Any], prefix: str = "generate.") -> dict[str, Any]:
    """`options` with the nested dict `changes` merged in. Raises Refused for a key that is not in the config."""
    made = dict(options)
    for key, value in changes.items():
        if key not in made:
            raise Refused(
                f"settings: {prefix}{key} is not a key of the config; {suggest(key, made)}known: {list(made)}."
            )
        made[key] = merged(made[key], value, f"{prefix}{key}.") if isinstance(made[key], Mapping) else value
    return made


def _answerer(model: Any, guide: Any, options: Mapping[str, Any]) -> Callable[[dict], tuple]:
    """batch -> (tokens `[B, T]`, calls `[B]`, FLOPs `[B]`)."""
    generator = model.program.objective.generator
    if generator == "autoregressive":
        raise Refused(f"objective={model.config.objective!r} fills no answers in; the check curve needs one that does.")
    if generator != "canvas":
        answer = answers.drawn(model, **options)
        return lambda batch: (*answer(batch), np.nan)
    filler = Filler(model.program, model.corpus.tokenizer, guide)
    cost = counting.flops_per_token(model.program)["total"] / 3
    beside = counting.flops_per_token(guide.program)["total"] / 3 if guide else 0.0

    def fill(batch: dict) -> tuple:
        tokens, work = filler.answered(model.params, batch, options)
        return tokens, work.calls, work.fed * cost + (work.guided * beside if guide else 0.0)

    return fill
