"""Stored evidence judged by what its claim states today, without a run: python -m experiments.claims.rejudge.

Of a row with an interval the deviation over seeds is known, and so what the rule of `method` says of it at a look of so
many seeds. A row that this look leaves open is at a cost too high where the seeds that a decision needs are more than
the budget, and undecided where they are not. Hours are those that the record has; older records have none.
"""

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from scipy import stats

from experiments import workdir as files
from experiments.claims import ledger, method, pages
from experiments.claims.evidence import COST, UNDECIDED
from experiments.settings.errors import Refused

LESS = ("growth", "overtraining")  # checks that keep losses or errors, less of which is better
MARK = "; control: "  # begins what `method.final` adds to a row


def rejudged(record: Mapping[str, Any], claim: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the verdicts of today; as it is where the claim states no method.

    Errors: Refused where a row keeps nothing of what the control of today reads.
    """
    made = copy.deepcopy(dict(record))
    pairs = claim.get("pairs") or claim.get("contrasts") or ()
    for k, row in enumerate(made["rows"]):
        stated = method.of(claim, pairs[k] if k < len(pairs) else None)
        if stated is None or not {"mean", "low", "high", "seeds"} <= {*row["numbers"]}:
            continue
        anew = _anew(row, stated, sign=-1 if claim.get("check") in LESS else 1)
        if _method(anew) != _method(row):
            made["judged_anew"], made["rows"][k] = True, anew
    return made


def _method(row: Mapping[str, Any]) -> list[Any]:
    """The verdict of a row and what it was decided by."""
    return [row["verdict"], *(row["numbers"].get(key) for key in ("effect", "looks", "control"))]


def _anew(row: Mapping[str, Any], stated: method.Method, *, sign: int) -> dict[str, Any]:
    """One row, judged by the method `stated`; `sign` -1 where less of what it keeps is better."""
    numbers = row["numbers"]
    seeds = len(numbers["seeds"])
    level = numbers.get("level_of_a_look", method.LEVEL)
    half = (numbers["high"] - numbers["low"]) / 2
    deviation = half * math.sqrt(seeds) / float(stats.t.isf(level / 2, seeds - 1))
    bound = sign * numbers.get("within", 0.0)
    judged = method.summary(sign * numbers["mean"], deviation, seeds, stated, bound=bound)
    shown = judged if sign > 0 else dataclasses.replace(judged, mean=-judged.mean, low=-judged.high, high=-judged.low)
    numbers, measured = numbers | shown.to_dict(), row["measured"].partition(MARK)[0]
    open_row = {**row, "verdict": judged.verdict, "numbers": numbers}
    verdict, said, kept = method.final(stated, open_row, hours=numbers.get("hours", 0.0), more=False)
    if verdict == COST and kept["needs"]["seeds"] <= stated.looks[-1]:
        verdict = UNDECIDED
    if "hours" not in numbers:  # no time was kept
        kept.pop("hours")
        said = said.replace(f" seeds, {kept['needs']['hours']:.2g} hours", " seeds") if "needs" in kept else said
        kept.get("needs", {}).pop("hours", None)
    return {**row, "verdict": verdict, "measured": measured + said, "numbers": numbers | kept}


if __name__ == "__main__":
    for path in sorted((ledger.DOCS / ledger.STORE).glob("*.json")):
        before = files.read_json(path) or {}
        try:
            after = rejudged(before, pages.stated(before["claim"])[1])
        except Refused as error:  # The runs kept nothing that the control of today reads.
            print(f"{path.stem} stays as it is: {error} Only another run decides it.")
            continue
        files.write_json(path, after)
        for old, new in zip(before["rows"], after["rows"], strict=True):
            if old["verdict"] != new["verdict"]:
                print(f"{path.stem}: {new['statement']}: {old['verdict']} -> {new['verdict']}")
    ledger.write()
