"""Check: the loss of one arm falls with compute by a larger exponent than that of another, paired by seed.

Every arm is trained at every size for the same number of tokens a parameter, so that model and data grow together. Of
each arm and seed the exponent is the slope of log(loss - floor) in the log of training FLOPs over the sizes
(`experiments.scaling.slope`); a row is the difference of two. Keys of the claim:

  base: the config of every run. `tune` trains the arms as they stand on it: at its own size, for its own steps.
  arms: {name: {dotted key: value}} on `base`.
  sizes: {name: {dotted key: value}}, two or more; a value may be a function of the config that the arm and the plain
    values make, so that a rate that was tuned at the base's size follows the width. `train.steps` is set for each run.
  tokens_per_parameter: of every run, in steps rounded to whole ones.
  floor: E, nats that no model gets below, of all arms; 0 if it is missing: exponents are then those of the loss.
  pairs: [{"statement", "published", "better", "worse"}]: arms; better is who has the larger exponent.
  score: "loss", by which `tune` chooses.
  seeds: of the runs.

A control may read `exponents`, by arm, or `lowest`, the smallest exponent of any arm by seed.
"""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import arms, method
from experiments.claims.evidence import Evidence
from experiments.program import build, counting, inputs, sharding
from experiments.scaling import slope
from experiments.settings.errors import Refused
from experiments.sweep import trials

FIGURE = "exponents"


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains every arm at every size with every seed, draws the losses, and compares exponents; a row a pair."""
    if len(claim["sizes"]) < 2:
        raise Refused(f"sizes={list(claim['sizes'])!r} of the claim give no exponent; use at least 2.")
    found = arms.train(claim["base"], grid(claim), claim["seeds"], workdir, jobs=jobs, quiet=quiet)
    arms.compare(found, workdir)

    def by_size(arm: str, key: str) -> dict[str, list[float]]:
        return {size: [row[key] for row in found[_cell(arm, size)]] for size in claim["sizes"]}

    numbers: dict[str, Any] = {"seeds": list(claim["seeds"])}
    for key in ("loss", "flops", "parameters"):
        numbers[key] = {arm: by_size(arm, key) for arm in claim["arms"]}
    numbers |= figures(numbers["flops"], numbers["loss"], claim.get("floor", 0.0))
    _draw(numbers, workdir)
    scale = arms.scale(found, claim["seeds"])
    return [_row(claim, pair, numbers, scale) for pair in claim["pairs"]]


def grid(claim: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{"arm, size": {dotted key: value}} of plain values, with the steps that give each run its tokens a parameter."""
    made = {}
    for (arm, own), (size, given) in itertools.product(claim["arms"].items(), claim["sizes"].items()):
        late = {key: value for key, value in given.items() if callable(value)}
        values = {**own, **{key: value for key, value in given.items() if key not in late}}
        config = trials.resolve(claim["base"], [values])[0].config
        values |= {key: value(config) for key, value in late.items()}
        program = build(config, vocab_size=inputs.load(config).tokenizer.vocab_size, mesh=sharding.make_mesh(config))
        tokens = claim["tokens_per_parameter"] * counting.parameters(program)["total"]
        values["train.steps"] = max(1, round(tokens / (config.data.batch_size * config.data.length)))
        made[_cell(arm, size)] = values
    return made


def figures(flops: Mapping[str, Any], loss: Mapping[str, Any], floor: float) -> dict[str, Any]:
    """`exponents` and `misfit` {arm: by seed}, and `lowest` by seed, of {arm: {size: by seed}}."""
    fits = {}
    for arm in loss:
        C, nats = (np.array(list(table[arm].values()), float).T for table in (flops, loss))
        fits[arm] = [slope.exponent(*one, floor) for one in zip(C, nats, strict=True)]
    exponents = {arm: [alpha for alpha, _ in each] for arm, each in fits.items()}
    misfit = {arm: [error for _, error in each] for arm, each in fits.items()}
    return {"exponents": exponents, "misfit": misfit, "lowest": np.min(list(exponents.values()), axis=0).tolist()}


def _cell(arm: str, size: str) -> str:
    return f"{arm}, {size}"


def _row(claim: Mapping[str, Any], pair: Mapping[str, Any], numbers: Mapping[str, Any], scale: str) -> Evidence:
    """One difference of exponents, better less worse."""
    better, worse = (np.asarray(numbers["exponents"][pair[side]]) for side in ("better", "worse"))
    judged = method.judge(claim, (better - worse).tolist(), pair=pair)
    spent = [value for table in numbers["flops"].values() for by_seed in table.values() for value in by_seed]
    first, *_, last = claim["sizes"]
    each = ", ".join(
        f"{arm} {np.mean(values):.4f} ({np.mean(numbers['loss'][arm][first]):.3f} to "
        f"{np.mean(numbers['loss'][arm][last]):.3f} nats)"
        for arm, values in numbers["exponents"].items()
    )
    floor = f" less {claim['floor']:g} nats" if claim.get("floor") else ""
    measured = (
        f"exponents of the loss{floor} from {min(spent):.2g} to {max(spent):.2g} FLOPs at "
        f"{claim['tokens_per_parameter']:g} tokens a parameter: {each}; {pair['better']} less {pair['worse']} "
        f"{judged.text()}; no line misses its losses by more than {100 * np.max(list(numbers['misfit'].values())):.2g}%"
    )
    return judged.row(pair, measured, scale, numbers)


def _draw(numbers: Mapping[str, Any], folder: pathlib.Path) -> None:
    """`exponents.svg` and `.png`: the loss of each arm against FLOPs, means over seeds, both by logarithm."""
    from experiments.scaling import plots

    with plots.drawing(3.6, 2.8) as (figure, axes):
        for arm, by_size in numbers["loss"].items():
            C, loss = (np.mean(list(table.values()), axis=1) for table in (numbers["flops"][arm], by_size))
            axes.plot(C, loss, marker="o", ms=3, label=f"{arm} {np.mean(numbers['exponents'][arm]):.3f}")
        axes.set(xlabel="training FLOPs", ylabel="held-out loss, nats", xscale="log", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.legend(fontsize=6)
        plots.save(figure, folder / FIGURE, ("svg", "png"))
