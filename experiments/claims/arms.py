"""The runs of a claim: arms by seeds, as trials of a sweep."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments import sweep
from experiments.claims.evidence import RUNS
from experiments.program import build, counting, inputs, sharding
from experiments.settings.errors import Refused
from experiments.sweep import table, trials


def train(
    base: ConfigDict,
    arms: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    workdir: pathlib.Path,
    *,
    jobs: int,
    quiet: bool,
) -> dict[str, list[dict[str, Any]]]:
    """Trains every arm ({dotted key: value} on `base`) with every seed; returns its rows by arm, in order of the seeds.

    A row is a dict: the columns of a sweep's table and `workdir`. Raises Refused if a run failed.
    """
    points = {(arm, seed): {**values, "seed": seed} for arm, values in arms.items() for seed in seeds}
    made = trials.resolve(base, list(points.values()), workdir=workdir / RUNS)
    if len(made) < len(points):
        raise Refused("two arms of the claim have the same config; let them differ.")
    found = sweep.run_trials(made, workdir / RUNS, jobs=jobs, command=str(workdir), quiet=quiet)
    if failed := [row for row in found if row["status"] != "finished"]:
        reasons = "\n".join(f"  {row['name']} ({row['hash']}): {row['error']}" for row in failed)
        raise Refused(f"{len(failed)} of {len(found)} runs failed; the same command tries them again:\n{reasons}")
    result: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for (arm, _), row in zip(points, found, strict=True):
        result[arm].append(row | {"workdir": workdir / RUNS / row["hash"]})
    return result


def flops_per_step(config: Any) -> float:
    """Training FLOPs of one step of `config`."""
    corpus = inputs.load(config)
    program = build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=sharding.make_mesh(config))
    return counting.flops_per_token(program)["total"] * config.data.batch_size * config.data.length


def equalise(base: ConfigDict, arms: Mapping[str, dict[str, Any]], model: str) -> None:
    """Sets `train.steps` of every arm, in place, such that it costs as many training FLOPs as the arm `model`; an arm
    that says how many steps it takes keeps them."""
    configs = {arm: trials.resolve(base, [values])[0].config for arm, values in arms.items()}
    spent = configs[model].train.steps * flops_per_step(configs[model])
    for arm, config in configs.items():
        if "train.steps" not in arms[arm]:
            arms[arm]["train.steps"] = max(1, round(spent / flops_per_step(config)))


def compare(found: Mapping[str, Sequence[Mapping[str, Any]]], workdir: pathlib.Path) -> None:
    """Writes comparison.html of all runs, which have the names of their arms."""
    from experiments import report

    names = [arm for arm, rows in found.items() for _ in rows]
    workdirs = [row["workdir"] for rows in found.values() for row in rows]
    report.compare(workdirs, workdir / table.COMPARISON, names)


def scale(found: Mapping[str, Sequence[Mapping[str, Any]]], seeds: Sequence[int]) -> str:
    """The column `scale` of a row: parameters, tokens and seeds in words."""
    rows = [row for rows in found.values() for row in rows]

    def span(key: str) -> str:
        ends = sorted({row[key] for row in rows})
        texts = [f"{end / 1e6:.2f}" for end in (ends[0], ends[-1])]
        return f"{texts[0] if texts[0] == texts[1] else ' to '.join(texts)} M {key}"

    return f"{span('parameters')}, {span('tokens')}, {len(seeds)} seeds"
