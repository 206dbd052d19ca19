"""The engine under every scheduler: texts are those of each request alone, and steps are those of the simulator."""

import dataclasses
import functools

import pytest

from experiments.generation import requests
from experiments.generation.engine import Engine
from experiments.generation.serving import driven
from experiments.generation.serving.costs import StepCost
from experiments.generation.serving.driven import Prompt
from experiments.generation.serving.jobs import Slots
from experiments.generation.serving.sarathi import Limits
from experiments.generation.serving.schedulers import SCHEDULERS, FirstCome, Sarathi
from experiments.generation.serving.simulator import Machine, simulate
from tests.experiments.generation.engine_test import OPTIONS, PROMPTS, alone, trained
from tests.experiments.generation.generate_test import generator

ASKED = {"max_tokens": 24, "temperature": OPTIONS["temperature"]}
MAKE = {
    **SCHEDULERS,
    "sarathi": lambda: SCHEDULERS["sarathi"](budget=20, rows=3),
    "batchllm": lambda: SCHEDULERS["batchllm"](budget=20),
    "past_future": lambda: SCHEDULERS["past_future"](longest=24),
    "first_come": lambda: SCHEDULERS["first_come"](rows=3),
}


def ticks():
    """A clock on which every step takes as long."""
    now = [0.0]

    def read():
        now[0] += 0.5
        return now[0]

    return read


@functools.cache
def engine():
    """One for all tests: empty between them, compiled once."""
    return Engine(trained(), capacity=192, lanes=4, pool=256, rounds=1, chunk=16)


def asked_for(text, seconds=0.0):
    """A request with the randomness of the first time that its prompt is asked for."""
    return Prompt(text, seconds, ASKED, seed=5, number=requests.number(text, 0))


def plans(log):
    """All that a scheduler decided, and when."""
    return [(s.start, s.plan.preempt, s.plan.admit, dict(s.plan.chunks), s.plan.decodes) for s in log.steps]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_texts_are_those_of_each_request_alone_and_steps_those_of_the_simulator(name):
    """A pool for few rows, prompts in chunks, rows that leave and come back."""
    prompts = [asked_for(text, 3.0 * i) for i, text in enumerate(PROMPTS)]
    log, texts = driven.serve(engine(), MAKE[name](), prompts, clock=ticks())
    assert texts == alone()
    asked = [served.asked for served in log.served.values()]
    if name == "batchllm":  # Its groups go by the tokens.
        encoded = [tuple(requests.encode(engine().tokenizer, p)[:-1].tolist()) for p in PROMPTS]
        asked = [dataclasses.replace(a, ids=ids) for a, ids in zip(asked, encoded, strict=True)]
    cost = StepCost((0.5, 0, 0, 0, 0))
    made = simulate(asked, [Machine(MAKE[name](), cost, Slots(engine().pool), lag=0, keeps=True)])
    assert plans(made) == plans(log)
    assert [made.served[a.id].times for a in asked] == [log.served[a.id].times for a in asked]
    assert [(s.work, s.used) for s in made.steps] == [(s.work, s.used) for s in log.steps]
    if name in ("sarathi", "batchllm"):
        assert all(s.plan.tokens <= max(20, len(s.plan.decodes)) for s in log.steps)
        assert any(len(s.work.chunks) and s.work.decodes for s in log.steps)  # Prompts beside decodes.
        assert sum(0 < n < 60 for s in log.steps for n, _ in s.work.chunks) > 6  # In pieces.


def test_rows_leave_a_pool_that_is_too_small_and_their_texts_stay():
    """Four rows of 64 slots fit, two of 128."""
    maker, params = generator()
    texts = ["x" * 50, "y" * 51, "z" * 52]
    log, found = driven.serve(engine(), FirstCome(), [asked_for(text) for text in texts], clock=ticks())
    assert found == [maker(params, [text], OPTIONS, seed=5)[0] for text in texts]
    assert sum(s.preempted for s in log.served.values()) > 0


def test_a_stop_string_ends_a_row_between_two_steps():
    plain = [(i, c) for i, text in enumerate(alone()) for c in text[1:] if c.isascii() and c not in text[0]]
    row, stop = plain[0]
    at = alone()[row].index(stop)
    prompts = [dataclasses.replace(asked_for(PROMPTS[row]), settings=ASKED | {"stop": (stop,)}), asked_for(PROMPTS[0])]
    scheduler = MAKE["past_future"]()
    log, texts = driven.serve(engine(), scheduler, prompts, clock=ticks())
    assert texts == [alone()[row][:at], alone()[0]] and not engine().running
    outputs = [served.asked.output for served in log.served.values()]
    assert outputs[0] < outputs[1] == 24 and sorted(scheduler.history[-2:]) == sorted(outputs)


def test_what_cannot_be_driven():
    with pytest.raises(ValueError, match="rounds=16"):
        driven.Driven(Engine(trained(), capacity=192, lanes=2), Sarathi())
    with pytest.raises(RuntimeError, match="no plan takes what waits"):
        driven.serve(engine(), Sarathi(Limits(budget=0)), [Prompt("abc", 0.0, ASKED)], clock=ticks())
    engine().free(engine().waiting[0].id)
