"""Check: trained models whose later layers read an early one (SwiftKV), before and after distillation.

The claim has `base`, of every teacher; `arms` ({name: {dotted key: value}}, of `model.swiftkv`); `distil`, what differs
in the students' training ({dotted key: value}); `prompt` tokens for FLOPs and bytes; `contrasts` with `statement`,
`published`, `better` and `worse`, each "teacher", an arm, or "ARM untrained"; and `seeds`. The first row is what a
prompt costs, by the compiled program against the formula.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import arms, method
from experiments.claims.evidence import DOES_NOT, EXACT, Evidence
from experiments.generation import memories, prompt_cost
from experiments.program import counting, inputs
from experiments.training import evaluate
from experiments.workdir import rewired, trained
from models.mixers.memory import Policy

TEACHER, LEFT, GROUP = "teacher", " untrained", "model.swiftkv."
CLOSE = 0.05  # of the formula: norms, activations and rotary positions, which it leaves out, are a few hundredths.


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains a teacher a seed, rewires and distils it for every arm, and compares held-out bits per byte by seed."""
    seeds, base = claim["seeds"], claim["base"]
    found = arms.train(base, {TEACHER: {}}, seeds, workdir, jobs=jobs, quiet=quiet)
    bits = {TEACHER: [row["eval/bits_per_byte"] for row in found[TEACHER]]}
    costs, size = {}, claim["prompt"]
    first = trained.load(found[TEACHER][0]["workdir"])
    costs[TEACHER] = _cost(first, size)
    for arm, given in claim["arms"].items():
        wiring = {key.removeprefix(GROUP): value for key, value in given.items() if key.startswith(GROUP)}
        found[arm] = []
        for seed, teacher in zip(seeds, found[TEACHER], strict=True):
            start = {key: str(teacher["workdir"]) for key in ("init.rewire_from", "companions.teacher.workdir")}
            made = {arm: given | start | claim["distil"]}
            found[arm] += arms.train(base, made, (seed,), workdir, jobs=jobs, quiet=quiet)[arm]
            bits.setdefault(arm + LEFT, []).append(_bits(rewired.rewire(teacher["workdir"], **wiring)))
        bits[arm] = [row["eval/bits_per_byte"] for row in found[arm]]
        costs[arm] = _cost(rewired.rewire(found[TEACHER][0]["workdir"], **wiring), size)
    scale, numbers = arms.scale(found, seeds), {"seeds": list(seeds), "bits_per_byte": bits, "prompt": costs}
    return [_prompt(claim, costs, scale), *(_row(claim, each, numbers, scale) for each in claim["contrasts"])]


def _cost(model: Any, length: int) -> dict[str, float]:
    """FLOPs a token of a prompt, by the compiler and by the formula, and bytes of a row's state behind it."""
    program = model.program
    kept = memories.state_bytes(program, model.params, Policy(), 1, length)
    return {
        "flops": prompt_cost.flops(program, length),
        "formula": counting.prompt_flops(program, length)[0],
        "bytes": kept,
    }


def _bits(model: Any) -> float:
    """Held-out bits per byte of a model that no run has trained."""
    batches = inputs.eval_batches(model.config, model.corpus)
    step = evaluate.make_step(model.program)
    found = evaluate.evaluate(model.program, step, model.params, batches, model.tokenizer.token_bytes)
    return found["eval/bits_per_byte"]


def _prompt(claim: Mapping[str, Any], costs: Mapping[str, Mapping[str, float]], scale: str) -> Evidence:
    """The row of FLOPs and bytes."""
    whole = costs[TEACHER]
    close = all(abs(each["flops"] / each["formula"] - 1) < CLOSE for each in costs.values())
    shown = "; ".join(
        f"{arm}: {each['flops'] / whole['flops']:.3f} of the teacher's FLOPs (formula "
        f"{each['formula'] / whole['formula']:.3f}), {each['bytes'] / whole['bytes']:.3f} of its bytes"
        for arm, each in costs.items() if arm != TEACHER
    )  # fmt: skip
    return Evidence(
        statement=claim["cheaper"]["statement"],
        published=claim["cheaper"]["published"],
        measured=f"prompts of {claim['prompt']} tokens, compiled: {shown}",
        scale=scale,
        verdict=EXACT if close else DOES_NOT,
        numbers={"prompt": {arm: dict(each) for arm, each in costs.items()}},
    )


def _row(claim: Mapping[str, Any], contrast: Mapping[str, Any], numbers: Mapping[str, Any], scale: str) -> Evidence:
    """Bits that the better one has less, paired by seed."""
    bits = numbers["bits_per_byte"]
    better, worse = contrast["better"], contrast["worse"]
    found = method.judge(claim, np.subtract(bits[worse], bits[better]).tolist(), pair=contrast)
    shown = "; ".join(f"{name}: {np.mean(bits[name]):.4f}" for name in (better, worse))
    return found.row(contrast, f"held-out bits per byte: {shown}; the first ahead by {found.text()}", scale, numbers)
