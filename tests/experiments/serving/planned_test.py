"""The server's engine under every scheduler, and its cache of beginnings: texts are those of each request alone."""

import dataclasses
import functools
import types

import pytest

from configs.knobs import decoding
from experiments.generation import requests
from experiments.generation.engine import Engine
from experiments.generation.serving.cached import CachedEngine
from experiments.generation.serving.plan import StepPlan
from experiments.generation.serving.planned import Planned
from experiments.generation.serving.schedulers import SCHEDULERS
from experiments.serving import worker as rooms
from experiments.settings.errors import ConfigError
from tests.experiments.generation.engine_test import OPTIONS, PROMPTS, alone, trained

TEXTS = [*PROMPTS, PROMPTS[-1]]
CAPACITY = 192


def served(**engine):
    """A run with settings of `generate.engine`, as the server's process loads one."""
    made = trained()
    config = made.config.copy_and_resolve_references()
    config.generate.engine.update({"capacity": CAPACITY, "pool": 256} | engine)
    return types.SimpleNamespace(**vars(made) | {"config": config.lock()}, about={}, workdir=None)


@functools.cache
def worker():
    """One for all tests: empty between them, compiled once."""
    made = rooms.Worker(served(), 4)
    assert isinstance(made.engine, CachedEngine) and made.planned is None
    return made


def start(id, text, **more):
    """A message of the HTTP process."""
    said = {"do": "start", "id": id, "prompt": {"text": text}, "choice": 0, "seed": 5, "alternatives": None}
    settings = {"max_tokens": 24, "temperature": OPTIONS["temperature"]}
    return said | {"echo": False, "streams": False, "drafts": False, "kept": False, "settings": settings} | more


def ended(worker, *messages):
    """(text, event of the end) by id, of texts that are asked for together."""
    for message in messages:
        worker.hear(message)
    texts, ends = {}, {}
    while not worker.idle:
        for event in worker.turn()["told"]:
            assert "wrong" not in event, event
            texts[event["id"]] = texts.get(event["id"], "") + event.get("text", "")
            if "end" in event:
                ends[event["id"]] = event
    return texts, ends


@pytest.mark.parametrize("name", SCHEDULERS)
def test_texts_are_the_same_whoever_plans(name):
    """More texts than lanes, some read along, a pool that is too small for all, and a client that leaves."""
    made, engine = worker(), worker().engine
    engine.cache.shrink(0)
    made.planned = rooms._planned(engine, served(scheduler=name, budget=24).config.generate.engine)
    assert (made.planned is None) == (name == "first_come")
    asked = [start(str(i), text, streams=i % 2 == 1) for i, text in enumerate(TEXTS)]
    made.hear(start("gone", "gone with the wind"))
    made.hear(start("left", "left " * 9))
    made.turn()
    made.hear({"do": "cancel", "id": "gone"})
    texts, ends = ended(made, *asked, {"do": "cancel", "id": "left"})
    assert [texts[str(i)] for i in range(len(TEXTS))] == [*alone(), alone()[-1]]
    assert {event["end"] for event in ends.values()} <= {"limit", "end"}
    assert engine.figures()["used"] == 0 and not engine.cache._keys
    if made.planned is not None:
        made.planned.seen()  # It hears of what has ended, and remembers nothing of it.
        assert not (made.planned.there or made.planned.arrivals or made.planned._ids)
    made.planned = None


def test_a_shared_beginning_is_read_once_also_of_texts_that_come_together():
    made, cache = worker(), worker().engine.cache
    cache.shrink(0)
    before = cache.hits
    texts, ends = ended(made, *(start(str(i), PROMPTS[-1], choice=i) for i in range(3)))
    n = len(requests.encode(made.engine.tokenizer, PROMPTS[-1]))
    assert [ends[str(i)]["counts"] for i in range(3)] == [[n, 24, found] for found in (0, 96, 96)]
    assert texts["0"] == alone()[-1]
    assert cache.hits - before == 192 and made.busy()["blocks"] == len(cache.blocks) == 3


