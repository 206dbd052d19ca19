"""Check: what drafts are worth, in tokens for each call of the model, setting against setting.

The claim has `base` and `draft` ({dotted key: value} of the smaller run that some drafters read), `settings`
({name: {key of generate: value}}; groups within groups; a drafter that reads a run is given the smaller one),
`contrasts`, each with `statement`, `published`, `better` and `worse` (settings; "" is one token a call), and `seeds`.
Texts are written behind held-out prompts.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import generation
from experiments.claims import arms, method
from experiments.claims.curve import merged
from experiments.claims.evidence import Evidence
from experiments.generation import drafted, held_out
from experiments.generation.drafted import Drafted
from experiments.program import inputs
from experiments.workdir import trained
from models.decoding.drafts import DRAFTERS


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains model and draft with every seed, writes texts in every setting, and compares by seed."""
    seeds, runs = claim["seeds"], {"model": {}, "draft": claim["draft"]}
    found = arms.train(claim["base"], runs, seeds, workdir, jobs=jobs, quiet=quiet)
    values: dict[str, list[Drafted]] = {name: [] for name in claim["settings"]}
    for target, small in zip(found["model"], found["draft"], strict=True):
        model = trained.load(target["workdir"])
        maker = generation.make(model.program, model.tokenizer)
        asked = held_out.prompts(model, inputs.eval_batches(model.config, model.corpus, (0, 1)))
        for name, changes in claim["settings"].items():
            options = merged(model.config.generate.to_dict(), with_run(changes, str(small["workdir"])))
            maker(model.params, asked, options, seed=model.config.seed)
            values[name].append(maker.drafted)
    scale = f"{arms.scale(found, seeds)}; texts behind {held_out.ROWS} held-out prompts"
    return [_row(claim, contrast, values, scale) for contrast in claim["contrasts"]]


def with_run(changes: Mapping[str, Any], workdir: str) -> dict[str, Any]:
    """`changes` of generate with the smaller run's workdir, where the drafter reads one."""
    name = changes["drafter"]
    if not DRAFTERS[name].runs:
        return dict(changes)
    own = dict.fromkeys(DRAFTERS[name].runs, workdir)
    return {**changes, name: {**changes.get(name, {}), **own}}


def _row(
    claim: Mapping[str, Any], contrast: Mapping[str, Any], values: Mapping[str, Sequence[Drafted]], scale: str
) -> Evidence:
    seeds = claim["seeds"]
    better, worse = ([each.per_call for each in values[name]] if name else [1.0] * len(seeds) for name in (
        contrast["better"], contrast["worse"],
    ))  # fmt: skip
    judged = method.judge(claim, [a - b for a, b in zip(better, worse, strict=True)], pair=contrast)
    shown = "; ".join(
        f"{name} {sum(each.per_call for each in values[name]) / len(seeds):.2f}"
        for name in (contrast["better"], contrast["worse"])
        if name
    )
    stays = [drafted.acceptance(each.wrote).tolist() for each in values[contrast["better"]]]
    numbers = {
        "seeds": list(seeds), "better": better, "worse": worse, "stays_by_depth": stays,
        "tokens_a_call": {name: [each.per_call for each in some] for name, some in values.items()},
    }  # fmt: skip
    return judged.row(contrast, f"tokens a call: {shown}; difference {judged.text(2)}", scale, numbers)
