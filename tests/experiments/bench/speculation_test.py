"""Figures of the bench of drafts, by hand: who is compared with whom, what is overhead, what the clocks are given."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.bench import rounds, speculation
from experiments.bench.speculation import Overlapping, Writer
from experiments.generation.overlapped import Step, Written
from models.decoding.drafts import chance, model, model_tree, none, recycling
from tests.models.decoding import stream_test

TARGET = {1: 10.0, 2: 11.0, 3: 12.0, 5: 14.0, 9: 18.0, 17: 26.0}  # 10 + (n - 1)
DRAFT = {n: 1.0 for n in TARGET}


def writer(drafter, calls, name=""):
    made = object.__new__(Writer)
    made.parts, made.calls = types.SimpleNamespace(drafter=(name, drafter)), calls
    made.decoder, made.prompts = None, ["a", "b"]
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


TREE = {"template": "", "beam": 2, "independent_draws": False, "workdir": "w", "width": 2}
DYSPEC = model_tree.ModelTree(builder="dyspec", size=8, levels=4, **TREE)


def test_what_is_read_of_a_draft_model_and_the_shape_of_a_round():
    assert rounds.reads("random", chance.Chance(4)) == rounds.reads("none", none.Nothing()) == ()
    assert rounds.reads("model_draft", model.ModelDraft("w", 4)) == (2, 1, 1, 1)
    assert rounds.reads("model_draft", model.ModelDraft("w", 2)) == (2, 1)
    assert rounds.reads("model_tree", DYSPEC) == (5, 2, 4, 6)
    assert rounds.shape(chance.Chance(4)) is None
    assert rounds.shape(recycling.Recycling("2x1x1x1", False)).tolist() == [[-1, 0, 1, 2, 3, 0, 0, 0, 0]]


def test_overhead_is_what_passes_do_not_take(monkeypatch):
    """Two texts, of 24 and 8 rounds: a round takes 15 or with a draft 20, its passes 14 or 18, a token 10."""
    counts, round_, order = {0: 24, 1: 8}, {"random": 15.0, "model_draft": 20.0}, []

    def passed(name, i, seconds):
        order.append((name, i))
        return counts[i] * seconds * (3.0 if 29 <= len(order) <= 40 else 1.0)  # The last turn is slow.

    def written(way, i):
        return passed("round", i, round_[way.parts.drafter[0]]), counts[i]

    def alone(run, way, i, given, count, **sizes):
        assert count == counts[i] and run == ("pair" if given else "alone")
        if given:
            assert given == (("weights", f"state {i}"),) and sizes["reads"] == (2, 1, 1, 1)
        if sizes:
            assert sizes["nodes"] == 5 and sizes["parents"] is None
        return passed("passes" if sizes else "token", i, (18.0 if given else 14.0) if sizes else 10.0)

    begun = lambda i: types.SimpleNamespace(state=f"state {i}")  # noqa: E731
    draft = types.SimpleNamespace(weights="weights", begun=begun, decoder=None)
    ways = {"random": writer(chance.Chance(4), 0, "random"), "long": writer(model.ModelDraft("w", 4), 0, "model_draft")}
    fakes = {"passes": lambda _: "alone", "pair_passes": lambda *_: "pair", "alone": alone, "written": written}
    for name, fake in fakes.items():
        monkeypatch.setattr(rounds, name, fake)
    found = rounds.costs(ways, draft, 2)
    forth = [(name, i) for i in (0, 1) for name in ("round", "passes", "token")]
    back = [(name, i) for i in (0, 1) for name in ("token", "passes", "round")]
    assert order == [("round", 0), ("round", 1)] * 2 + forth * 2 + back * 2 + forth * 2
    # Of two turns, one of them three times as slow, in the middle: but what is beyond is told in steps of its turn.
    assert found["random"] == pytest.approx(rounds.Cost(2 * 15.0, 2 * 14.0, 0.1))
    assert found["long"] == pytest.approx(rounds.Cost(2 * 20.0, 2 * 18.0, 0.2))


def plain_pass(name, kept, nodes, parents):
    """The likeliest token behind each of `nodes` behind the tokens `kept`, by the whole forward pass."""
    found = []
    for i in range(len(nodes)):
        path, at = [], i
        while at >= 0:
            path.append(nodes[at])
            at = parents[at]
        text = [*kept, *path[::-1]]
        logits = stream_test.forward(name)(jnp.asarray([text + [0] * (32 - len(text))]))
        found.append(int(jnp.argmax(logits[0, len(text) - 1])))
    return found


def decoder(name):
    graphdef, params = stream_test.model(name)
    models = lambda weights: {"model": nnx.merge(graphdef, weights).for_decoding()}  # noqa: E731
    return types.SimpleNamespace(models=models), params, models(params)["model"].init_state(1, 24)


def test_passes_alone_are_those_of_the_whole_forward_pass():
    """Three passes over a tree of four nodes; each keeps its first node."""
    parents = [-1, 0, 1, 0]
    made, params, state = decoder("attention")
    given = np.asarray([parents], np.int32)
    state, token = rounds.passes(made)(params, state, jnp.asarray([[5]]), 3, given, nodes=4)
    kept, nodes = [], [5] * 4
    for _ in range(3):
        after = plain_pass("attention", kept, nodes, parents)
        kept, nodes = [*kept, nodes[0]], after
    assert token.tolist() == [nodes] and state["slots"].length.tolist() == [3]


def test_passes_of_a_pair_are_those_of_both_whole_forward_passes():
    """Three rounds: a draft's pass over two tokens and two over one, each behind the last; then the target's."""
    (large, params, state), (small, own, drafted) = decoder("attention"), decoder("gqa")
    run = rounds.pair_passes(large, small)
    found = run(params, state, (own, drafted), jnp.asarray([[5]]), 3, nodes=3, reads=(2, 1, 1))
    kept, held, nodes = [], [], [5] * 3
    for _ in range(3):
        last, seen = nodes[0], list(held)
        for n in (2, 1, 1):
            after = plain_pass("gqa", seen, [last] * n, range(-1, n - 1))
            seen, last = [*seen, last], after[-1]
        held.append(seen[len(held)])
        nodes, kept = plain_pass("attention", kept, [last] * 3, [-1, 0, 1]), [*kept, last]
    assert found[2].tolist() == [nodes]
    assert found[0]["slots"].length.tolist() == found[1]["slots"].length.tolist() == [3]


def test_clocks_are_given_the_rounds_and_costs_of_another_run():
    ways = {
        "model_draft": writer(model.ModelDraft("w", 4), 10),
        "model_tree": writer(DYSPEC, 10),
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
