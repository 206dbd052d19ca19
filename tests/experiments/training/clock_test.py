"""The clock of a run on a time that is set: training alone counts, and rates from the end of the first step."""

import time

import jax.numpy as jnp
import pytest

from experiments.training.clock import Clock


def test_time_and_rates_of_training_alone(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def later(seconds):
        now[0] += seconds

    clock = Clock(50.0, 1000, 1e-6)  # 50 s of an earlier start, 1000 tokens a step, 1e-6 s a token at best
    later(7)
    clock.first_step(3, jnp.zeros(()))  # which compiles
    later(2)
    with clock.waiting_for_data():
        later(0.5)
    clock.pause()
    later(1000)
    assert clock.elapsed() == pytest.approx(59.5)
    clock.resume()
    later(1.5)
    found = clock.read(14)  # ten steps since the end of the first in 2 + 0.5 + 1.5 s
    assert found["seconds"] == pytest.approx(61) and found["data_wait_seconds"] == pytest.approx(0.5)
    assert found["tokens_per_second"] == pytest.approx(2500) and found["mfu"] == pytest.approx(2.5e-3)
    later(8)
    assert clock.read(18)["tokens_per_second"] == pytest.approx(500)  # since the reading before
    assert "mfu" not in clock.read(18)
    assert found["peak_memory_bytes"] > 1 << 20
