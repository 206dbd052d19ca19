"""The simulator beside the engine: a clock that shows one speed of the machine, and what "the same plans" compares."""

import dataclasses

import pytest

from experiments.bench.serving import Pair, within
from experiments.bench.timing import Steady
from experiments.generation.serving import driven
from tests.experiments.generation.engine_test import PROMPTS
from tests.experiments.generation.serving.driven_test import MAKE, asked_for, engine, ticks


class Machine:
    """Seconds of a machine whose speed changes: what is one second at speed 1 takes `slow` of them."""

    def __init__(self):
        self.now, self.slow = 0.0, 1.0

    def __call__(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds * self.slow


def test_seconds_are_those_of_one_speed():
    machine = Machine()
    clock = Steady(lambda: machine.spend(0.25), clock=machine, memory=4)
    assert clock() == 0.0  # Its own work does not pass.
    machine.spend(3.0)
    assert clock() == pytest.approx(3.0)
    machine.slow = 1.5
    for _ in range(60):
        clock()
    begun = clock()
    machine.spend(3.0)
    assert clock() - begun == pytest.approx(3.0, rel=1e-6)
    machine.slow = 100.0  # A single piece that was interrupted counts as one that took twice as long.
    clock()
    machine.slow, begun = 1.5, clock.time
    machine.spend(3.0)
    assert clock() - begun == pytest.approx(3.0 / 1.25, rel=1e-6)


def test_the_simulator_with_the_engine_s_seconds_is_the_engine():
    """A log in which one step took a moment longer, or read another row, is not the same."""
    pair = Pair(engine(), MAKE["sarathi"], ticks())
    log, _ = driven.serve(engine(), MAKE["sarathi"](), [asked_for(text, 3.0 * i) for i, text in enumerate(PROMPTS)])
    assert pair.same(log)
    for at in (3, len(log.steps) - 1):
        step = log.steps[at]
        for changed in ({"seconds": step.seconds + 1e-3}, {"used": step.used + 1}, {"start": step.start + 1e-9}):
            steps = [*log.steps[:at], dataclasses.replace(step, **changed), *log.steps[at + 1 :]]
            assert not pair.same(dataclasses.replace(log, steps=steps))


def test_within_ten_per_cent_or_the_spread():
    assert within(1.0, 1.0, 1.09) and not within(1.0, 1.0, 1.11) and not within(1.0, 1.0, 0.89)
    assert within(1.0, 1.5, 0.76) and not within(1.0, 1.5, 0.74)
