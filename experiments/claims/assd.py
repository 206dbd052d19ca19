"""Check: any-subset speculative decoding draws what sequential decoding would, in no more calls than tokens.

The claim has `tables` {"symbols", "length", "count"}, `orders`, `drafts`, and for a second row about a trained model
`base` (objective any_subset), `tokens` to draw, `prompts` and `seeds`.
"""

import itertools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import generation
from experiments.claims import arms
from experiments.claims.rows import DOES_NOT, EXACT, Row, above, interval
from experiments.workdir import trained
from models.decoding import assd

TOLERANCE = 1e-12  # Total variation: sums of at most a few hundred products in float64.


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Row]:
    """Walks every round on small alphabets, then counts the calls of a trained model."""
    rows = [law(claim)]
    if "base" in claim:
        rows.append(calls(claim, workdir, jobs=jobs, quiet=quiet))
    return rows


def law(claim: Mapping[str, Any]) -> Row:
    """The law by enumeration, in float64, for conditionals that fit a joint law and for ones that fit none."""
    V, T, count = (claim["tables"][key] for key in ("symbols", "length", "count"))
    far, over, spent = 0.0, -np.inf, {str(draft): [] for draft in claim["drafts"]}
    cases = list(itertools.product(range(count), (consistent, arbitrary), claim["orders"], claim["drafts"]))
    with jax.enable_x64(True):
        for seed, make, order, draft in cases:
            table = make(np.random.default_rng(seed), V, T)
            got, mean = assd.exact_law(conditionals(table), order=np.asarray(order), draft=draft, vocab_size=V)
            far = max(far, 0.5 * float(np.abs(got - sequential(table, order)).sum()))
            spent[str(draft)].append(mean)
            over = max(over, mean - (2 * T - 1 if draft == 1 else T))
    means = {draft: float(np.mean(values)) for draft, values in spent.items()}
    shown = ", ".join(f"{mean:.2f} with drafts of {draft}" for draft, mean in means.items())
    return Row(
        statement=claim["statement"],
        published=claim["published"],
        measured=f"largest total variation {far:.0e} over {len(cases)} cases; calls for {T} tokens: {shown}",
        scale=f"{V} symbols, {T} tokens, enumerated in float64",
        verdict=EXACT if far < TOLERANCE and over < TOLERANCE else DOES_NOT,
        numbers={"total_variation": far, "calls": means, "cases": len(cases)},
    )


def calls(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> Row:
    """Calls a token of a trained model, for every length of drafts, by seed."""
    seeds, count = claim["seeds"], claim["tokens"]
    found = arms.train(claim["base"], {"any-subset": {}}, seeds, workdir, jobs=jobs, quiet=quiet)
    drafts = [draft for draft in claim["drafts"] if draft > 1]
    share = {str(draft): [] for draft in drafts}
    for seed, row in zip(seeds, found["any-subset"], strict=True):
        model = trained.load(row["workdir"])
        drafter = generation.make(model.program, model.corpus.tokenizer)
        for draft in drafts:
            options = model.config.generate.to_dict() | {"draft": draft, "max_tokens": count, "temperature": 1.0}
            spent = drafter.fill(model.params, claim["prompts"], options, seed=seed)[1]
            share[str(draft)].append(float(np.mean(spent)) / count)
    best = min(share, key=lambda draft: np.mean(share[draft]))
    mean, low, high = interval(share[best])
    shown = ", ".join(f"{np.mean(values):.3f} with drafts of {draft}" for draft, values in share.items())
    published = claim["trained"]
    return Row(
        statement=published["statement"],
        published=published["published"],
        measured=f"calls a token {shown}; the least {mean:.3f} [{low:.3f}, {high:.3f}]",
        scale=f"{arms.scale(found, seeds)}; {len(claim['prompts'])} texts of {count} tokens",
        verdict=above(1 - high, 1 - low),
        numbers={"seeds": list(seeds), "calls": share, "mean": mean, "low": low, "high": high},
    )


def arbitrary(rng: np.random.Generator, V: int, T: int) -> np.ndarray:
    """Conditionals of no joint law: probabilities `[V + 1] * T + [T, V]`, by what stands where (V: nothing)."""
    weight = np.exp(1.5 * rng.normal(size=(V + 1,) * T + (T, V)))
    return weight / weight.sum(-1, keepdims=True)


def consistent(rng: np.random.Generator, V: int, T: int) -> np.ndarray:
    """The conditionals of one joint law, likewise."""
    joint = rng.dirichlet(np.ones(V**T)).reshape((V,) * T)
    table = np.zeros((V + 1,) * T + (T, V))
    for z in itertools.product(range(V + 1), repeat=T):
        given = joint[tuple(slice(None) if v == V else slice(v, v + 1) for v in z)]
        for place in range(T):
            if z[place] == V:
                marginal = given.sum(tuple(axis for axis in range(T) if axis != place))
                table[z][place] = marginal / marginal.sum()
            else:
                table[z][place] = 1 / V  # Never read.
    return table


def conditionals(table: np.ndarray) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The table as a model: tokens `[B, T]` to logits `[B, T, V]`."""
    log_p = jnp.log(jnp.asarray(table))
    return lambda z, t: log_p[tuple(jnp.moveaxis(z, -1, 0))]


def sequential(table: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """The law of strings drawn token by token in `order`, `[V] * T`."""
    V, T = table.shape[-1], table.shape[-2]
    law = np.zeros((V,) * T)
    for string in np.ndindex(law.shape):
        z, p = np.full(T, V), 1.0
        for place in order:
            p *= table[tuple(z)][place, string[place]]
            z[place] = string[place]
        law[string] = p
    return law
