"""What Python would only print, or forget, of an exception that nobody can catch."""

import sys
import time

import pytest

from experiments.settings import errors


def test_ctrl_c_in_the_middle_of_a_finalizer_is_not_forgotten(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", errors.unraisable)

    class Held:
        def __del__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Held()
        for _ in range(1000):
            time.sleep(0.01)


def test_a_closed_event_loop_is_said_by_nobody_and_anything_else_is(monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", errors.unraisable)

    class Held:
        def __init__(self, error):
            self.error = error

        def __del__(self):
            raise self.error

    Held(RuntimeError("Event loop is closed"))
    assert capsys.readouterr().err == ""
    Held(RuntimeError("something else"))
    assert "RuntimeError: something else" in capsys.readouterr().err
