"""A piece of a prompt beside a round, and prompts side by side in one row: which passes are made, and the texts."""

import types

import jax
import numpy as np
import pytest

from experiments.generation.engine import Engine, StepPlan
from experiments.generation.prefixes import pieces, row_size
from experiments.generation.serving import prepacking
from experiments.generation.serving.cached import CachedEngine
from experiments.generation.serving.planned import Planned
from experiments.generation.serving.sarathi import Limits
from experiments.generation.serving.schedulers import Prepacking, Sarathi
from experiments.settings.errors import ConfigError
from tests.experiments.generation.engine_test import OPTIONS, PROMPTS, alone, mixed, trained

ASKED = {"seed": 5, "max_tokens": 24, "temperature": OPTIONS["temperature"]}
PASSES = ("read", "both", "extend", "packed", "unpacked")


def counted(engine):
    """The engine, and how often it has called each of its decoder's passes."""
    count = dict.fromkeys(PASSES, 0)

    def watched(name, real):
        def call(*args, **kw):
            count[name] += 1
            return real(*args, **kw)

        return call

    for name in PASSES:
        setattr(engine.decoder, name, watched(name, getattr(engine.decoder, name)))
    return engine, count


def took(count, step):
    """The passes that a step makes."""
    before = dict(count)
    step()
    return {name: n - before[name] for name, n in count.items() if n > before[name]}


def finished(engine, ids):
    found = {result.id: result.text for result in engine.results()}
    return [found[id] for id in ids]


def test_a_piece_and_a_round_are_one_pass():
    """Two rows write while a third prompt is read in pieces; rows that a plan does not name wait in that pass, too."""
    engine, count = counted(Engine(trained(), lanes=4, capacity=192, chunk=16))
    ids = [engine.admit(p, **ASKED) for p in (PROMPTS[1], PROMPTS[3], PROMPTS[4])]
    first, second, third = ids
    engine.step(StepPlan(admit=(first, second), chunks={first: 99, second: 99}, decodes=(), rounds=1))
    lengths = lambda: [len(engine.running[i].tokens) for i in (first, second)]  # noqa: E731
    plan = StepPlan(admit=(third,), chunks={third: 16}, rounds=1)
    assert took(count, lambda: engine.step(plan)) == {"both": 1} and lengths() == [1, 1]
    assert engine.reading[third].read == 16
    plan = StepPlan(chunks={third: 8}, decodes=(second,), rounds=1)
    assert took(count, lambda: engine.step(plan)) == {"both": 1} and lengths() == [1, 2]
    plan = StepPlan(chunks={third: 40}, decodes=(first,), rounds=1)  # Of its pieces the first is beside the round.
    assert took(count, lambda: engine.step(plan)) == {"both": 1, "read": 2} and lengths() == [2, 2]
    plan = StepPlan(chunks={third: 8}, decodes=(first,), rounds=2)
    assert took(count, lambda: engine.step(plan)) == {"read": 1, "extend": 1} and lengths() == [4, 2]
    plan = StepPlan(chunks={third: 99}, decodes=(), rounds=2)
    assert "both" not in took(count, lambda: engine.step(plan)) and lengths() == [4, 2]
    assert finished(engine, ids) == [alone()[1], alone()[3], alone()[4]]


def test_large_pieces_are_read_by_themselves():
    engine, count = counted(Engine(trained(), lanes=2, capacity=192))
    first, second = engine.admit(PROMPTS[1], **ASKED), engine.admit(PROMPTS[5], **ASKED)
    engine.step(StepPlan(admit=(first,), chunks={first: 99}, rounds=1))
    plan = StepPlan(admit=(second,), chunks={second: 110}, rounds=1)
    assert took(count, lambda: engine.step(plan)) == {"read": 1, "extend": 1}
    assert finished(engine, [first, second]) == [alone()[1], alone()[5]]


@pytest.mark.parametrize(
    ("mixers", "settings"),
    [(3, {}), (3, {"drafter": "lookup"}), (3, {"top_k": 5}), (1, {"drafter": "recycling"})],
    ids=["mixers", "chain", "rule", "tree"],
)
def test_a_round_of_any_parts_beside_a_piece_draws_the_same(mixers, settings):
    """Prompts of which 9 tokens a step are read; with drafts the rows that write read several tokens each."""
    made = mixed(1) if mixers == 3 else trained()
    asked = ASKED | {"max_tokens": 12}
    texts = [PROMPTS[1], "ab" * 10, "x" * 33]
    want = Engine(made, lanes=1, capacity=96, **settings).generate(texts, **asked)
    engine, count = counted(Engine(made, lanes=3, capacity=96, chunk=8, rounds=1, **settings))
    planned, ids = Planned(engine, Sarathi(Limits(budget=9, spare=False))), []
    for text in texts:
        ids.append(planned.admit(text, **asked))
        for _ in range(3):
            engine.step(planned.turn(0.0, 1))
    assert finished(engine, ids) == want and count["both"] > 3


