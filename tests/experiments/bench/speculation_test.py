"""Figures of the bench of drafts, by hand: who is compared with whom, what is overhead, what the clocks are given."""

import types

import pytest

from experiments.bench import speculation
from experiments.bench.speculation import Overlapping, Writer
from experiments.generation.overlapped import Step, Written
from models.decoding.drafts import chance, model, model_tree, none

TARGET = {1: 10.0, 2: 11.0, 3: 12.0, 5: 14.0, 9: 18.0, 17: 26.0}  # 10 + (n - 1)
DRAFT = {n: 1.0 for n in TARGET}


def writer(drafter, calls):
    made = object.__new__(Writer)
    made.parts, made.calls = types.SimpleNamespace(drafter=("", drafter)), calls
    return made


def overlapping(target, draft, rejected):
    """Steps that take so long; running it again gives steps that take twice as long."""

    def again(made=None):
        assert way.written[0].steps[0].target == target, "one more run is enough, and a draft is asked for no other"
        way.written = [Written("", (), tuple(step._replace(target=2 * target, draft=2 * draft) for step in steps))]

    steps = [Step(True, 0, 0, 0, bad, 0.0, target, draft, 0.0) for bad in rejected]
    way = type("Way", (Overlapping,), {"__init__": lambda self: None, "__call__": again})()
    way.written = [Written("", (), tuple(steps))] * 2
    return way


def test_ways_take_turns_and_the_round_that_compiles_does_not_count():
    order = []
    ways = {name: lambda name=name: (order.append(name), (float(len(order)), 0.0))[1] for name in "ab"}
    found = speculation.in_turn(ways, 2)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert found == {"a": [(3.0, 0.0), (6.0, 0.0)], "b": [(4.0, 0.0), (5.0, 0.0)]}
    assert speculation.speed([(6.0, 1.0), (2.0, 4.0), (8.0, 9.0)], [(3.0, 2.0), (4.0, 2.0), (1.0, 3.0)]) == 2.0
    assert speculation.speed([(6.0, 1.0), (2.0, 4.0), (8.0, 9.0)], [(3.0, 2.0), (4.0, 2.0), (1.0, 3.0)], 1) == 2.0


def test_overhead_is_what_passes_do_not_take():
    """24 rounds of five nodes, 15 each: one beyond the pass; of those with a draft, beyond the passes of both."""
    tree = {"template": "", "beam": 2, "independent_draws": False, "workdir": "w", "width": 2}
    ways = {
        "random": writer(chance.Chance(4), 24),
        "model_draft": writer(model.ModelDraft("w", 4), 24),
        "model_tree": writer(model_tree.ModelTree(builder="dyspec", size=8, levels=4, **tree), 24),
        "chosen": writer(none.Nothing(), 64),
        "pearl": None,
    }
    assert {name: speculation.reads(name, way.parts.drafter[1]) for name, way in ways.items() if way} == {
        "random": (), "model_draft": (2, 1, 1, 1), "model_tree": (5, 2, 4, 6), "chosen": (),
    }  # fmt: skip
    assert speculation.reads("chosen", model.ModelDraft("w", 2)) == (2, 1)
    found = {"random": [(24 * 15.0, 0)], "model_draft": [(24 * 20.0, 0)], "model_tree": [(24 * 23.0, 0)]}
    found["chosen"] = [(64 * 10.5, 0)]
    made = speculation.overheads(ways, found, TARGET, {"model_draft": 18.0, "model_tree": 22.0})
    assert made == pytest.approx({"random": 0.1, "model_draft": 0.2, "model_tree": 0.1, "chosen": 0.05})


def test_clocks_are_given_the_rounds_and_costs_of_another_run():
    tree = {"template": "", "beam": 2, "independent_draws": False, "workdir": "w", "width": 2}
    ways = {
        "model_draft": writer(model.ModelDraft("w", 4), 10),
        "model_tree": writer(model_tree.ModelTree(builder="dyspec", size=8, levels=4, **tree), 10),
        "pearl": overlapping(14.0, 2.0, [True, False, False]),
        "llmcad": overlapping(14.0, 2.0, [True, False, False]),
    }
    made = speculation.clocks(ways, (10.0, 1.0, 0.5), TARGET, {"model_draft": 18.0, "model_tree": 22.5})
    assert made["model_draft"] == pytest.approx(10 * (4 * 1.0 + 14.5))  # A pass over five tokens is 14 by itself.
    assert made["model_tree"] == pytest.approx(10 * (4.5 + 18.5))
    assert made["pearl"] == pytest.approx(2 * 3 * 28.0)
    # Of both texts: two rounds of four drafts of 1 each, and one whose drafts are written: 28 seconds were enough.
    assert made["llmcad"] == pytest.approx(2 * (2 * (4 * 1.0 + 28.0) + 28.0))


def test_between_measured_sizes_costs_are_linear():
    assert speculation.at(TARGET, 4) == 13.0 and speculation.at(TARGET, 1) == 10.0
