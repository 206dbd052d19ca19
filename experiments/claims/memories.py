"""Check: what policies of `generate.memory` cost a trained model, setting against setting.

The claim has `base`; `arms` ({name: {dotted key: value}}, each trained); `lines` ({name: {point: changes of
`config.generate`}}, points being numbers as text), or in their place `policies` and `budgets`, a line a policy and a
point a number of tokens (`budgets.options_at`), and "full" beside them; `axis` (what points are); `contrasts`, each
with `statement`, `published`, `measure` (a name in MEASURES), `better` and `worse` (arm, line and point each); and
`seeds`. `generate` (changes of `config.generate`) is what policies have beside their budgets. `reads` ({arm: lines})
leaves lines out that an arm cannot be read by. `length` reads rows of so many tokens, whatever was trained, and
`prompt` so many of them at once; without them rows are as trained, and half of each is a prompt. The same held-out rows
are read in every setting.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.claims import arms, method
from experiments.claims.curve import merged
from experiments.claims.evidence import Evidence
from experiments.generation import budgets, memories
from experiments.program import inputs
from experiments.workdir import trained
from models.mixers.memory import group

MEASURES = {  # name: (what it is, 1 or -1 where less is better)
    "bits_per_byte": ("held-out bits per byte", -1),
    "accuracy": ("share of answered tokens that are right", 1),
    "exact": ("share of rows without a wrong answer", 1),
    "kept_mass": ("share of attention that is kept", 1),
}
FIGURE = "memories"
Cell = tuple[str, str, str]  # arm, line, point


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains every arm with every seed, reads the same rows in every setting, and compares by seed."""
    seeds, lines = claim["seeds"], lines_of(claim)
    found = arms.train(claim["base"], claim["arms"], seeds, workdir, jobs=jobs, quiet=quiet)
    values: dict[Cell, list[dict[str, float]]] = {}
    for arm, runs in found.items():
        for row in runs:
            model = trained.load(row["workdir"])
            rows, kept = rows_of(model, claim), memories.kept_in(model, row["workdir"])
            kept["about"] |= {key: claim[key] for key in ("length", "prompt") if key in claim}
            for line, points in lines.items():
                if line not in claim.get("reads", {}).get(arm, lines):
                    continue
                for point, changes in points.items():
                    options = merged(model.config.generate.to_dict(), changes)
                    read = memories.evaluate(rows, options, **kept)
                    values.setdefault((arm, line, point), []).append(read)
    table = {
        measure: {cell: [read[f"memory/{measure}"] for read in reads] for cell, reads in values.items()}
        for measure in MEASURES
    }
    for measure in {contrast["measure"] for contrast in claim["contrasts"]}:
        draw(claim, measure, table[measure], workdir / f"{FIGURE}-{measure}")
    numbers = {"seeds": list(seeds), **{measure: nested(cells) for measure, cells in table.items()}}
    scale = f"{arms.scale(found, seeds)}; {claim['base'].eval.rows} held-out rows"
    return [judged(claim, contrast, table, numbers, scale) for contrast in claim["contrasts"]]


def rows_of(model: Any, claim: Mapping[str, Any]) -> memories.Rows:
    """The held-out rows of a trained model, of `claim["length"]` tokens where that is given."""
    config = model.config.copy_and_resolve_references().unlock()
    config.data.length = claim.get("length", config.data.length)
    batches = list(inputs.eval_batches(config, model.corpus, model.program.rows))
    prompt = claim.get("prompt", config.data.length // 2)
    return memories.Rows(model.program, model.params, batches, model.tokenizer.token_bytes, prompt, timed=False)


def judged(
    claim: Mapping[str, Any], contrast: Mapping[str, Any], table: Mapping[str, Mapping[Cell, Sequence[float]]],
    numbers: Mapping[str, Any], scale: str,
) -> Evidence:  # fmt: skip
    """The row of a contrast."""
    label, sign = MEASURES[contrast["measure"]]
    cells = table[contrast["measure"]]
    better, worse = (tuple(contrast[side]) for side in ("better", "worse"))
    found = method.judge(claim, (sign * np.subtract(cells[better], cells[worse])).tolist(), pair=contrast)
    shown = "; ".join(f"{', '.join(filter(None, cell))}: {np.mean(cells[cell]):.4f}" for cell in (better, worse))
    return found.row(contrast, f"{label}: {shown}; the first ahead by {found.text()}", scale, numbers)


def nested(cells: Mapping[Cell, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """{arm: {line: {point: value}}}, as JSON has it."""
    made: dict[str, dict[str, dict[str, Any]]] = {}
    for (arm, line, point), value in cells.items():
        made.setdefault(arm, {}).setdefault(line, {})[point] = value
    return made


def draw(claim: Mapping[str, Any], measure: str, cells: Mapping[Cell, Sequence[float]], path: pathlib.Path) -> None:
    """Means over seeds against the points, a line a line of the claim and an arm; a line of one point is level."""
    from experiments.scaling import plots

    marks = "osv^<>DPX*ph8d"
    with plots.drawing(5.2, 3.4) as (figure, axes):
        lines = [(arm, line, points) for arm, by in nested(cells).items() for line, points in by.items()]
        for i, (arm, line, points) in enumerate(lines):
            name = line if len(claim["arms"]) == 1 else f"{arm}, {line}"
            x, y = [float(point) for point in points], [np.mean(value) for value in points.values()]
            error = [np.std(value, ddof=1) if len(value) > 1 else 0.0 for value in points.values()]
            if len(x) == 1:
                axes.axhline(y[0], color="#333333", ls="--", lw=0.8, label=name)
                continue
            axes.errorbar(x, y, error, marker=marks[i % len(marks)], ms=3, lw=0.8, color=f"C{i}", label=name)
        axes.set(xlabel=claim["axis"], ylabel=MEASURES[measure][0])
        axes.legend(fontsize=5, ncols=2)
        plots.save(figure, path, ("svg", "png"))


def lines_of(claim: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{line: {point: changes of `config.generate`}}: the claim's own lines, or its policies at its budgets, beside the
    full cache as a line of one point."""
    if "lines" in claim:
        return claim["lines"]
    length, generate = claim.get("length", claim["base"].data.length), claim["base"].generate.to_dict()
    generate = merged(generate, claim.get("generate", {}))
    prompt = claim.get("prompt", length // 2)
    lines: dict[str, dict[str, Any]] = {"full": {str(max(claim["budgets"])): {"memory": "full"}}}
    counts = ", ".join(map(str, claim["budgets"]))
    for name, budget, options in budgets.settings(generate, ", ".join(claim["policies"]), counts, length, prompt):
        changes = {key: options[key] for key in ("memory", "max_tokens", group(name))}
        lines.setdefault(name, {})[str(budget)] = changes
    return lines
