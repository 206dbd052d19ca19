"""Check: who decides the next token of held-out text, a small model, a large one, or some of its layers, in bits.

The claim has `base` (the large run), `small` ({dotted key: value} of the other), `share` of tokens that the large one
decides, `least` layers of the last token, and `contrasts`, each with `statement`, `published`, `better` and `worse`:

- "large", "small": one model for all tokens;
- "entropy", "largest": the small model's most uncertain tokens are the large one's, by the entropy of its law (R2R) or
  by its largest probability (Nudging); "random": the mean over all choices of as many tokens; "best": the tokens that
  gain most, which nobody can know;
- "falling": SkipDecode's schedule in the large model over each row; "level": the same layer calls, as many in every
  token.

Laws are of whole passes over held-out rows; each token is given those before it as they are in the text.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import arms, method
from experiments.claims.evidence import Evidence
from experiments.program import inputs
from experiments.workdir import trained
from kernels import masks
from models.decoding.control import depth, rollouts
from models.objectives.next_token import over_logits


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains both models with every seed, reads the held-out rows with each, and compares by seed."""
    found = arms.train(
        claim["base"], {"large": {}, "small": claim["small"]}, claim["seeds"], workdir, jobs=jobs, quiet=quiet
    )
    values: dict[str, list[float]] = {}
    for large, small in zip(found["large"], found["small"], strict=True):
        each = bits(trained.load(large["workdir"]), trained.load(small["workdir"]), claim["share"], claim["least"])
        for name, value in each.items():
            values.setdefault(name, []).append(value)
    scale = f"{arms.scale(found, claim['seeds'])}; {claim['base'].eval.rows} held-out rows"
    numbers = {"seeds": list(claim["seeds"]), "bits": values}
    numbers["gap"] = np.subtract(values["small"], values["large"]).tolist()
    return [_row(claim, contrast, values, numbers, scale) for contrast in claim["contrasts"]]


def _row(
    claim: Mapping[str, Any], contrast: Mapping[str, Any], values: Mapping[str, Sequence[float]],
    numbers: Mapping[str, Any], scale: str,
) -> Evidence:  # fmt: skip
    better, worse = (values[contrast[side]] for side in ("better", "worse"))
    found = method.judge(claim, np.subtract(worse, better).tolist(), pair=contrast)
    shown = "; ".join(f"{contrast[side]}: {np.mean(values[contrast[side]]):.4f}" for side in ("better", "worse"))
    return found.row(contrast, f"bits a token: {shown}; the first ahead by {found.text()}", scale, numbers)


def bits(large: Any, small: Any, share: float, least: int) -> dict[str, float]:
    """Mean bits of the scored tokens of the held-out rows, by who decides them."""
    batches = list(inputs.eval_batches(large.config, large.corpus, large.program.rows))
    L, T = large.config.model.num_layers, batches[0]["tokens"].shape[1]
    falling = depth.active(depth.layers_at(jnp.arange(T), 0, T, L, least), L)
    level = _level(int(jnp.sum(falling)), L, T)
    mine, theirs = read(large, batches), read(small, batches)
    decided = {"large": mine["nll"].mean(), "small": theirs["nll"].mean()}
    gains = theirs["nll"] - mine["nll"]
    for name, rank in (("entropy", theirs["entropy"]), ("largest", -theirs["largest"]), ("best", gains)):
        decided[name] = routed(theirs["nll"], mine["nll"], rank, share)
    count = round(share * len(gains))
    decided["random"] = decided["small"] - count / len(gains) * gains.mean()
    for name, table in (("falling", falling), ("level", level)):
        decided[name] = read(large, batches, table)["nll"].mean()
    return {name: float(value / np.log(2)) for name, value in decided.items()}


def routed(small: np.ndarray, large: np.ndarray, rank: np.ndarray, share: float) -> float:
    """Mean nats where the tokens of the largest rank, that share of all, are the large model's: `[n]` each."""
    count = round(share * len(rank))
    chosen = np.argsort(-rank, kind="stable")[:count]
    return float((small.sum() + (large - small)[chosen].sum()) / len(rank))


def _level(calls: int, layers: int, tokens: int) -> jax.Array:
    """`[tokens, layers]` bool: as many layer calls, spread evenly over the tokens."""
    low, more = divmod(calls, tokens)
    spread = (np.arange(tokens) + 1) * more // tokens - np.arange(tokens) * more // tokens
    return depth.active(jnp.asarray(low + spread), layers)


def read(model: Any, batches: Sequence[Mapping[str, Any]], active: jax.Array | None = None) -> dict[str, np.ndarray]:
    """Nats, entropy of the law, and its largest probability, of each scored token `[n]`.

    active: `[T, L]` bool, the layers that tokens take; None: all.
    """
    edit = lambda x, layers: x * layers["active"][None, :, None].astype(x.dtype)  # noqa: E731
    more = {} if active is None else {"layers": {"active": active.T}, "edits": {"mixer": edit, "channel": edit}}

    def of(logits: jax.Array, targets: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(logits, axis=-1)
        own = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
        return jnp.stack([-own, rollouts.entropy(logits), jnp.exp(jnp.max(log_p, axis=-1))], axis=-1)

    @functools.partial(jax.jit)
    def numbers(params: Any, batch: Mapping[str, Any]) -> jax.Array:
        made = model.program.merge(params)
        told = {name: batch.get(name) for name in ("positions", "segment_ids")}
        out = made(batch["tokens"], mask=masks.Causal(), **told, **more)
        return over_logits(of, made, out.features, batch["targets"])

    found = [np.asarray(numbers(model.params, batch), np.float64)[np.asarray(batch["scored"])] for batch in batches]
    return dict(zip(("nll", "entropy", "largest"), np.concatenate(found).T, strict=True))
