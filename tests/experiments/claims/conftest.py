"""Claims train their arms in the process of the test: one of its own for each takes seconds to import the house."""

import dataclasses
import pathlib

import pytest

from experiments.sweep import launchers, process
from experiments.training import train
from experiments.workdir.saved import saved_config


@dataclasses.dataclass(frozen=True)
class _Ended:
    code: int

    def poll(self) -> int:
        return self.code


class _Here:
    """Trains a run before its start returns."""

    def start(self, workdir: pathlib.Path, slot: int) -> _Ended:
        try:
            train(saved_config(workdir).lock(), workdir, quiet=True)
        except Exception as error:
            (workdir / process.LOG).write_text(f"error: {error}\n")
            return _Ended(1)
        return _Ended(0)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def trials_here(monkeypatch):
    monkeypatch.setattr(launchers, "make", lambda *_: _Here())
