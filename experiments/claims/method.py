"""How a claim is decided: its control, the smallest effect of interest, its looks, and the verdict by rule.

A claim with a method states, beside what its check reads:

  effect: the smallest difference that matters, in units of the measure; a row of `pairs` or `contrasts` may have its
    own.
  control: {"says", "reads", "least" or "most"}: what must have worked for the claim to test anything. `reads` is the
    path to values by seed within the numbers of a row, e.g. ("exact", "reversed"); their mean is held to the bound. A
    pair may have its own.
  looks: numbers of seeds at which all is judged before the last look, rising, e.g. (3, 6); the last is at all `seeds`,
    which are the budget.
  hours: the budget of computing, summed over runs; no look begins that would go beyond it.

Arms are paired: the runs of one seed share the order of their data, and their initial values as far as shapes agree.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.claims import statistics
from experiments.claims.evidence import (
    CONTROL_FAILED,
    COST,
    DOES_NOT,
    EQUAL,
    HOLDS,
    UNDECIDED,
    Judged,
    above,
    interval,
)
from experiments.settings.errors import Refused

KEYS = ("effect", "control", "looks", "hours")
LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Method:
    """What a claim states of its method; see above."""

    effect: float
    control: Mapping[str, Any]
    looks: tuple[int, ...]
    hours: float

    @property
    def level(self) -> float:
        """Of a single look: Pocock's, such that all looks together have LEVEL."""
        return _level(self.looks)


@functools.cache
def _level(looks: tuple[int, ...]) -> float:
    return statistics.look_level([n / looks[-1] for n in looks], LEVEL)


def of(claim: Mapping[str, Any], pair: Mapping[str, Any] | None = None) -> Method | None:
    """The method of a claim, for one of its pairs; None for a claim that states none. Refused where it is half stated
    or cannot be."""
    stated = {key: {**claim, **(pair or {})}.get(key) for key in KEYS}
    if all(value is None for value in stated.values()):
        return None
    example = {"effect": 0.05, "control": {"says": "..", "reads": ("exact", "plain"), "least": 0.9}}
    example |= {"looks": (3, 6), "hours": 1.0}
    for key, value in stated.items():
        if value is None:
            raise Refused(f"the claim states its method but not its {key}; add e.g. {key}={example[key]!r}.")
    looks, budget = tuple(stated["looks"]), claim.get("budgeted", len(claim["seeds"]))
    if any(b <= a for a, b in zip((1, *looks), looks, strict=False)):
        raise Refused(f"looks={looks!r} must rise from 2 or more; use e.g. {example['looks']}.")
    looks = (*(look for look in looks if look < budget), budget)
    for key in ("effect", "hours"):
        if not stated[key] > 0:
            raise Refused(f"{key}={stated[key]!r} must be positive; use e.g. {example[key]!r}.")
    control = stated["control"]
    if not {"says", "reads"} <= {*control} or ("least" in control) == ("most" in control):
        raise Refused(f"control={dict(control)!r} needs says, reads, and least or most; e.g. {example['control']!r}.")
    return Method(float(stated["effect"]), control, looks, float(stated["hours"]))


