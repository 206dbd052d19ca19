"""A row that is read in one place and written in another has the text of one place."""

import dataclasses
import pickle

import pytest

from experiments.generation.engine import Engine
from experiments.generation.serving import apart
from experiments.generation.serving.apart import Reader, Writer
from experiments.settings.errors import ConfigError
from experiments.training import train
from experiments.workdir import trained as runs
from tests.experiments import tiny
from tests.experiments.generation.engine_test import OPTIONS, PROMPTS, alone, trained

SIZES = {"lanes": 2, "capacity": 192, "chunk": 16}
ASKED = {"seed": 5, "max_tokens": 24, "temperature": OPTIONS["temperature"]}


def test_a_row_goes_from_engine_to_engine():
    """As bytes; more rows than lanes, one of another size."""
    reader, writer = Reader(Engine(trained(), **SIZES)), Writer(Engine(trained(), **SIZES))
    rows = [pickle.loads(pickle.dumps(reader.read(prompt, **ASKED))) for prompt in PROMPTS]
    assert not (reader.engine.waiting or reader.engine.reading or reader.engine.running or reader.engine.drawn)
    ids = [writer.take(row) for row in rows]
    found = {result.id: result.text for result in writer.engine.results()}
    assert [found[id] for id in ids] == alone()
    assert rows[-1].size > rows[0].size > 0
    with pytest.raises(ConfigError, match="load the same ones"):
        writer.take(dataclasses.replace(rows[0], leaves=rows[0].leaves[:-1]))
    with pytest.raises(ConfigError, match="load the same ones"):
        writer.take(dataclasses.replace(rows[0], leaves=rows[-1].leaves))
    assert not writer.engine.waiting


def test_two_processes(tmp_path):
    """A run from its workdir, read by a child; what fails there is said here."""
    folder = tmp_path / "run"
    train(tiny.config(tmp_path, train__steps=2), folder, quiet=True)
    sizes = {"lanes": 8, "capacity": 96, "chunk": 16}  # As many as the devices of the tests.
    asked = [(text, {"max_tokens": 8, "temperature": 0.8}) for text in ("ab cd", "", "hgf " * 12)]
    results, handed = apart.serve(str(folder), asked, **sizes)
    here = Engine(runs.load(folder), **sizes).generate([text for text, _ in asked], max_tokens=8, temperature=0.8)
    assert [result.text for result in results] == here and len(handed) == 3
    sent = Sent()
    apart.reading(sent, str(folder), sizes, [("x" * 200, {"max_tokens": 8})])
    with pytest.raises(RuntimeError, match="reads prompts ended: ConfigError.*does not fit"):
        list(apart._received(sent))
    with pytest.raises(RuntimeError, match="has gone"):
        list(apart._received(sent))


class Sent(list):
    """Both ends of a connection in one process."""

    send = list.append

    def recv(self):
        if not self:
            raise EOFError
        return self.pop(0)

    def close(self):
        """Nothing is behind it."""