def test_prompts_are_read_side_by_side():
    """Rows of at most 128 tokens: of seven prompts one has no token to read, and the longest has a row of its own."""
    engine, count = counted(Engine(trained(), lanes=8, capacity=192, chunk=128))
    ids = [engine.admit(p, **ASKED) for p in PROMPTS]
    assert took(count, engine.step)["packed"] == 1
    lengths = [len(p) for p in PROMPTS if p]
    shared = [row for row in prepacking.bins(lengths, 128) if len(row) > 1]
    alone_ = [n for i, n in enumerate(lengths) if i not in sum(shared, [])]
    assert shared and count["unpacked"] == len(lengths) - len(alone_)
    assert count["read"] == sum(len(list(pieces(n, 128))) for n in alone_) > 0
    assert finished(engine, ids) == alone()


@pytest.mark.parametrize("settings", [{"drafter": "lookup"}, {"top_k": 5}], ids=str)
def test_a_row_that_was_cut_out_is_the_row_that_read_alone(settings):
    """What is kept of a prompt, place by place; numbers to the last digits of a sum over a row's width."""
    rows = {}
    for packed in (True, False):
        engine = Engine(trained(), lanes=4, capacity=192, **settings)
        ids = [engine.admit(p, **ASKED) for p in PROMPTS[:4]]
        engine._read_packed([])
        for request in list(engine.waiting):
            engine._begin(request)
        requests = [engine.reading[i] for i in ids]
        read = engine._read_packed(requests) if packed else set()
        assert read == ({ids[0], ids[1], ids[3]} if packed else set())
        for request in requests:
            if request.id not in read:
                engine._read(request, 99)
        rows[packed] = [jax.device_get(request.one) for request in requests]
        assert all(request.ready for request in requests)
    for mine, other in zip(rows[True], rows[False], strict=True):
        n = int(mine.state["slots"].length[0])
        assert n == int(mine.length[0]) - 1 == int(other.state["slots"].length[0])
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
            if a.ndim == 4:
                np.testing.assert_allclose(a[:, :, :n], b[:, :, :n], rtol=0, atol=2e-5 * np.abs(b).max())
            elif a.shape == b.shape:
                np.testing.assert_array_equal(a, b)


def test_a_cache_of_beginnings_keeps_what_was_packed():
    """Equal beginnings do not share a row: the second finds the first's blocks."""
    engine, count = counted(CachedEngine(trained(), lanes=8, capacity=192, block=16))
    draw = lambda engine: finished(engine, [engine.admit(p, number=i, **ASKED) for i, p in enumerate(PROMPTS)])  # noqa: E731
    want = draw(Engine(trained(), lanes=1, capacity=192))
    assert draw(engine) == want and (count["packed"], count["unpacked"]) == (1, 4)
    assert engine.figures()["hit_tokens"] == 96  # The longest prompt begins as the one before it, in 108 tokens.
    assert draw(engine) == want and (count["packed"], count["unpacked"]) == (2, 6)  # Those that fill no block.
    assert engine.figures()["hit_tokens"] == 96 + 32 + 96 + 96


def test_sizes_of_rows():
    assert [row_size(n) for n in (1, 8, 9, 12, 13, 16, 17, 24, 25, 48, 49, 400)] == [
        8, 8, 12, 12, 16, 16, 24, 24, 32, 48, 64, 512,
    ]  # fmt: skip


def test_what_cannot_be_read_side_by_side_is_said():
    why = "generate.engine.scheduler='prepacking' reads several prompts in one row"
    engine = Engine(mixed(1), lanes=2, capacity=64)
    with pytest.raises(
        ConfigError, match=f"{why}, which model.mixer='attention, lact, gated_delta' does not keep apart"
    ):
        Planned(engine, Prepacking())
    assert not engine.plan().packed
    engine = Engine(trained(), lanes=2, capacity=192, memory="h2o")
    with pytest.raises(ConfigError, match=f"{why}, and generate.memory='h2o' chooses from a whole row"):
        Planned(engine, Prepacking())
    with pytest.raises(ConfigError, match=f"{why}, which needs one device"):
        Planned(Engine(trained(), lanes=2, capacity=192, control="adadec"), Prepacking())
    Planned(types.SimpleNamespace(unpackable=""), Prepacking())
