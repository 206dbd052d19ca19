"""What a person sees of a run, on a time that is set: rates, memory and the time that is left."""

import time

import pytest

from experiments.training import progress


@pytest.mark.parametrize(
    ("step", "seconds", "left"),
    [(20, 40.0, "3 min left"), (50, 40.0, "40 s left"), (20, 22.5, "90 s left"), (99, 990.0, "10 s left")],
)
def test_a_line_tells_rate_memory_and_the_time_left(step, seconds, left, monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown = progress.StepProgress(100, 10)
    timing = {"tokens_per_second": 2500.0, "mfu": 0.25, "seconds": seconds, "peak_memory_bytes": 3 << 29}
    now[0] += 5
    shown.update(step, loss=1.25, **timing)
    assert capsys.readouterr().out == ""  # At most one line in five seconds.
    now[0] += 0.5
    shown.update(step, loss=1.25, **timing)
    assert capsys.readouterr().out == f"step {step}/100  loss 1.2500  2.5k tok/s  MFU 25%  1.5 GiB  {left}\n"
    now[0] += 4
    shown.update(step, loss=1.25, **timing)
    assert capsys.readouterr().out == ""


def test_before_a_rate_is_known_no_time_is_told(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown = progress.StepProgress(100, 10)
    now[0] += 6
    shown.update(11, loss=2.0, seconds=1.0, peak_memory_bytes=1 << 30)
    assert capsys.readouterr().out == "step 11/100  loss 2.0000  1.0 GiB\n"


def test_numbers_are_shortened():
    assert [progress._si(x) for x in (7.4, 999.4, 1000.0, 2_345_678.0)] == ["7", "999", "1.0k", "2.3M"]