def test_what_a_request_sets_for_itself_is_in_no_block():
    """A bias stands in a side of the row, which is no part of what its prompt leaves."""
    made = worker()
    made.engine.cache.shrink(0)
    forced = start("a", PROMPTS[-1])
    forced["settings"] = forced["settings"] | {"logit_bias": {"ids": "97:90"}}
    assert ended(made, forced)[0]["a"] == "a" * 24
    texts, ends = ended(made, start("b", PROMPTS[-1]))
    assert ends["b"]["counts"][2] == 96 and texts["b"] == alone()[-1]


def test_a_row_whose_prompt_is_being_read_is_put_back_and_reads_anew():
    """But for the block that it left."""
    engine, text = worker().engine, PROMPTS[-1]
    engine.cache.shrink(0)
    asked = {"seed": 5, "max_tokens": 24, "temperature": OPTIONS["temperature"]}
    id = engine.admit(text, number=requests.number(text, 0), **asked)
    engine.step(StepPlan(admit=(id,), chunks={id: 40}))
    assert engine.reading[id].read == 40 and not engine.running
    engine.step(StepPlan(preempt=(id,)))
    (request,) = engine.waiting
    assert (request.read, request.one) == (0, None) and not engine.reading
    assert [result.text for result in engine.results()] == [alone()[-1]] and request.found == 32


def test_a_prompt_that_a_scheduler_takes_under_no_plan_goes_alone():
    """Sarathi leaves some of the memory free, which a text of the whole pool does not."""
    engine = worker().engine
    planned = Planned(engine, SCHEDULERS["sarathi"](budget=24, watermark=0.05))
    pool, engine.pool = engine.pool, engine.pool.__class__(2, CAPACITY, CAPACITY)
    try:
        planned.admit("y" * (CAPACITY - 2), 0.0, seed=5, number=0, max_tokens=1, temperature=0.0)
        planned.admit("a", 1.0, seed=5, number=0, max_tokens=2, temperature=0.0)
        assert not planned.scheduler.step(planned.seen()).admit
        ends = []
        while engine.waiting or engine.reading or engine.running:
            engine.step(planned.turn(0.0, 16))
            ends += [result.id for result in engine.ended()]
        assert ends == sorted(ends) and len(ends) == 2
    finally:
        engine.pool = pool


def test_rounds_are_as_many_as_the_pool_holds():
    """4 rows of 64 slots are the pool: 60 tokens and 4 rounds fit, 16 do not. A row that waits for a lane counts."""
    engine = worker().engine
    planned = Planned(engine, SCHEDULERS["sarathi"](budget=24))
    assert planned._fitting(16) == 16
    ids = [engine.admit("y" * 58, seed=5, number=i, max_tokens=30, temperature=0.0) for i in range(4)]
    engine.step(StepPlan(admit=tuple(ids), chunks=dict.fromkeys(ids, 58), decodes=(), rounds=1))
    assert len(engine.running) == 4 and planned._fitting(16) == 4 and planned._fitting(3) == 3
    waits, engine.running = engine.running, {}
    engine.reading.update({id: dataclasses.replace(r, one=object(), read=58) for id, r in waits.items()})
    assert planned._fitting(16) == 4
    engine.reading.clear()
    engine.running.update(waits)
    for id in ids:
        engine.free(id)


def test_settings_of_schedulers():
    assert decoding.engine.scheduler.choices == tuple(SCHEDULERS)
    with pytest.raises(ConfigError, match="generate.engine.budget=4 .* use e.g. generate.engine.budget=32"):
        rooms._planned(worker().engine, served(scheduler="sarathi", budget=4).config.generate.engine)
    for more in ({"prefix_blocks": 0}, {}):
        run = served(**more)
        run.config.unlock()
        run.config.generate.memory = "full" if more else "window"
        made = rooms._engine(run, lanes=1)
        assert type(made) is Engine
