"""What a person sees of a run, on a time that is set: rates, memory and the time that is left."""

import time

import pytest

from experiments.training import progress


@pytest.mark.parametrize(
    ("step", "tokens", "left"),
    [(20, 5000, "3 min left"), (50, 2000, "40 s left"), (20, 2500, "80 s left"), (99, 25_000, "10 s left")],
)
def test_a_line_tells_rate_memory_and_the_time_left(step, tokens, left, monkeypatch, capsys):
    """2,500 tokens a second; however long the first step has compiled."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown = progress.StepProgress(100, 10, tokens)
    timing = {"tokens_per_second": 2500.0, "mfu": 0.25, "seconds": 900.0, "peak_memory_bytes": 3 << 29}
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
    shown = progress.StepProgress(100, 10, 1000)
    now[0] += 6
    shown.update(11, loss=2.0, seconds=1.0, peak_memory_bytes=1 << 30)
    assert capsys.readouterr().out == "step 11/100  loss 2.0000  1.0 GiB\n"


def test_a_first_step_that_is_long_is_told(capsys):
    shown = progress.StepProgress(100, 10, 1000)
    shown.compiled(4.9)
    assert capsys.readouterr().out == ""
    shown.compiled(12.4)
    assert capsys.readouterr().out == "first step after 12 s; it compiles, the others do not\n"


def test_numbers_are_shortened():
    assert [progress._si(x) for x in (7.4, 999.4, 1000.0, 2_345_678.0)] == ["7", "999", "1.0k", "2.3M"]
