"""Check: any-subset speculative decoding draws what sequential decoding would, in no more calls than tokens.

Keys of the claim:
  tables: {"symbols", "length", "count"} of the enumerated laws.
  orders: permutations of the tokens.
  drafts: numbers of tokens drafted in one call.
  base: the config of a trained model (objective any_subset), for a second row; may be missing.
  tokens, prompts, seeds: what that model draws.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import generation
from experiments.claims import arms, method
from experiments.claims.evidence import DOES_NOT, EXACT, Evidence
from experiments.claims.laws import decoding
from experiments.workdir import trained


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Walks every round on small alphabets, then counts the calls of a trained model."""
    rows = [law(claim)]
    if "base" in claim:
        rows.append(calls(claim, workdir, jobs=jobs, quiet=quiet))
    return rows


def law(claim: Mapping[str, Any]) -> Evidence:
    """The law by enumeration, in float64, for conditionals that fit a joint law and for ones that fit none."""
    V, T, count = (claim["tables"][key] for key in ("symbols", "length", "count"))
    far, spent, cases = decoding.enumerated(
        symbols=V, length=T, count=count, orders=claim["orders"], drafts=claim["drafts"]
    )
    over = max(max(calls) - (2 * T - 1 if draft == 1 else T) for draft, calls in spent.items())
    means = {str(draft): float(np.mean(values)) for draft, values in spent.items()}
    shown = ", ".join(f"{mean:.2f} with drafts of {draft}" for draft, mean in means.items())
    return Evidence(
        statement=claim["statement"],
        published=claim["published"],
        measured=f"largest total variation {far:.0e} over {cases} cases; calls for {T} tokens: {shown}",
        scale=f"{V} symbols, {T} tokens, enumerated in float64",
        verdict=EXACT if max(far, over) < decoding.TOLERANCE else DOES_NOT,
        numbers={"total_variation": far, "calls": means, "cases": cases},
    )


def calls(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> Evidence:
    """Calls a token of a trained model, for every length of drafts, by seed."""
    seeds, count = claim["seeds"], claim["tokens"]
    found = arms.train(claim["base"], {"any-subset": {}}, seeds, workdir, jobs=jobs, quiet=quiet)
    drafts = [draft for draft in claim["drafts"] if draft > 1]
    share = {str(draft): [] for draft in drafts}
    for seed, row in zip(seeds, found["any-subset"], strict=True):
        model = trained.load(row["workdir"])
        drafter = generation.make(model.program, model.tokenizer)
        for draft in drafts:
            options = model.config.generate.to_dict() | {"draft": draft, "max_tokens": count, "temperature": 1.0}
            spent = drafter.fill(model.params, claim["prompts"], options, seed=seed)[1]
            share[str(draft)].append(float(np.mean(spent)) / count)
    best = min(share, key=lambda draft: np.mean(share[draft]))
    judged = method.judge(claim, [1 - each for each in share[best]])
    mean, low, high = 1 - judged.mean, 1 - judged.high, 1 - judged.low
    shown = ", ".join(f"{np.mean(values):.3f} with drafts of {draft}" for draft, values in share.items())
    published = claim["trained"]
    return Evidence(
        statement=published["statement"],
        published=published["published"],
        measured=f"calls a token {shown}; the least {mean:.3f} [{low:.3f}, {high:.3f}]",
        scale=f"{arms.scale(found, seeds)}; {len(claim['prompts'])} texts of {count} tokens",
        verdict=judged.verdict,
        numbers={**judged.numbers, "seeds": list(seeds), "calls": share, "mean": mean, "low": low, "high": high},
    )
