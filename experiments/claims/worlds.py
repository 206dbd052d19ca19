"""Check: who decides the next token, on sources that are drawn and known: every number is a sum, not an estimate.

The claim has `contrasts`, each with `statement`, `published`, `measure` (a name in `MEASURES`), `better` and `worse`
(keys of what that measure gives); and `seeds`, one world each. Nothing is trained.
"""

import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.claims import method
from experiments.claims.evidence import Evidence
from models.decoding.control import automata, conditional, gedi, rollouts

V, LENGTH = 6, 4
SHARE = 0.3  # Of states, weighed by how often they come, that the large model decides.


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Measures every world once; writes nothing."""
    seeds = claim["seeds"]
    named = dict.fromkeys(contrast["measure"] for contrast in claim["contrasts"])
    found = {name: [MEASURES[name][1](np.random.default_rng(seed)) for seed in seeds] for name in named}
    tables = {name: {key: [one[key] for one in each] for key in each[0]} for name, each in found.items()}
    return [_row(claim, contrast, tables[contrast["measure"]]) for contrast in claim["contrasts"]]


def _row(claim: Mapping[str, Any], contrast: Mapping[str, Any], table: Mapping[str, Sequence[float]]) -> Evidence:
    better, worse = (table[contrast[side]] for side in ("better", "worse"))
    found = method.judge(claim, np.subtract(worse, better).tolist(), pair=contrast)
    shown = "; ".join(f"{contrast[side]}: {np.mean(table[contrast[side]]):.3f}" for side in ("better", "worse"))
    unit = MEASURES[contrast["measure"]][0]
    scale = f"{len(claim['seeds'])} drawn sources of {V} symbols, exact"
    numbers = {"seeds": list(claim["seeds"]), **table}
    return found.row(contrast, f"{unit}: {shown}; the first ahead by {found.text(3)}", scale, numbers)


def unlike(rng: np.random.Generator) -> np.ndarray:
    """Laws `[V, V, V]` behind the last two symbols; how much the older one matters differs by the newer."""
    own, one = rng.dirichlet(np.full(V, 0.5), (V, V)), rng.dirichlet(np.full(V, 0.2), V)
    matters = rng.random(V)[None, :, None]
    return matters * own + (1 - matters) * one


def alike(rng: np.random.Generator) -> np.ndarray:
    """Laws `[V, V, V]` behind the last two symbols, all drawn alike: nothing tells how much the older one matters."""
    return rng.dirichlet(np.full(V, 0.5), (V, V))


def routing(world: np.ndarray) -> dict[str, float]:
    """Bits a symbol of a source, laws `[V, V, V]` behind its last two symbols.

    "large" knows it, "small" is its best law behind one symbol. The others have the large law in a `SHARE` of places:
    those of highest entropy of the small law, of its lowest top probability, of largest gain ("oracle"), or any
    ("random", the mean over all). "gap": small less large.
    """
    often = _stationary(world)
    one = often.sum(axis=0)
    small = np.einsum("ab,abv->bv", often, world) / one[:, None]
    law = np.broadcast_to(small, world.shape)
    cost = {name: -(world * np.log2(np.maximum(p, 1e-300))).sum(-1) for name, p in (("large", world), ("small", law))}
    gain = cost["small"] - cost["large"]
    spread = np.asarray(rollouts.entropy(jnp.log(jnp.maximum(small, 1e-30))))
    ranks = {"entropy": np.broadcast_to(spread, (V, V)), "top": np.broadcast_to(-small.max(-1), (V, V)), "oracle": gain}
    found = {name: float((often * each).sum()) for name, each in cost.items()}
    found["random"] = found["small"] - SHARE * float((often * gain).sum())
    for name, rank in ranks.items():
        found[name] = found["small"] - _taken(rank.reshape(-1), (often * gain).reshape(-1), often.reshape(-1))
    return found | {"gap": found["small"] - found["large"]}


def _taken(rank: np.ndarray, gain: np.ndarray, often: np.ndarray) -> float:
    """What is gained where places of the largest rank are taken up to `SHARE`, the last ones, all equal, in part."""
    total, left = 0.0, SHARE
    for value in np.unique(rank)[::-1]:
        here = rank == value
        part = min(1.0, left / often[here].sum())
        total, left = total + part * gain[here].sum(), left - part * often[here].sum()
        if left <= 1e-12:
            break
    return float(total)


def _stationary(world: np.ndarray) -> np.ndarray:
    """`[V, V]` how often each pair of symbols comes."""
    often = np.full((V, V), V**-2.0)
    for _ in range(400):
        often = np.einsum("ab,abv->bv", often, world)
    return often / often.sum()


def guiding(rng: np.random.Generator) -> dict[str, float]:
    """Distance in total variation from the wanted class's next-symbol law, the mean over its own texts of `LENGTH`
    symbols, of a guided mixture: "bayes", the "released" form at weight 1 without its filter, and "none"."""
    classes = rng.dirichlet(np.ones(3), (2, 3))
    prior, far = np.array([0.5, 0.5]), dict.fromkeys(("bayes", "released", "none"), 0.0)
    for text in itertools.product(range(3), repeat=LENGTH):
        steps = list(itertools.pairwise((0, *text)))
        likelihood = np.array([np.prod([chain[a, b] for a, b in steps]) for chain in classes])
        following, weight = classes[:, text[-1]], likelihood[0]
        mixture = (prior * likelihood) @ following / (prior @ likelihood)
        log_p, history, log_next = jnp.log(mixture), jnp.log(likelihood), jnp.log(following)
        desired = gedi.released_log_desired(history, log_next, jnp.asarray(LENGTH))
        guided = {
            "bayes": gedi.exact(log_p, history, log_next, jnp.log(prior), 0),
            "released": gedi.released(log_p, desired, 1.0, 0.0, 0.0),
            "none": log_p,
        }
        for name, scores in guided.items():
            p = np.exp(np.asarray(scores, float))
            far[name] += weight * np.abs(p / p.sum() - following[0]).sum() / 2
    return far


def masking(rng: np.random.Generator) -> dict[str, float]:
    """Distance in total variation from a chain's law given that a pattern is fulfilled: of texts drawn under its
    "mask", of those "weighed" by the mass that it left, and of texts of the "chain" itself."""
    eos, chain = 2, rng.dirichlet(np.full(3, 0.5), 3)
    made = automata.lift(automata.compile_regex("(?:ab|b){1,3}|a{2,5}"), [b"a", b"b", None], eos)
    p, q, weighed = {}, {}, {}
    for n in range(7):
        for text in itertools.product(range(2), repeat=n):
            whole, state, last = (*text, eos), 0, 0
            if not automata.matches(made, whole):
                continue
            p[whole], q[whole], masses = 1.0, 1.0, []
            for symbol in whole:
                allowed = automata.allowed(made, state)
                masses.append(float(conditional.log_mass(jnp.log(chain[last]), allowed)))
                p[whole] *= chain[last, symbol]
                q[whole] *= chain[last, symbol] / np.exp(masses[-1])
                state, last = made.next[state, symbol], symbol
            weighed[whole] = q[whole] * np.exp(float(conditional.log_weight(jnp.asarray(masses))))
    total = sum(p.values())
    apart = lambda law, size: sum(abs(law[x] / size - p[x] / total) for x in p) / 2  # noqa: E731
    return {"mask": apart(q, 1.0), "weighed": apart(weighed, sum(weighed.values())), "chain": 1 - total}


MEASURES: dict[str, tuple[str, Callable[[np.random.Generator], dict[str, float]]]] = {
    "routing": ("bits a symbol", lambda rng: routing(unlike(rng))),
    "routing_alike": ("bits a symbol", lambda rng: routing(alike(rng))),
    "guiding": ("total variation", guiding),
    "masking": ("total variation", masking),
}
