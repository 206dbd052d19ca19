"""All policies of `generate.memory` at several budgets: one table and one figure, quality against bytes.

Each pair of a policy and a budget is an evaluation of `memories`, whose results of batches stay in the workdir: a
killed sweep goes on where it stopped.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments import workdir as files
from experiments.generation import memories
from experiments.settings.errors import ConfigError
from experiments.settings.keys import suggest
from models.mixers.memory import group

FIELDS = ("bits_per_byte", "accuracy", "exact", "kept_mass", "best_mass", "state_bytes", "tokens_per_second")
HALF = ("h2o", "a2sf", "keyformer", "scissorhands", "ems", "random")  # half of their budget is for recent tokens
POLICIES = (
    "streaming", *HALF, "tova", "snap", "pyramid", "prefix_kv", "elastic", "token_select", "quest",
)  # fmt: skip


def options_at(name: str, options: Mapping[str, Any], budget: int) -> dict[str, Any]:
    """The options of a policy for `budget` tokens a layer: what always stays is cut to fit, the rest is as given.

    Half of the budget is for recent tokens (h2o, a2sf, keyformer, scissorhands, ems, random) or, at most, for the
    window of the prompt's end (snap, pyramid); sinks, first and last tokens of token_select and pages of quest are at
    most a quarter of it each.
    """
    quarter, made = max(1, budget // 4), dict(options) | {"budget": float(budget)}
    made |= {"bytes": 0} if "bytes" in made else {}
    made |= {"sinks": min(made["sinks"], quarter)} if "sinks" in made else {}
    if name in HALF:
        made["recent"] = float(budget // 2)
    elif name in ("snap", "pyramid"):
        made["window"] = max(1, min(made["window"], budget // 2))
    elif name == "token_select":
        made |= {key: min(made[key], quarter) for key in ("initial", "local")}
        made["budget"] = float(max(1, budget - made["initial"] - made["local"]))
    elif name == "quest":
        made["page"] = min(made["page"], quarter)
        made["least"] = min(made["least"], budget // made["page"])
    return made


def settings(generate: Mapping[str, Any], policies: str, budgets: str, length: int, prompt: int) -> Iterator[tuple]:
    """(policy, budget in tokens, `config.generate` of it) of every pair, in order.

    Args:
      generate: `config.generate` as a plain dict, whose options hold but for what a budget decides.
      policies: `eval.memories`; budgets: `eval.budgets`.
      length: tokens of a row; prompt: those that are read at once.

    Errors: ConfigError for a name or a budget that is none.
    """
    named = POLICIES if policies.strip() == "all" else [name.strip() for name in policies.split(",") if name.strip()]
    for name in named:
        if name not in POLICIES:
            hint = suggest(name, POLICIES)
            raise ConfigError([
                f"eval.memories={policies!r}: {name!r} has no budget; {hint}use 'all' or some of {', '.join(POLICIES)}."
            ])  # fmt: skip
    counts = sorted({_tokens(budget.strip(), budgets, prompt) for budget in budgets.split(",")})
    for name in named:
        options = generate.get(group(name), {})
        for budget in counts:
            at = {group(name): options_at(name, options, budget)}
            yield name, budget, dict(generate) | at | {"memory": name, "max_tokens": length - prompt}


def _tokens(text: str, budgets: str, prompt: int) -> int:
    """A budget in tokens, of a number of them or of a share of the prompt."""
    try:
        value = float(text)
        count = int(value if value >= 1 else value * prompt)
    except (ValueError, OverflowError):
        value = count = 0
    if count < 2 or (value >= 1 and value != count):
        raise ConfigError([
            f"eval.budgets={budgets!r}: {text!r} is no number of tokens from 2 on, nor such a share of {prompt} tokens "
            "of a prompt; use e.g. '16, 32, 0.5'."
        ])  # fmt: skip
    return count


def of_run(model: Any, workdir: pathlib.Path | None) -> str:
    """Evaluates a trained model under all of `eval.memories` at all of `eval.budgets`; a table in words.

    With a workdir the table is also `memories/budgets.json` there, and the figure `budgets.svg` and `.png`. Errors: as
    `memories.check`; ConfigError for what `settings` refuses.
    """
    config = model.config
    length, prompt = config.data.length, config.eval.prompt or config.data.length // 2
    asked = list(settings(config.generate.to_dict(), config.eval.memories, config.eval.budgets, length, prompt))
    for _, _, options in asked:
        memories.check(model, options)
    rows, kept, found = memories.rows_of(model), memories.kept_in(model, workdir), []
    for name, budget, options in asked:
        result = memories.evaluate(rows, options, **kept)
        found.append(point(name, budget, result, len(rows.batches[0]["tokens"])))
    if workdir is not None:
        folder = workdir / files.MEMORIES
        files.write_json(folder / f"{files.BUDGETS}.json", {"points": found, "about": kept["about"], "prompt": prompt})
        draw(found, folder / files.BUDGETS)
    return table(found)


def point(name: str, budget: int, result: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """What a sweep keeps of an evaluation: FIELDS of the policy and of the full cache, bytes a row of `batch` rows."""
    of = {by + field: result.get(f"memory/{by}{field}") for by in ("", "full_") for field in FIELDS}
    of |= {key: value / batch for key, value in of.items() if key.endswith("state_bytes")}
    known = {key: value for key, value in of.items() if value is not None}
    return {"policy": name, "budget": budget, **known, "difference_se": result["memory/difference_se"]}


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """A line a policy and budget, and one of the full cache."""
    head = f"{'policy':14}{'tokens':>7}{'bits/byte':>11}{'right':>8}{'exact':>8}{'kept':>8}{'at best':>9}{'kB/row':>10}"
    full = {field: found[0].get(f"full_{field}", 1.0) for field in FIELDS}
    rows = [{"policy": "full", "budget": "", **full}, *found]
    lines = [
        f"{row['policy']:14}{row['budget']:>7}{row['bits_per_byte']:11.4f}{row['accuracy']:8.1%}{row['exact']:8.1%}"
        f"{row['kept_mass']:8.1%}{row['best_mass']:9.1%}{row['state_bytes'] / 1000:10.1f}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def draw(found: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Bits per byte, right tokens and kept attention against bytes of state a row, a line a policy; svg and png."""
    from experiments.scaling import plots

    panels = (
        ("bits_per_byte", "held-out bits per byte"), ("accuracy", "share of tokens that are right"),
        ("kept_mass", "share of attention that is kept"),
    )  # fmt: skip
    marks = "osv^<>DPX*ph8d"
    with plots.drawing(9.6, 3.0, len(panels)) as (figure, axes):
        for panel, (field, label) in zip(axes, panels, strict=True):
            for i, name in enumerate(dict.fromkeys(row["policy"] for row in found)):
                mine = [row for row in found if row["policy"] == name]
                x, y = (np.array([row[key] for row in mine]) for key in ("state_bytes", field))
                panel.plot(x / 1000, y, marker=marks[i % len(marks)], ms=3, color=f"C{i}", label=name, lw=0.8)
            if f"full_{field}" in found[0]:
                panel.axhline(found[0][f"full_{field}"], color="#333333", lw=0.8, ls="--")
            panel.axvline(found[0]["full_state_bytes"] / 1000, color="#333333", lw=0.4, ls=":")
            panel.set(xlabel="kB of state a row (dotted: the full cache)", ylabel=label, xscale="log")
        axes[0].legend(fontsize=5, ncols=2)
        plots.save(figure, path, ("svg", "png"))
