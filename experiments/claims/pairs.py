"""Check: a small and a large model of one tokenizer share the bytes of held-out text: who decides which of them.

The claim has `base`, `arms` with "small" and "large", and `router` ({dotted key: value} each; the router begins as the
small model and is told the large one as its teacher), `share` of the tokens that the large model decides, `contrasts`,
each with `statement`, `published`, `measure` (of `MEASURES`), `better` and `worse` (deciders), and `seeds`. What
decides reads the text before a token alone, so that the bits of the two together are those of one law (the oracle's are
not); the threshold, which sets the share, is taken from the rows that are measured.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import arms, method
from experiments.claims.evidence import Evidence
from experiments.program import inputs
from experiments.workdir import trained
from models.decoding.control import rollouts, routing
from models.objectives.next_token import forward

MEASURES = {"bits": ("held-out bits a token", -1), "agreement": ("tokens that the large model would write", 1)}
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7)  # Of the curves.


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains the three with every seed and reads the same held-out rows with each."""
    seeds, train = claim["seeds"], {"jobs": jobs, "quiet": quiet}
    found = arms.train(claim["base"], claim["arms"], seeds, workdir, **train)
    found["router"] = []
    for at, seed in enumerate(seeds):
        begin = {"init.warm_start": str(found["small"][at]["workdir"])}
        begin |= {"companions.teacher.workdir": str(found["large"][at]["workdir"])}
        given = {"router": {**claim["arms"]["small"], **claim["router"], **begin}}
        found["router"] += arms.train(claim["base"], given, (seed,), workdir, **train)["router"]
    pairs = zip(found["router"], found["large"], strict=True)
    read = [held_out(*(trained.load(row["workdir"]) for row in pair)) for pair in pairs]
    numbers = {"seeds": list(seeds), "gap": [float(np.mean(one["small"] - one["large"])) for one in read]}
    tables = [deciders(one, claim["share"]) for one in read]
    for measure in MEASURES:
        numbers[measure] = {name: [table[name][measure] for table in tables] for name in tables[0]}
    numbers["shares"] = {name: [table[name]["share"] for table in tables] for name in tables[0]}
    numbers["bits_by_share"] = {
        str(share): {name: float(np.mean([deciders(one, share)[name]["bits"] for one in read])) for name in tables[0]}
        for share in SHARES
    }
    scale = f"{arms.scale(found, seeds)}; {len(read[0]['small'])} held-out tokens"
    return [_row(claim, contrast, numbers, scale) for contrast in claim["contrasts"]]


def _row(claim: Mapping[str, Any], contrast: Mapping[str, Any], numbers: Mapping[str, Any], scale: str) -> Evidence:
    what, sign = MEASURES[contrast["measure"]]
    table, pair = numbers[contrast["measure"]], (contrast["better"], contrast["worse"])
    better, worse = (table[name] for name in pair)
    judged = method.judge(claim, (sign * np.subtract(better, worse)).tolist(), pair=contrast)
    shares = ", ".join(f"{np.mean(numbers['shares'][name]):.3f}" for name in pair)
    shown = "; ".join(f"{name} {np.mean(table[name]):.4f}" for name in pair)
    measured = f"{what}: {shown}, the large model's shares {shares}; the first ahead by {judged.text(4)}"
    return judged.row(contrast, measured, scale, dict(numbers))


def held_out(model: Any, large: Any) -> dict[str, np.ndarray]:
    """What is known of the scored held-out tokens of a model with the head `router`, `[n]` each, row after row.

    small, large: bits of the token; entropy, top: of the small law; critical: P of the router; differ: whether the two
    would write different tokens; begins: whether what the large one would write begins with a blank; first: whether a
    row or document begins here.
    """
    V, tokenizer = model.tokenizer.vocab_size, model.tokenizer
    special = {tokenizer.bos, tokenizer.eos, tokenizer.pad}
    blank = np.array([i not in special and tokenizer.decode([i])[:1].isspace() for i in range(V)])

    @jax.jit
    def read(params: Any, other: Any, batch: Any) -> dict[str, jax.Array]:
        one, two = model.program.merge(params), large.program.merge(other)
        features, targets = forward(one, batch).features, batch["targets"][..., None]
        logits = [one.logits(features)[..., :V], two.logits(forward(two, batch).features)[..., :V]]
        bits = [-jnp.take_along_axis(jax.nn.log_softmax(x), targets, -1)[..., 0] / jnp.log(2.0) for x in logits]
        head = one.heads["router"]
        own, log_p = routing.likeliest(logits[0], head.top)
        best = jnp.argmax(logits[1], axis=-1)
        return {
            "small": bits[0], "large": bits[1], "entropy": rollouts.entropy(logits[0]), "top": jnp.exp(log_p[..., 0]),
            "critical": jax.nn.sigmoid(head(features, one.embed(own), log_p)), "differ": own != best,
            "begins": jnp.asarray(blank)[best],
        }  # fmt: skip

    found: list[dict[str, np.ndarray]] = []
    for batch in inputs.eval_batches(model.config, model.corpus):
        made = {name: np.asarray(x) for name, x in read(model.params, large.params, batch).items()}
        made["first"] = np.asarray(batch["positions"]) == 0
        made["first"][:, 0] = True
        found.append({name: x[np.asarray(batch["scored"])] for name, x in made.items()})
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def deciders(read: Mapping[str, np.ndarray], share: float) -> dict[str, dict[str, float]]:
    """{who decides: {"bits", "agreement", "share"}} where the large model has some `share` of the tokens of `held_out`.

    "entropy", "router": the tokens of the largest values; "oracle": of the largest gain; "nudging": words from where
    the top probability is low; "random": any, the mean over all draws, and "random as nudging" at that one's share.
    """
    n = len(read["small"])
    values = {"entropy": read["entropy"], "router": read["critical"], "oracle": read["small"] - read["large"]}
    asked = {name: np.argsort(np.argsort(-value, kind="stable")) < round(share * n) for name, value in values.items()}
    asked["nudging"] = nudged_share(read, share)
    found = {name: scored(read, which) for name, which in asked.items()}
    found["random"] = scored(read, np.full(n, round(share * n) / n))
    return found | {"random as nudging": scored(read, np.full(n, asked["nudging"].mean()))}


def scored(read: Mapping[str, np.ndarray], weight: np.ndarray) -> dict[str, float]:
    """Figures where the large model decides each token with this chance, `[n]`."""
    weight = np.asarray(weight, float)
    return {
        "bits": float(np.mean(weight * read["large"] + (1 - weight) * read["small"])),
        "agreement": float(np.mean(1 - (1 - weight) * read["differ"])),
        "share": float(np.mean(weight)),
    }


def nudged(read: Mapping[str, np.ndarray], threshold: float) -> np.ndarray:
    """Whether the large model writes each token, `[n]`: control `nudging`, along the text as it is."""
    needs = np.asarray(routing.needs_nudging(np.log(read["top"])[:, None], threshold))
    on, inside = np.zeros(len(needs), bool), False
    for i, (need, begins, first) in enumerate(zip(needs, read["begins"], read["first"], strict=True)):
        on[i] = inside = need or (inside and not first and not begins)
    return on


def nudged_share(read: Mapping[str, np.ndarray], share: float) -> np.ndarray:
    """`nudged` at the threshold, of 24 halvings, at which the large model writes at most `share` of the tokens."""
    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if nudged(read, middle).mean() <= share else (low, middle)
    return nudged(read, low)
