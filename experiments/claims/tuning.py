"""The same small search of rates for every arm of a claim, on held-out rows that its verdict never reads.

A claim may have `tune`: {dotted key: values}, e.g. {"optimizer.learning_rate": (1e-3, 3e-3, 1e-2)}. Every arm is
trained with every combination under one seed of its own, SEED, and evaluated on the `eval.rows` held-out rows behind
those of the verdict (`eval.skip`). An arm then has the values that were best for it by the claim's own measure.

`borrow`, {name: (own, lender)}, adds arms that are not searched: each is the arm `own` with what was best for the arm
`lender`, and `own` itself has what was best for it among all else, so that the two differ.
"""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import arms, method
from experiments.claims.evidence import TUNING
from experiments.claims.measures import measure
from experiments.settings.errors import Refused

SEED = 10_000  # No claim of this house has it among its seeds.
TUNED = ("optimizer.",)  # What arms may differ in only where all of them are tuned.


def tuned(
    claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """(the claim with the best values in each arm, {arm: {"chosen": values, "tried": scores}}).

    Without `tune` it is the claim as it stands, and {}.

    Errors: Refused where some arms only have rates of their own, or are tuned.
    """
    refuse_unequal(claim)
    if "tune" not in claim:
        return claim, {}
    name, search = claim.get("score", "exact"), claim["tune"]
    score = measure(name, "score")
    if score.of is None:
        raise Refused(f"score={name!r} of the claim is no number of one run, by which arms could be tuned.")
    base = claim["base"].copy_and_resolve_references().unlock()
    if not base.eval.rows:
        raise Refused("eval.rows=0: the verdict reads every held-out row, and none is left to tune by; use e.g. 320.")
    base.eval.skip = base.eval.rows
    points = [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]
    borrow, given = claim.get("borrow", {}), {arm: dict(values) for arm, values in claim["arms"].items()}
    if "equal_to" in claim:
        arms.equalise(base, given, claim["equal_to"])
    tried = {f"{arm} {k}": {**given[arm], **point} for arm in given for k, point in enumerate(points)}
    found = arms.train(base, tried, (SEED,), workdir / TUNING, jobs=jobs, quiet=quiet)
    scores = {arm: [score.of(found[f"{arm} {k}"][0])[name] for k in range(len(points))] for arm in given}
    order = {arm: np.argsort([-score.sign * value for value in scores[arm]], kind="stable") for arm in given}
    chosen = {arm: int(ranks[0]) for arm, ranks in order.items()}
    lent = {arm: chosen[lender] for arm, (_, lender) in borrow.items()}
    chosen |= {own: int(next(k for k in order[own] if k != lent[arm])) for arm, (own, _) in borrow.items()} | lent
    said = {
        arm: {
            "chosen": points[k],
            "tried": [{**points[j], name: value} for j, value in enumerate(scores.get(arm, ()))],
        }
        for arm, k in chosen.items()
    }
    made = {arm: {**values, **points[chosen[arm]]} for arm, values in method.listed(claim).items()}
    return {**claim, "arms": made}, said


def refuse_unequal(claim: Mapping[str, Any]) -> None:
    """Refused where a search leaves arms out, or one arm has rates of its own that another lacks."""
    given = claim.get("arms")
    if not isinstance(given, Mapping) or not all(isinstance(values, Mapping) for values in given.values()):
        given = {}
    search = claim.get("tune")
    if search is not None:
        if not given:
            raise Refused("tune: the claim has no arms to tune; give arms, {name: {dotted key: value}}, or no tune.")
        if not search or not all(isinstance(v, list | tuple) and v for v in search.values()):
            raise Refused(
                f"tune={search!r} is no search that all arms share; use {{'optimizer.learning_rate': (1e-3, 3e-3)}}."
            )
        for arm, (own, lender) in claim.get("borrow", {}).items():
            if arm in given or not {own, lender} <= {*given}:
                raise Refused(f"borrow: {arm!r} takes {(own, lender)!r}; give a new name two of: {', '.join(given)}.")
        if tuple(claim.get("seeds", ())) and SEED in claim["seeds"]:
            raise Refused(f"seeds={claim['seeds']!r} hold {SEED}, with which arms are tuned; use e.g. (0, 1, 2).")
    for arm, values in given.items():
        own = {key for key in values if key.startswith(TUNED)}
        if clash := sorted(own & {*(search or ())}):
            raise Refused(f"arms: {arm!r} sets {clash[0]}, which tune searches for every arm; leave it out of the arm.")
        for other, theirs in given.items():
            if lacking := sorted(own - {*theirs}):
                raise Refused(
                    f"arms: {arm!r} sets {lacking[0]} and {other!r} does not: a claim that tunes one arm only is void; "
                    f"use e.g. tune={{{lacking[0]!r}: (1e-3, 3e-3)}} for all of them."
                )
