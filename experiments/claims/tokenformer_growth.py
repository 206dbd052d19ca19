"""Runs configs/claims/tokenformer_growth.py: train small, grow, train on; against two rivals at equal FLOPs.

    python -m experiments.claims.tokenformer_growth --workdir=runs/claims/tokenformer_growth

Every run resumes, and a finished claim does nothing again but write `claim.json`, `row.md` and `comparison.html` anew.
"""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import app, flags
from scipy import stats

from configs.claims import tokenformer_growth as claim
from experiments import counting, evaluate, grown, inputs, preflight, report, sharding, trained
from experiments import workdir as files
from experiments.program import build
from experiments.train import train

STATEMENT = "Grown from a smaller model, a TokenFormer is better than {} at equal compute"
RIVALS = {"large": "itself trained from scratch", "transformer": "a Transformer of its size"}
PUBLISHED = {"large": "not given", "transformer": "1.4B: equal perplexity, 11.8, at a third of the TPU hours"}


def run(
    workdir: str | os.PathLike,
    *,
    seeds: Sequence[int] = claim.SEEDS,
    steps: tuple[int, int] = claim.STEPS,
    arm: Callable[[str], Any] = claim.get_config,
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains every arm and seed under `workdir` and returns what claim.json holds.

    Args:
      workdir: folder of the claim; one run per seed and arm lies below.
      seeds: at least two, for an interval.
      steps: before growth and after it.
      arm: `arm(name)` is the unlocked config of small, large and transformer.
    """
    workdir = pathlib.Path(workdir).expanduser()
    losses = {name: [] for name in ("small", "grown", *RIVALS)}
    changed, spent = [], {}
    for seed in seeds:
        folder = workdir / f"seed{seed}"

        def go(name: str, config: Any, steps: int, seed=seed, folder=folder) -> float:
            config.seed, config.train.steps = seed, steps
            result = train(config.lock(), folder / name, quiet=quiet)
            losses[name].append(result["eval/loss"])
            return result["flops"]

        flops = go("small", arm("small"), steps[0])
        large = arm("large")
        large.init.grow_from = str(folder / "small")
        flops += go("grown", large, steps[1])
        changed.append(_change_by_growth(folder))
        for name in RIVALS:
            config = arm(name)
            spent[name] = go(name, config, max(1, round(flops / _flops_per_step(config)))) / flops
    record = {
        "rows": [_row(name, losses, len(seeds)) for name in RIVALS], "losses": losses, "flops_over_grown": spent,
        "change_of_loss_by_growth": max(changed), "seeds": list(seeds), "steps": list(steps),
    }  # fmt: skip
    files.write_json(workdir / "claim.json", record)
    lines = ["| {statement} | {published} | {measured} | {scale} | {verdict} |".format(**r) for r in record["rows"]]
    files.write_file(workdir / "row.md", ("\n".join(lines) + "\n").encode())
    runs = [workdir / f"seed{seed}" / name for name in losses for seed in seeds]
    report.compare(runs, workdir / "comparison.html")
    return record


def _flops_per_step(config: Any) -> float:
    corpus = inputs.load(config)
    program = build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=sharding.make_mesh(config))
    return counting.flops_per_token(program)["total"] * config.data.batch_size * config.data.length


def _change_by_growth(folder: pathlib.Path) -> float:
    """How much growth alone moves the held-out loss, relative to it."""
    options = preflight.saved_config(folder / "grown").model.pattention
    sizes = {"tokens": options.tokens, "channel_tokens": options.channel_tokens}
    values = []
    for made in (trained.load(folder / "small"), grown.grow(folder / "small", **sizes)):
        held_out = inputs.eval_batches(made.config, made.corpus)
        step = evaluate.make_step(made.program)
        result = evaluate.evaluate(made.program, step, made.params, held_out, made.corpus.tokenizer.token_bytes)
        values.append(result["eval/loss"])
    return abs(values[1] / values[0] - 1)


def _row(rival: str, losses: dict[str, list[float]], seeds: int) -> dict[str, Any]:
    """One row of the ledger: mean difference in nats, grown minus rival, paired by seed."""
    mean, half = interval(np.subtract(losses["grown"], losses[rival]))
    verdict = "holds" if mean + half < 0 else "does not hold" if mean - half > 0 else "undecided: 0 is inside"
    return {
        "statement": STATEMENT.format(RIVALS[rival]),
        "published": PUBLISHED[rival],
        "measured": f"{mean:+.4f} nats [{mean - half:+.4f}, {mean + half:+.4f}]",
        "scale": f"n {claim.TOKENS[0]} to {claim.TOKENS[1]}, 0.4 M parameters, {seeds} seeds",
        "verdict": verdict, "mean": mean, "low": mean - half, "high": mean + half,
    }  # fmt: skip


def interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of its Student t interval. ValueError for fewer than two differences."""
    n = len(differences)
    if n < 2:
        raise ValueError(f"seeds: {n} give no interval; use at least 2, e.g. (0, 1, 2).")
    error = float(np.std(differences, ddof=1)) / n**0.5
    return float(np.mean(differences)), float(stats.t.ppf((1 + level) / 2, n - 1)) * error


def main(_: list[str]) -> None:
    """Runs the claim and prints its rows."""
    run(flags.FLAGS.workdir)
    print((pathlib.Path(flags.FLAGS.workdir).expanduser() / "row.md").read_text())


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/claims/tokenformer_growth", "Folder of the claim.")
    app.run(main)
