"""Check: one arm is better than another at equal compute, paired by seed.

The claim has `base`, `arms` {name: {dotted key: value}}, `seeds`, and `better` and `worse` (names of arms), or several
`pairs` [{"statement", "published", "better", "worse"}], a row each. `score`: what is compared, a name in `SCORES`
("exact" if it is missing). `equal_to`: an arm; every other one trains for as many steps as cost the FLOPs of its own.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data import tasks
from experiments.claims import answers, arms
from experiments.claims.rows import Row, above, interval
from experiments.settings.errors import Refused
from experiments.settings.keys import suggest


@dataclasses.dataclass(frozen=True)
class Score:
    """`of`: figures of one finished run, the one named `name` being compared; `sign` -1: less is better. `text` shows a
    arm by its label ("=", "<=", "~") and mean figures, `difference` three ends of one."""

    name: str
    of: Callable[[Mapping[str, Any]], dict[str, float]]
    sign: int
    text: Callable[[str, Mapping[str, float]], str]
    difference: str


def _likelihood(row: Mapping[str, Any]) -> dict[str, float]:
    return {"bits_per_byte": row["eval/bits_per_byte"]}


def _answers(kind: str, mean: Mapping[str, float]) -> str:
    return f"{100 * mean['exact']:.1f}% exact ({mean['length']:.1f} symbols, {mean['calls']:.1f} calls)"


SCORES = {
    "exact": Score(
        "exact", lambda row: answers.score(row["workdir"]), 1, _answers,
        "{0:+.1%} [{1:+.1%}, {2:+.1%}]",
    ),
    "bits_per_byte": Score(
        "bits_per_byte", _likelihood, -1, lambda kind, mean: f"{kind} {mean['bits_per_byte']:.3f} bits per byte",
        "{0:+.3f} [{1:+.3f}, {2:+.3f}]",
    ),
    "loss": Score(
        "loss", lambda row: {"loss": row["loss"]}, -1, lambda kind, mean: f"{kind} {mean['loss']:.4f} nats a token",
        "{0:+.4f} [{1:+.4f}, {2:+.4f}]",
    ),
}  # fmt: skip


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Row]:
    """Trains every arm with every seed and compares each pair by the claim's score."""
    seeds, name = claim["seeds"], claim.get("score", "exact")
    if name not in SCORES:
        hint = suggest(name, SCORES)
        raise Refused(f"score={name!r} of the claim is unknown; {hint}choose one of: {', '.join(SCORES)}.")
    score = SCORES[name]
    given = {arm: dict(values) for arm, values in claim["arms"].items()}
    if "equal_to" in claim:
        arms.equalise(claim["base"], given, claim["equal_to"])
    found = arms.train(claim["base"], given, seeds, workdir, jobs=jobs, quiet=quiet)
    scores = {arm: [score.of(row) for row in rows] for arm, rows in found.items()}
    arms.compare(found, workdir)
    kinds = {arm: rows[0].get("eval/kind", "=") for arm, rows in found.items()}
    names = tuple(next(iter(scores.values()))[0])
    figures: dict[str, Any] = {
        name: {arm: [figure[name] for figure in by_seed] for arm, by_seed in scores.items()} for name in names
    }
    means = {arm: {name: sum(figures[name][arm]) / len(seeds) for name in names} for arm in found}
    shown = {arm: f"{arm} {score.text(kinds[arm], means[arm])}" for arm in found}
    figures["kind"] = kinds
    for name in ("loss", "flops", "parameters"):
        figures[name] = {arm: [row[name] for row in rows] for arm, rows in found.items()}
    figures |= _known(claim["base"].data)
    scale = arms.scale(found, seeds)
    return [_row(pair, score, figures, shown, scale, seeds) for pair in claim.get("pairs", [claim])]


def _row(
    pair: Mapping[str, Any], score: Score, figures: Mapping[str, Any], shown: Mapping[str, str], scale: str,
    seeds: Sequence[int],
) -> Row:  # fmt: skip
    """One comparison, by how much better is better."""
    values, better, worse = figures[score.name], pair["better"], pair["worse"]
    ends = interval([score.sign * (b - w) for b, w in zip(values[better], values[worse], strict=True)])
    by = score.difference.format(*ends) + _between(score, figures)
    return Row(
        statement=pair["statement"],
        published=pair["published"],
        measured=f"{shown[better]}, {shown[worse]}; better by {by}",
        scale=scale,
        verdict=above(*ends[1:]),
        numbers={"seeds": list(seeds), "mean": ends[0], "low": ends[1], "high": ends[2], **figures},
    )


def _known(options: Any) -> dict[str, float | None]:
    """The losses between which any model lies, where all arms have the same task."""
    kind, _, name = options.source.partition(":")
    task = tasks.make(name, options.name) if kind == "task" else None
    return {key: getattr(task, key, None) for key in ("best_loss", "chance_loss")}


def _between(score: Score, figures: Mapping[str, Any]) -> str:
    """Those losses in words, where losses are compared."""
    if score.name != "loss" or figures["best_loss"] is None:
        return ""
    return f" (best possible {figures['best_loss']:.4f}, by chance {figures['chance_loss']:.4f})"