def first(claim: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The claim with its first `count` seeds only, as at a look; it still knows how many the budget holds."""
    if "seeds" not in claim:
        return dict(claim)
    return {**claim, "seeds": claim["seeds"][:count], "budgeted": len(claim["seeds"])}


def listed(claim: Mapping[str, Any]) -> dict[str, Any]:
    """The arms of a claim, those that borrow behind the others: {arm: what it sets beside its rates}."""
    given = claim.get("arms", {})
    return {**given, **{name: given[own] for name, (own, _) in claim.get("borrow", {}).items()}}


def decide(mean: float, low: float, high: float, effect: float, *, last: bool) -> str:
    """The verdict on "greater than 0" for the interval of a look; UNDECIDED asks for more seeds.

    Within -effect..effect it is EQUAL. Above 0 it HOLDS, below 0 it DOES_NOT; before the last look only if the mean is
    at least the effect, or the interval narrower than it: what is seen early by luck is seen too large. An interval
    narrower than the effect always decides, since it cannot hold both 0 and the effect. At the last look what is still
    undecided is at a COST too high.
    """
    if -effect < low and high < effect:
        return EQUAL
    if last or high - low < effect or abs(mean) >= effect:
        if low > 0:
            return HOLDS
        if high < 0:
            return DOES_NOT
    return COST if last else UNDECIDED


def judge(
    claim: Mapping[str, Any], values: Sequence[float], *, pair: Mapping[str, Any] | None = None, bound: float = 0.0
) -> Judged:
    """The verdict on "greater than `bound`" of differences by seed; by the 95% interval alone without a method."""
    made = of(claim, pair)
    if made is None:
        mean, low, high = interval(values)
        return Judged(mean, low, high, above(low, high, bound), {"differences": [float(v) for v in values]})
    if len(values) < 2:
        interval(values)  # Refused
    found = summary(float(np.mean(values)), float(np.std(values, ddof=1)), len(values), made, bound=bound)
    return dataclasses.replace(found, numbers=found.numbers | {"differences": [float(v) for v in values]})


def summary(mean: float, deviation: float, seeds: int, made: Method, *, bound: float = 0.0) -> Judged:
    """`judge` of differences that are known by their mean and deviation only."""
    half = statistics.half_width(deviation, seeds, made.level)
    ends = mean - half, mean + half
    last = seeds >= made.looks[-1]
    verdict = decide(mean - bound, ends[0] - bound, ends[1] - bound, made.effect, last=last)
    numbers = {
        "effect": made.effect, "deviation": deviation, "looks": list(made.looks), "level_of_a_look": made.level,
    }  # fmt: skip
    return Judged(mean, *ends, verdict, numbers)


def controlled(made: Method, numbers: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
    """(whether the control was reached, {"says", "value", "least" or "most"}) from the numbers of a row.

    Errors: Refused where the path of the control leads to no values.
    """
    found: Any = numbers
    for key in made.control["reads"]:
        if not isinstance(found, Mapping) or key not in found:
            known = list(found) if isinstance(found, Mapping) else found
            raise Refused(f"control: reads={made.control['reads']!r} finds no {key!r}; there are {known!r}.")
        found = found[key]
    value = float(np.mean(found))
    stated = {key: made.control[key] for key in ("least", "most") if key in made.control}
    passed = value >= stated["least"] if "least" in stated else value <= stated["most"]
    return passed, {"says": made.control["says"], "value": value, **stated}


def needs(made: Method, deviation: float, hours_a_seed: float) -> dict[str, float]:
    """What a decision would cost: `seeds` until the interval is narrower than the effect, and their `hours`."""
    seeds = statistics.seeds_for_width(made.effect, deviation, made.level)
    return {"seeds": seeds, "hours": seeds * hours_a_seed}


def final(made: Method, row: Mapping[str, Any], *, hours: float, more: bool) -> tuple[str, str, dict[str, Any]]:
    """(verdict, what follows what was measured, numbers) of a row after a look, the control first.

    Args:
      row: with `verdict`, and in `numbers` `seeds` and `deviation`.
      hours: of all runs so far.
      more: whether the budget allows another look.
    """
    numbers = row["numbers"]
    reached, control = controlled(made, numbers)
    bound = f">= {control['least']:g}" if "least" in control else f"<= {control['most']:g}"
    said = f"; control: {control['says']} {control['value']:.4g} ({bound} asked for)"
    seeds = len(numbers["seeds"])
    kept: dict[str, Any] = {"control": control | {"reached": reached}, "hours": hours}
    if not reached:
        return CONTROL_FAILED, said, kept
    if row["verdict"] not in (UNDECIDED, COST) or (row["verdict"] == UNDECIDED and more):
        return row["verdict"], said, kept
    cost = needs(made, numbers["deviation"], hours / seeds)
    said += f"; a decision within {made.effect:g} needs about {cost['seeds']} seeds, {cost['hours']:.2g} hours"
    return COST, said, kept | {"needs": cost}
