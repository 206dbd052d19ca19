"""Cached beginnings: texts and states are those without the cache, for slots and for states that hold more."""

import jax
import numpy as np
import pytest

from experiments.generation.engine import Engine
from experiments.generation.serving import driven
from experiments.generation.serving.cached import CachedEngine
from experiments.generation.serving.driven import Prompt
from experiments.generation.serving.schedulers import SCHEDULERS
from experiments.settings.errors import ConfigError
from tests.experiments.generation.engine_test import OPTIONS, mixed, trained

HEAD = "hello world " * 7  # 84 tokens
TEXTS = [HEAD + "and", HEAD + "or", HEAD[:50] + "x", "y" + HEAD, HEAD + "and", "", "ab"]
ASKED = {"max_tokens": 12, "temperature": OPTIONS["temperature"]}


@pytest.mark.parametrize("make, some", [(trained, 7), (lambda: mixed(1), 3)], ids=["attention", "mixed"])
def test_texts_are_those_without_a_cache(make, some):
    """One after another and together; with room for few blocks, too."""
    numbers, sizes = list(range(some)), {"lanes": 3, "capacity": 128, "chunk": 16}
    want = [r.text for r in _all(Engine(make(), **sizes), numbers)]
    engine = CachedEngine(make(), blocks=100, block=16, **sizes)
    assert [_all(engine, [n])[0].text for n in numbers] == want  # One after another.
    assert engine.cache.hits == 16 * sum((0, 5, 3, 0, 5)[:some])
    for blocks in (100, 4):
        engine.cache.most = blocks
        engine.cache.shrink(blocks)
        found = engine.cache.hits
        assert [r.text for r in _all(engine, numbers)] == want
        assert engine.figures()["used"] == 0 and engine.figures()["blocks"] <= blocks and engine.cache.hits > found


def _all(engine, numbers):
    ids = engine.admit_all([TEXTS[n] for n in numbers], seed=5, numbers=numbers, **ASKED)
    found = {result.id: result for result in engine.results()}
    assert not any(result.failed for result in found.values())
    return [found[i] for i in ids]


def test_a_row_that_begins_with_blocks_is_the_row_that_read_them():
    engine = CachedEngine(trained(), blocks=100, block=16, lanes=2, capacity=128, chunk=16)
    states = []
    for _ in range(2):
        engine.admit(TEXTS[0], seed=5, **ASKED)
        request = engine.waiting[0]
        engine._begin(request)
        engine._read(request, 0)
        states.append((request.read, None))
        for _ in range(5):  # Pieces end within blocks.
            engine._read(request, 20)
        states[-1] = (states[-1][0], jax.device_get((request.one.state, request.one.side)))
        engine.free(request.id)
    (none, first), (some, second) = states
    assert none == 0 and some == 80
    n = len(TEXTS[0])
    np.testing.assert_array_equal(first[0]["slots"].length, second[0]["slots"].length)
    assert int(first[0]["slots"].length[0]) == n  # The start of a document, and all but the last token.
    for a, b, axis in zip(jax.tree.leaves(first), jax.tree.leaves(second), engine._axes, strict=True):
        a, b = (np.take(x, range(n), axis) if axis is not None else x for x in (a, b))
        np.testing.assert_array_equal(a, b)


def test_under_a_policy_what_is_found_is_not_read():
    """Chunks begin behind the blocks that are there, and end within others, which are not kept yet."""
    engine = CachedEngine(trained(), blocks=100, block=16, lanes=2, capacity=128, chunk=16, rounds=1)
    asked = [Prompt(TEXTS[n], 100.0 * i, ASKED, seed=5, number=n) for i, n in enumerate((0, 1, 3))]
    log, texts = driven.serve(engine, SCHEDULERS["sarathi"](budget=20), asked, clock=ticks())
    plain = Engine(trained(), lanes=2, capacity=128, chunk=16)
    want = {n: _all(plain, [n])[0].text for n in (0, 1, 3)}
    assert texts == [want[0], want[1], want[3]]
    read = [sum(s.plan.chunks.get(id, 0) for s in log.steps) for id in log.served]
    lengths = [served.asked.prompt for served in log.served.values()]
    assert read == [lengths[0], lengths[1] - 80, lengths[2]]


def ticks():
    """A clock on which every step takes as long."""
    now = [0.0]

    def read():
        now[0] += 0.5
        return now[0]

    return read


def test_what_cannot_be_cached():
    with pytest.raises(ConfigError, match="generate.memory='h2o'"):
        CachedEngine(trained(), capacity=128, memory="h2o")
    with pytest.raises(ConfigError, match="blocks=0"):
        CachedEngine(trained(), capacity=128, blocks=0)
