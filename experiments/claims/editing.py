"""Check: held-out text behind a prompt into which tokens were inserted, from the edited cache (PIE) and otherwise.

The claim has `base`; `arms` ({name: {dotted key: value}}, each trained); `prompt` and `inserted`, tokens of the edited
prompt and of what is new in its middle; `contrasts` with `statement`, `published`, `better` and `worse`, each (arm,
reading); and `seeds`. Readings: full (all is read anew), pie, unturned (keys stay as they stood), ignored (what was
inserted is never read). The first row is the compute that is saved, by the formula.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import arms, method
from experiments.claims.evidence import DOES_NOT, HOLDS, Evidence
from experiments.generation.edited import after_edit
from experiments.program import counting, inputs
from experiments.workdir import trained
from kernels import masks
from models.mixers.memory import edit

READINGS = ("full", "pie", "unturned", "ignored")
BAR = 0.85  # of the compute, published


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains every arm with every seed and reads the same edits of held-out rows in every way."""
    seeds = claim["seeds"]
    found = arms.train(claim["base"], claim["arms"], seeds, workdir, jobs=jobs, quiet=quiet)
    bits: dict[str, dict[str, list[float]]] = {arm: {name: [] for name in READINGS} for arm in found}
    drift: dict[str, list[float]] = {arm: [] for arm in found}
    saved = {}
    for arm, rows in found.items():
        for row in rows:
            model = trained.load(row["workdir"])
            read = readings(model, prompt=claim["prompt"], inserted=claim["inserted"])
            for name in READINGS:
                bits[arm][name].append(read[name])
            drift[arm].append(read["kl"])
            saved[arm] = share_saved(model.program, source(claim["prompt"], claim["inserted"]))
    numbers = {"seeds": list(seeds), "bits_per_byte": bits, "kl": drift, "saved": saved}
    scale = f"{arms.scale(found, seeds)}; {claim['base'].eval.rows} held-out rows"
    return [_saved(claim, numbers, scale), *(_row(claim, each, numbers, scale) for each in claim["contrasts"])]


def source(prompt: int, inserted: int) -> np.ndarray:
    """`[prompt]`: of which token of the old prompt each is; `inserted` ones in the middle are new, -1."""
    first, at = (prompt - inserted) // 2, np.arange(prompt)
    return np.where(at < first, at, np.where(at < first + inserted, -1, at - inserted))


def share_saved(program: Any, script: np.ndarray) -> float:
    """`edit.saved` of a model's sizes."""
    spec = program.spec
    linear = counting.flops_per_token(program)["matmul"] / 3 - 2 * spec.V * spec.D
    return edit.saved(script, linear=linear, pair=4 * spec.N * spec.H * spec.L)


def readings(model: Any, *, prompt: int, inserted: int) -> dict[str, float]:
    """Bits per byte of what stands behind the edited prompt of held-out rows, by reading, and KL(full || pie)."""
    program, sums, weight = model.program, dict.fromkeys((*READINGS, "kl"), 0.0), 0.0
    step, tokens = jax.jit(_step(program, prompt, inserted)), 0.0
    for batch in inputs.eval_batches(model.config, model.corpus, program.rows):
        counts = batch["scored"][:, prompt:] & (batch["positions"][:, -1:] == batch["tokens"].shape[1] - 1)
        found = jax.device_get(step(model.params, batch["tokens"], batch["targets"], counts))
        for name in sums:
            sums[name] += float(found[name])
        weight += float((model.tokenizer.token_bytes[batch["targets"][:, prompt:]] * counts).sum())
        tokens += float(counts.sum())
    bits = {name: sums[name] / np.log(2) / weight for name in READINGS}
    return bits | {"kl": sums["kl"] / tokens}


def _step(program: Any, prompt: int, inserted: int) -> Any:
    """`(params, tokens [B, T], targets, counts [B, T - prompt]) -> sums` over the counted tokens, nats."""
    script = source(prompt, inserted)
    place = lambda x: jnp.asarray(x, jnp.int32)[None]  # noqa: E731

    def run(params: Any, tokens: jax.Array, targets: jax.Array, counts: jax.Array) -> dict[str, jax.Array]:
        model, T = program.decoder(params).for_decoding(), tokens.shape[1]
        kept, anew = np.flatnonzero(script >= 0), np.flatnonzero(script < 0)
        moves, read, none = (
            (place(script[kept]), place(kept)),
            (tokens[:, anew], place(anew)),
            (tokens[:, :0], place([])),
        )
        count, at = prompt - inserted, jnp.arange(prompt, T)[None]
        rule = {"mask": masks.Causal(), "positions": at}

        def logits(state: Any, rest: dict) -> jax.Array:
            features = model(tokens[:, prompt:], state=state, **rest).features
            return jax.nn.log_softmax(model.logits(features), axis=-1)

        whole = model(tokens, mask=masks.Causal(), positions=jnp.arange(T)[None],
                      state=model.init_state(len(tokens), T), fresh=True).features  # fmt: skip
        edited = {"pie": after_edit(model, tokens[:, kept], count, moves, read, width=T),
                  "unturned": after_edit(model, tokens[:, kept], count, moves, read, width=T, turn=False)}  # fmt: skip
        there = place(np.arange(count))
        ignored = after_edit(model, tokens[:, kept], count, (there, there), none, width=T)
        found = {"full": jax.nn.log_softmax(model.logits(whole[:, prompt:]), axis=-1)}
        found |= {name: logits(state, rule) for name, state in edited.items()}
        found["ignored"] = logits(ignored, rule | {"positions": at - inserted})
        nats = {
            name: jnp.sum(-jnp.take_along_axis(x, targets[:, prompt:, None], axis=-1)[..., 0] * counts)
            for name, x in found.items()
        }
        apart = found["full"] - found["pie"]  # Sums of p and of q are 1 both: p d + q - p is p d, less its rounding.
        kl = jnp.sum(jnp.exp(found["full"]) * (apart + jnp.expm1(-apart)), axis=-1)
        return nats | {"kl": jnp.sum(kl * counts)}

    return run


def _saved(claim: Mapping[str, Any], numbers: Mapping[str, Any], scale: str) -> Evidence:
    """The row of the compute that is saved."""
    saved, drift = numbers["saved"], numbers["kl"]
    shown = "; ".join(f"{arm}: {saved[arm]:.1%}, KL {np.mean(drift[arm]):.2g} nats a token" for arm in saved)
    return Evidence(
        statement=claim["cheaper"]["statement"],
        published=claim["cheaper"]["published"],
        measured=f"{claim['inserted']} of {claim['prompt']} tokens inserted, FLOPs saved: {shown}",
        scale=scale,
        verdict=HOLDS if min(saved.values()) > BAR else DOES_NOT,
        numbers={"saved": dict(saved), "kl": {arm: list(values) for arm, values in drift.items()}},
    )


def _row(claim: Mapping[str, Any], contrast: Mapping[str, Any], numbers: Mapping[str, Any], scale: str) -> Evidence:
    """Bits that the better reading has less, paired by seed."""
    bits = numbers["bits_per_byte"]
    (arm, better), (other, worse) = contrast["better"], contrast["worse"]
    found = method.judge(claim, np.subtract(bits[other][worse], bits[arm][better]).tolist(), pair=contrast)
    shown = "; ".join(f"{a}, {name}: {np.mean(bits[a][name]):.4f}" for a, name in ((arm, better), (other, worse)))
    measured = f"bits per byte behind the prompt: {shown}; the first ahead by {found.text()}"
    return found.row(contrast, measured, scale, numbers)
