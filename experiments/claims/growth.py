"""Check: a model grown from smaller ones, against rivals trained from scratch with the same FLOPs.

Keys of the claim:
  base: the config of every run. `tune` trains the arms as they stand on it, from scratch for its own steps.
  arms: {name: {dotted key: value}} on `base`: the sizes to grow through, and the rivals.
  chain: two arms or more, from the smallest to the largest; each is grown from the one before it.
  steps: of each of them.
  rivals: {arm: (statement, published)}, each trained from scratch for the FLOPs of the whole chain.
  seeds: of the runs.

The first row keeps the held-out curves over FLOPs, of the grown model along the whole chain, and its page draws them.
"""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.claims import arms, held_out, method
from experiments.claims.evidence import Evidence
from experiments.program import inputs
from experiments.sweep import trials
from experiments.training import evaluate
from experiments.workdir import grown, trained
from experiments.workdir.saved import saved_config
from models import growth

GROWN = "grown"


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains the smallest, grows it by each seed, trains on; trains every rival for the FLOPs of all; compares by
    seed."""
    seeds = claim["seeds"]

    def go(name: str, more: Mapping[str, Any], some: Sequence[int] = seeds) -> list[dict[str, Any]]:
        given = {name: {**claim["arms"][name], **more}}
        return arms.train(claim["base"], given, some, workdir, jobs=jobs, quiet=quiet)[name]

    first, *larger = claim["chain"]
    stages = [go(first, {"train.steps": claim["steps"][0]})]
    for name, steps in zip(larger, claim["steps"][1:], strict=True):
        stages.append([
            go(name, {"train.steps": steps, "init.grow_from": str(row["workdir"])}, (seed,))[0]
            for seed, row in zip(seeds, stages[-1], strict=True)
        ])  # fmt: skip
    flops = sum(rows[0]["flops"] for rows in stages)
    found = {f"{GROWN}: {name}": rows for name, rows in zip(claim["chain"], stages, strict=True)}
    for name in claim["rivals"]:
        config = trials.resolve(claim["base"], [claim["arms"][name]])[0].config
        found[name] = go(name, {"train.steps": max(1, round(flops / arms.flops_per_step(config)))})
    arms.compare(found, workdir)
    changes = [change_by_growth(*pair) for stage in itertools.pairwise(stages) for pair in zip(*stage, strict=True)]
    numbers = {
        "seeds": list(seeds), "steps": list(claim["steps"]), "change_of_loss_by_growth": max(changes),
        "losses": {arm: [row["loss"] for row in rows] for arm, rows in found.items()},
    }  # fmt: skip
    numbers["losses"][GROWN] = numbers["losses"].pop(f"{GROWN}: {claim['chain'][-1]}")
    spent = {name: found[name][0]["flops"] / flops for name in claim["rivals"]}
    scale = arms.scale(found, seeds)
    made = [_row(claim, name, scale, {**numbers, "flops_over_grown": spent[name]}) for name in claim["rivals"]]
    made[0].numbers["curves"] = {GROWN: curve(stages)} | {name: curve([found[name]]) for name in claim["rivals"]}
    return made


def curve(stages: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The held-out evaluations of stages that follow one another: `flops` [n], and `bits_per_byte` a list a seed.

    Args:
      stages: rows by seed of each stage; its FLOPs begin where those of the stage before it ended.
    """
    flops, before = [], 0.0
    bits: list[list[float]] = [[] for _ in stages[0]]
    for rows in stages:
        made = held_out.curves(rows)
        flops += [before + rows[0]["flops"] * epoch / made["epochs"][-1] for epoch in made["epochs"]]
        bits = [so_far + each for so_far, each in zip(bits, made["bits_per_byte"], strict=True)]
        before += rows[0]["flops"]
    return {"flops": flops, "bits_per_byte": bits}


def change_by_growth(small: Mapping[str, Any], large: Mapping[str, Any]) -> float:
    """How much growth alone moves the held-out loss, relative to it."""
    options = saved_config(large["workdir"]).model.pattention
    sizes = {name: options[name] for name in growth.SIZES}
    values = []
    for made in (trained.load(small["workdir"]), grown.grow(small["workdir"], **sizes)):
        batches = inputs.eval_batches(made.config, made.corpus)
        step = evaluate.make_step(made.program)
        result = evaluate.evaluate(made.program, step, made.params, batches, made.corpus.tokenizer.token_bytes)
        values.append(result["eval/loss"])
    return abs(values[1] / values[0] - 1)


def _row(claim: Mapping[str, Any], rival: str, scale: str, numbers: dict[str, Any]) -> Evidence:
    """Mean difference in nats, grown minus rival, paired by seed."""
    losses = numbers["losses"]
    judged = method.judge(claim, np.subtract(losses[rival], losses[GROWN]).tolist())
    statement, published = claim["rivals"][rival]
    return Evidence(
        statement=statement,
        published=published,
        measured=f"grown {np.mean(losses[GROWN]):.4f} nats, {rival} {np.mean(losses[rival]):.4f}: {-judged.mean:+.4f} "
        f"[{-judged.high:+.4f}, {-judged.low:+.4f}]; growth alone moves the loss by "
        f"{numbers['change_of_loss_by_growth']:.0e} of it",
        scale=scale,
        verdict=judged.verdict,
        numbers=numbers | judged.numbers | {"mean": -judged.mean, "low": -judged.high, "high": -judged.low},
    )
