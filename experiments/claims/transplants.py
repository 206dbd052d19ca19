"""Check: models that change their tokenizer (init.transplant), at once and after a few steps.

The claim has `base`, of every model before; `change`, what differs behind the change ({dotted key: value}: the
tokenizer, the steps); `arms` ({name: {dotted key: value}} on both, of `init`), one of which may have another start;
`contrasts` with `statement`, `published`, `better` and `worse`, each "before", an arm, or "ARM at once"; and `seeds`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import arms, method
from experiments.claims.evidence import Evidence
from experiments.program import build, inputs, sharding
from experiments.sweep import trials
from experiments.training import evaluate
from experiments.workdir import transplanted

BEFORE, AT_ONCE, START = "before", " at once", "init.transplant"


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains a model a seed, moves it to the other tokenizer by every arm, and compares held-out bits per byte."""
    seeds, base = claim["seeds"], claim["base"]
    found = arms.train(base, {BEFORE: {}}, seeds, workdir, jobs=jobs, quiet=quiet)
    bits = {BEFORE: [row["eval/bits_per_byte"] for row in found[BEFORE]]}
    for arm, given in claim["arms"].items():
        found[arm] = []
        for seed, before in zip(seeds, found[BEFORE], strict=True):
            moved = {START: str(before["workdir"])} | claim["change"] | given
            found[arm] += arms.train(base, {arm: moved}, (seed,), workdir, jobs=jobs, quiet=quiet)[arm]
            if moved[START]:
                bits.setdefault(arm + AT_ONCE, []).append(_bits(base, moved | {"seed": seed}))
        bits[arm] = [row["eval/bits_per_byte"] for row in found[arm]]
    scale, numbers = arms.scale(found, seeds), {"seeds": list(seeds), "bits_per_byte": bits}
    return [_row(claim, each, numbers, scale) for each in claim["contrasts"]]


def _bits(base: Any, changes: Mapping[str, Any]) -> float:
    """Held-out bits per byte of a model that was moved and not trained since."""
    (trial,) = trials.resolve(base, [dict(changes)])
    config, corpus = trial.config, inputs.load(trial.config)
    program = build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=sharding.make_mesh(config))
    state = transplanted.state(program, config.init.transplant, corpus)
    batches, step = inputs.eval_batches(config, corpus), evaluate.make_step(program)
    found = evaluate.evaluate(program, step, program.evaluation_params(state), batches, corpus.tokenizer.token_bytes)
    return found["eval/bits_per_byte"]


def _row(claim: Mapping[str, Any], contrast: Mapping[str, Any], numbers: Mapping[str, Any], scale: str) -> Evidence:
    """Bits that the better one has less, paired by seed."""
    bits = numbers["bits_per_byte"]
    better, worse = contrast["better"], contrast["worse"]
    found = method.judge(claim, np.subtract(bits[worse], bits[better]).tolist(), pair=contrast)
    shown = "; ".join(f"{name}: {np.mean(bits[name]):.4f}" for name in (better, worse))
    return found.row(contrast, f"held-out bits per byte: {shown}; the first ahead by {found.text()}", scale, numbers)
