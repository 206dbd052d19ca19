"""Check: a model grown from a smaller one, against rivals trained from scratch with the same FLOPs.

Keys of the claim:
  arms: configs of small, large and the rivals beside `large` itself.
  rivals: {arm: (statement, published)}.
  steps: before growth and after it.
  seeds: of the runs.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import arms, method
from experiments.claims.evidence import Evidence
from experiments.program import inputs
from experiments.training import evaluate
from experiments.workdir import grown, trained
from experiments.workdir.saved import saved_config
from models import growth


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains small, grows it by each seed, trains on; trains every rival for the FLOPs of both; compares by seed."""
    seeds, steps, configs = claim["seeds"], claim["steps"], claim["arms"]

    def go(name: str, arm: Mapping[str, Any], count: int, some=seeds) -> list[dict[str, Any]]:
        given = {name: {**arm, "train.steps": count}}
        return arms.train(configs[name], given, some, workdir, jobs=jobs, quiet=quiet)[name]

    found = {"small": go("small", {}, steps[0])}
    found["grown"] = [
        go("large", {"init.grow_from": str(small["workdir"])}, steps[1], (seed,))[0]
        for seed, small in zip(seeds, found["small"], strict=True)
    ]
    flops = found["small"][0]["flops"] + found["grown"][0]["flops"]
    for name in claim["rivals"]:
        found[name] = go(name, {}, max(1, round(flops / arms.flops_per_step(configs[name]))))
    arms.compare(found, workdir)
    changed = max(map(change_by_growth, found["small"], found["grown"]))
    spent = {name: found[name][0]["flops"] / flops for name in claim["rivals"]}
    return [
        _row(claim, name, arms.scale(found, seeds), {
            "seeds": list(seeds), "steps": list(steps), "flops_over_grown": spent[name],
            "change_of_loss_by_growth": changed,
            "losses": {arm: [row["loss"] for row in rows] for arm, rows in found.items()},
        })
        for name in claim["rivals"]
    ]  # fmt: skip


def change_by_growth(small: Mapping[str, Any], large: Mapping[str, Any]) -> float:
    """How much growth alone moves the held-out loss, relative to it."""
    options = saved_config(large["workdir"]).model.pattention
    sizes = {name: options[name] for name in growth.SIZES}
    values = []
    for made in (trained.load(small["workdir"]), grown.grow(small["workdir"], **sizes)):
        held_out = inputs.eval_batches(made.config, made.corpus)
        step = evaluate.make_step(made.program)
        result = evaluate.evaluate(made.program, step, made.params, held_out, made.corpus.tokenizer.token_bytes)
        values.append(result["eval/loss"])
    return abs(values[1] / values[0] - 1)


def _row(claim: Mapping[str, Any], rival: str, scale: str, numbers: dict[str, Any]) -> Evidence:
    """Mean difference in nats, grown minus rival, paired by seed."""
    losses = numbers["losses"]
    judged = method.judge(claim, np.subtract(losses[rival], losses["grown"]).tolist())
    statement, published = claim["rivals"][rival]
    return Evidence(
        statement=statement,
        published=published,
        measured=f"{-judged.mean:+.4f} nats [{-judged.high:+.4f}, {-judged.low:+.4f}]; growth alone moves the loss by "
        f"{numbers['change_of_loss_by_growth']:.0e} of it",
        scale=scale,
        verdict=judged.verdict,
        numbers=numbers | judged.numbers | {"mean": -judged.mean, "low": -judged.high, "high": -judged.low},
    )
