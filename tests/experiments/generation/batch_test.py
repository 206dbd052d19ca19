"""A file of prompts: rows as they end, progress, and a kill at any byte after which no finished row is made again."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from rich.console import Console

from experiments.generation import batch, requests
from experiments.generation.engine import Engine
from experiments.settings.errors import ConfigError, Refused
from experiments.training import train
from tests import environment
from tests.experiments import tiny
from tests.experiments.generation.generate_test import OPTIONS, generator

ROOT = pathlib.Path(__file__).resolve().parents[3]
PROMPTS = ["a", "def main(", "x" * 37, "a", "bytes \udcff of no text", "hello world " * 3]
pytestmark = pytest.mark.usefixtures("one_device")


def trained(seed=5, **changes):
    maker, params = generator()
    had, options = maker.program.config, OPTIONS | {"engine": OPTIONS["engine"] | {"lanes": 2}} | changes
    generate = types.SimpleNamespace(to_dict=lambda: options)
    config = types.SimpleNamespace(seed=seed, data=had.data, generate=generate)
    return types.SimpleNamespace(
        config=config, program=maker.program, params=params, tokenizer=maker.tokenizer, step=1
    )  # fmt: skip


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("batch") / "texts.jsonl"
    assert batch.write(trained(), PROMPTS, str(path)) == 0
    return path


def test_a_line_is_a_prompt_and_its_text_as_it_is_alone(whole):
    maker, params = generator()
    found = sorted(rows(whole), key=lambda row: row["index"])
    assert [row["prompt"] for row in found] == PROMPTS
    assert [row["text"] for row in found] == maker(params, PROMPTS, OPTIONS, seed=5)
    assert {row["reason"] for row in found} <= {"limit", "end"} and found[0]["text"] != found[3]["text"]
    assert all(row["tokens"] == row["calls"] == 24 for row in found if row["reason"] == "limit")


@pytest.mark.parametrize("cut", [0, 1, "in the third line", "before the end of the third", "all"])
def test_what_was_cut_off_anywhere_is_made_again_and_nothing_else(whole, cut, tmp_path, monkeypatch):
    data = whole.read_bytes()
    third = [i for i, byte in enumerate(data) if byte == 10][2]
    kept = {"in the third line": third - 40, "before the end of the third": third, "all": len(data)}.get(cut, cut)
    path = tmp_path / "texts.jsonl"
    path.write_bytes(data[:kept])
    asked = []
    admit = Engine.admit_all
    monkeypatch.setattr(
        Engine, "admit_all", lambda self, prompts, **kw: asked.extend(prompts) or admit(self, prompts, **kw)
    )
    assert batch.write(trained(), PROMPTS, str(path)) == 0
    finished = data[:kept].count(b"\n")
    assert path.read_bytes()[: data[:kept].rfind(b"\n") + 1] == data[: data[:kept].rfind(b"\n") + 1]
    assert len(asked) == len(PROMPTS) - finished
    key = lambda row: row["index"]  # noqa: E731
    assert sorted(rows(path), key=key) == sorted(rows(whole), key=key)


def test_an_output_of_something_else_is_refused(whole, tmp_path):
    path = tmp_path / "texts.jsonl"
    for data, prompts, seed, told in (
        (whole.read_bytes(), PROMPTS[::-1], 5, "line 1 is of other prompts"),
        (whole.read_bytes(), PROMPTS, 6, "line 1 was made with another model, seed or settings"),
        (b"my diary\n", PROMPTS, 5, "line 1 is none of generate's"),
        (b"my diary", PROMPTS, 5, "its end is no line of generate's"),
        (whole.read_bytes() + b"my diary", PROMPTS, 5, "its end is no line of generate's"),
        (b'{"name": "a file of one line"}', PROMPTS, 5, "its end is no line of generate's"),
        (b'{"index": 0}\n', PROMPTS, 5, "line 1 is none of generate's"),
    ):
        path.write_bytes(data)
        with pytest.raises(Refused, match=told):
            batch.write(trained(seed), prompts, str(path))
        assert path.read_bytes() == data
    path.unlink()
    with pytest.raises(
        ConfigError, match=r"prompt 3 has 38 tokens .* do not fit generate.engine.capacity=61; use e.g. .*=62"
    ):
        batch.write(trained(engine={"lanes": 2, "capacity": 61}), PROMPTS[:4], str(path))
    assert not path.exists()
    path.write_bytes(b"")
    first = batch.Rows(str(path), PROMPTS, "")
    with pytest.raises(Refused, match="is being written by another process"):
        batch.Rows(str(path), PROMPTS, "")
    first.close()


def test_a_text_depends_on_the_models_that_are_read_beside_and_on_files_of_settings(tmp_path):
    """A guide that was trained on, a file of vectors written anew: rows of two kinds would stand in one file."""
    chat, vectors = tmp_path / "a.jinja", tmp_path / "v.npy"
    chat.write_text("{{ messages[0].content }}")
    vectors.write_bytes(b"one")

    def digest(scale=1.0, **changes):
        weights = {"model": {}, "gedi.workdir": {"kernel": np.full(40, scale)}}
        model = trained(**changes)
        model.config.data = types.SimpleNamespace(template=str(chat))
        return batch.digest(model, types.SimpleNamespace(weights=weights))

    plain, named = {}, {"control": "vectors", "vectors": {"path": str(vectors)}}
    before = [digest(**plain), digest(chat=True), digest(**named)]
    assert before == [digest(**plain), digest(chat=True), digest(**named)] and len(set(before)) == 3
    assert digest(2.0) != before[0]
    chat.write_text("{{ messages[0].content | upper }}")
    vectors.write_bytes(b"two")
    assert digest(**plain) == before[0] and digest(chat=True) != before[1] and digest(**named) != before[2]
    vectors.unlink()
    digest(**named)  # Whoever reads it says so.


def test_a_row_that_fails_is_a_line_with_its_reason(tmp_path, monkeypatch):
    path, push = tmp_path / "texts.jsonl", requests.RowText.push

    def broken(self, tokens, *, last):
        if self.stop == ("broken",):
            raise ValueError("no text")
        return push(self, tokens, last=last)

    monkeypatch.setattr(requests.RowText, "push", broken)
    assert batch.write(trained(stop=("broken",)), PROMPTS[:2], str(path)) == 2
    assert [row["reason"] for row in rows(path)] == ["its text cannot be made: ValueError: no text"] * 2
    assert batch.write(trained(stop=("broken",)), PROMPTS[:2], str(path)) == 2 and len(rows(path)) == 2


def test_progress_says_tokens_a_second_and_the_time_left():
    shown = batch.Shown(100, 20, "resumed, ", every=0.0)
    shown.console = Console(file=(said := io.StringIO()), width=100)
    for _ in range(20):
        shown.update(500)
    assert said.getvalue().splitlines()[-1].startswith("resumed, 40/100 prompts  ")
    assert shown.text(500, 10.0) == "resumed, 40/100 prompts  50 tokens/s  30 s left"
    assert shown.text(500, 100.0).endswith("  5 tokens/s  5 min left")


def test_texts_are_shown_in_the_order_of_their_prompts():
    said = []
    batch.show(trained(), PROMPTS, lambda index, text: said.append((index, text)))
    maker, params = generator()
    assert said == list(enumerate(maker(params, PROMPTS, OPTIONS, seed=5)))


def test_a_killed_process_goes_on(tmp_path):
    """SIGKILL as soon as a line stands, half a line behind it, the same command again: as one that was not killed."""
    train(tiny.config(tmp_path), tmp_path / "run", quiet=True)
    prompts, path = tmp_path / "prompts.txt", tmp_path / "out" / "texts.jsonl"
    prompts.write_text("\n".join(f"prompt {i}" for i in range(40)))
    command = [sys.executable, "main.py", "--mode=generate", f"--workdir={tmp_path / 'run'}", f"--prompts={prompts}",
               "--config.generate.max_tokens=60", "--config.generate.engine.lanes=2", f"--output={path}"]  # fmt: skip
    begun = subprocess.Popen(
        command, cwd=ROOT, env=environment.child(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while begun.poll() is None and not (path.exists() and b"\n" in path.read_bytes()):
        time.sleep(0.01)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    before = path.read_bytes()
    assert begun.returncode == -signal.SIGKILL and 0 < before.count(b"\n") < 40
    with open(path, "ab") as file:
        file.write(before[:50])
    done = subprocess.run(command, cwd=ROOT, env=environment.child(), capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"40 prompts, 0 of them failed: {path}\n", done.stderr
    assert "resumed, 40/40 prompts" in done.stderr and "tokens/s  0 s left" in done.stderr
    assert path.read_bytes().startswith(before)
    assert sorted(row["index"] for row in rows(path)) == list(range(40)) and os.path.getsize(path) > len(before)
