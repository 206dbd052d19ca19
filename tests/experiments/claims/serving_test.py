"""The check of claims on serving: its traces, its setups, and rows that follow from what is served."""

import dataclasses

import pytest

from configs.claims import serving as claim_file
from experiments.claims import serving as check
from experiments.claims.evidence import DOES_NOT, HOLDS
from experiments.claims.serving import FIGURES, Setup, requests
from experiments.generation.serving.costs import Offloaded, StepCost, Work

COST = (1.0, 0.01, 0.0, 0.0, 0.0)
TRACE = {"arrivals": "poisson", "rate": 0.5, "count": 12, "prompt": 30, "output": 5, "spread": 0.5, "most": 60}
CLAIM = {
    "common": {"cost": COST},
    "trace": TRACE,
    "limits": {"first": 5.0, "gap": 2.0, "stall": 3.0},
    "setups": {"joins": {}, "waits": {"scheduler": "batches"}, "two": {"machines": 2, "price": 2.0}},
    "seeds": (0, 1, 2),
}


def row(better, worse, figure, **changes):
    return {"statement": "s", "published": "p", "better": better, "worse": worse, "figure": figure, **changes}


def test_verdicts_follow_from_what_is_served():
    rows = [row("joins", "waits", "first"), row("waits", "joins", "first"), row("joins", "two", "per_price")]
    found = check.run({**CLAIM, "rows": rows}, None, jobs=1, quiet=True)
    assert [r.verdict for r in found] == [HOLDS, DOES_NOT, HOLDS]
    assert (
        found[0].numbers["better"] == found[1].numbers["worse"]
        and found[0].numbers["mean"] == -found[1].numbers["mean"]
    )
    assert "12 requests, 3 traces" in found[0].scale and "better by" in found[0].measured
    own = check.run(
        {**CLAIM, "rows": [row("joins", "waits", "goodput", limits={"first": 0.0})]}, None, jobs=1, quiet=True
    )
    assert own[0].numbers["better"] == [0, 0, 0]


def test_traces_share_beginnings():
    plain, shared = requests(TRACE, 3), requests({**TRACE, "heads": 2, "head": 40, "arrivals": "at_once"}, 3)
    assert [r.prompt + 40 for r in plain] == [r.prompt for r in shared] and not plain[0].ids
    assert len({r.ids[:40] for r in shared}) == 2 and len({r.ids[:41] for r in shared}) == 12
    assert {r.arrival for r in shared} == {0.0} and plain[0].arrival > 0 and requests(TRACE, 3) == plain
    assert {r.limit for r in plain} == {60}


def test_setups_are_what_they_say():
    chunks = Work(chunks=((4, 0), (9, 0), (5, 0)))
    at = lambda **options: Setup(cost=COST, **options).machine().cost(chunks)  # noqa: E731
    assert (
        at() == pytest.approx(1.18)
        and at(read="padded") == pytest.approx(1.27)
        and at(read="packed") == pytest.approx(1.18)
    )
    moved = {"attention": 0.5, "traffic": 0.0, "bandwidth": 1.0, "batches": 1}
    assert Setup(cost=COST, offloaded=moved).machine().cost == Offloaded(StepCost(COST), **moved)
    # One reads, one writes: nobody waits for a prompt, but 0.04 s for what is left to send.
    apart = Setup(cost=(0, 0.01, 0, 0, 1.0), pools=(1, 1), writes=(1.0, 0, 0, 0, 0), transfer=(0.01, 10.0, 4))
    log = apart.serve(requests({**TRACE, "rate": 1000.0, "count": 2, "spread": 0.0}, 0))
    times = log.served[0].times
    assert log.sent[0] == pytest.approx(30 * 0.01 / 10) and times[1] - times[0] == pytest.approx(1.03)
    assert Setup(scheduler="past_future", past=2).machine([7, 8]).scheduler.history[-2:] == [7, 8]


def test_the_claim_names_what_there_is():
    claim = claim_file.get_claim()
    names = {field.name for field in dataclasses.fields(Setup)}
    assert all({*changes} <= names for changes in (claim["common"], *claim["setups"].values()))
    for each in claim["rows"]:
        assert {each["better"], each["worse"]} <= {*claim["setups"]} and each["figure"] in FIGURES
    assert len({each["statement"] for each in claim["rows"]}) == len(claim["rows"])
