"""Check: what drafts are worth, in tokens for each call of the model, setting against setting.

The claim has `base` and `draft` ({dotted key: value} of the smaller run that some drafters read; left away where none
does), `settings` ({name: {key of generate: value}}; groups within groups; a drafter that reads a run is given the
smaller one; "of" names the run that writes, MODEL where it is left away), `contrasts`, each with `statement`,
`published`, `better` and `worse` (settings; "" is one token a call), and `seeds`. Other runs that may write: `taught`
({name: {dotted key: value}}), each begun with the parameters of the model of its seed. A contrast with `bits` compares
held-out bits per byte of two runs in place of tokens a call. Texts are written behind held-out prompts.
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

MODEL, DRAFT = "model", "draft"


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains model, draft and the other runs with every seed, writes texts in every setting, and compares by seed."""
    seeds, taught = claim["seeds"], claim.get("taught", {})
    runs = {MODEL: {}} | ({DRAFT: claim["draft"]} if "draft" in claim else {})
    found = arms.train(claim["base"], runs, seeds, workdir, jobs=jobs, quiet=quiet)
    for name, given in taught.items():
        starts = [{name: given | {"init.warm_start": str(row["workdir"])}} for row in found[MODEL]]
        each = zip(seeds, starts, strict=True)
        found[name] = [
            arms.train(claim["base"], start, (seed,), workdir, jobs=jobs, quiet=quiet)[name][0] for seed, start in each
        ]
    values: dict[str, list[Drafted]] = {name: [] for name in claim["settings"]}
    for at in range(len(seeds)):
        small = str(found[DRAFT][at]["workdir"]) if DRAFT in found else ""
        for name in (name for name in found if name != DRAFT):
            mine = {key: changes for key, changes in claim["settings"].items() if changes.get("of", MODEL) == name}
            for key, drafted_ in _written(found[name][at]["workdir"], mine, small).items():
                values[key].append(drafted_)
    scale = f"{arms.scale(found, seeds)}; texts behind {held_out.ROWS} held-out prompts"
    bits = {name: [row["eval/bits_per_byte"] for row in rows] for name, rows in found.items()}
    return [_row(claim, contrast, values, bits, scale) for contrast in claim["contrasts"]]


def _written(workdir: pathlib.Path, settings: Mapping[str, Mapping[str, Any]], small: str) -> dict[str, Drafted]:
    """What drafts were worth to the run of `workdir` in each setting."""
    if not settings:
        return {}
    model = trained.load(workdir)
    maker = generation.make(model.program, model.tokenizer)
    asked = held_out.prompts(model, inputs.eval_batches(model.config, model.corpus, (0, 1)))
    made = {}
    for name, changes in settings.items():
        given = {key: value for key, value in changes.items() if key != "of"}
        options = merged(model.config.generate.to_dict(), with_run(given, small))
        maker(model.params, asked, options, seed=model.config.seed)
        made[name] = maker.drafted
    return made


def with_run(changes: Mapping[str, Any], workdir: str) -> dict[str, Any]:
    """`changes` of generate with the smaller run's workdir, where the drafter reads one."""
    name = changes["drafter"]
    if not DRAFTERS[name].runs:
        return dict(changes)
    own = dict.fromkeys(DRAFTERS[name].runs, workdir)
    return {**changes, name: {**changes.get(name, {}), **own}}


def _row(
    claim: Mapping[str, Any],
    contrast: Mapping[str, Any],
    values: Mapping[str, Sequence[Drafted]],
    bits: Mapping[str, Sequence[float]],
    scale: str,
) -> Evidence:
    seeds, pair = claim["seeds"], (contrast["better"], contrast["worse"])
    calls = {name: [each.per_call for each in some] for name, some in values.items()}
    table = bits if contrast.get("bits") else calls | {"": [1.0] * len(seeds)}
    better, worse = (table[name] for name in pair)
    sign = -1 if contrast.get("bits") else 1
    judged = method.judge(claim, [sign * (a - b) for a, b in zip(better, worse, strict=True)], pair=contrast)
    digits = 4 if contrast.get("bits") else 2
    shown = "; ".join(f"{name} {sum(table[name]) / len(seeds):.{digits}f}" for name in pair if name)
    numbers = {"seeds": list(seeds), "better": better, "worse": worse, "tokens_a_call": calls, "bits_per_byte": bits}
    what = "held-out bits per byte"
    if not contrast.get("bits"):
        what = "tokens a call"
        numbers["stays_by_depth"] = [drafted.acceptance(each.wrote).tolist() for each in values[contrast["better"]]]
    return judged.row(contrast, f"{what}: {shown}; difference {judged.text(digits)}", scale, numbers)
