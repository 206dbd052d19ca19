"""The files of a workdir: what is written comes back, whole or not at all, and errors are sentences."""

import errno
import json
import math
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import workdir as files
from experiments.settings.errors import Refused

NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.integers() | st.booleans() | st.none()
TREES = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


def same(a, b):
    """Equality under which NaN equals NaN and 1 differs from 1.0 and True."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(), TREES, max_size=4))
def test_objects_come_back_as_they_were(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("w") / "deep" / "value.json"
    files.write_json(path, value)
    assert same(files.read_json(path), value)
    assert os.listdir(path.parent) == ["value.json"]  # no half-written file is left behind


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.dictionaries(st.text().filter(lambda key: key != "step"), NUMBERS, max_size=4), st.integers(0, 10**9))
def test_lines_come_back_as_they_were(tmp_path_factory, values, step):
    path = tmp_path_factory.mktemp("w") / "lines.jsonl"
    record = {"step": step} | values
    path.write_bytes(files.line(record) * 2)
    rows, damaged = files.read_lines(path)
    assert same(rows, [record, record]) and damaged == []


def test_arrays_of_one_element_are_numbers_and_keep_every_bit():
    value = jnp.float32(1) / 3
    assert files.plain({"a": value, "b": np.int64(7), "c": (1, np.float64(0.1))}) == {
        "a": float(np.float32(1) / np.float32(3)),
        "b": 7,
        "c": [1, 0.1],
    }
    assert files.plain(jnp.bfloat16(2.5)) == 2.5 and files.plain(np.bool_(True)) is True
    with pytest.raises(ValueError, match=r"train/loss=.*cannot be logged; use a number"):
        files.line({"step": 1, "train/loss": np.zeros(3)})


def test_torn_and_damaged_lines_are_told_apart(tmp_path):
    path = tmp_path / files.METRICS
    path.write_bytes(b'{"step": 1}\nrubbish\n[1]\n{"loss": 2}\n{"step": 2, "x": "NaN"}\n{"step": 3, "x"')
    rows, damaged = files.read_lines(path)
    assert [row["step"] for row in rows] == [1, 2] and math.isnan(rows[1]["x"])
    assert damaged == [2, 3, 4]
    assert files.read_lines(path, numbers=False)[0][1]["x"] == "NaN"
    assert files.read_lines(tmp_path / "missing") == ([], [])


def test_a_hash_names_settings_not_their_order():
    config = {"seed": 1, "model": {"width": 8, "clip": math.inf}}
    shuffled = {"model": {"clip": math.inf, "width": 8}, "seed": 1}
    assert files.config_hash(config) == files.config_hash(shuffled)
    others = [config | {"seed": 2}, config | {"seed": True}, config | {"seed": 1.0}, config | {"seed": "1"}]
    hashes = {files.config_hash(other) for other in [config, *others]}
    assert len(hashes) == 5 and all(len(digest) == 12 for digest in hashes)


def test_config_and_run_files(tmp_path):
    digest = files.write_config(tmp_path, {"seed": 1}, "python main.py --config=c.py", base={"seed": 0})
    record = files.read_json(tmp_path / files.CONFIG)
    assert record == {
        "hash": digest,
        "command": "python main.py --config=c.py",
        "config": {"seed": 1},
        "base": {"seed": 0},
    }
    files.write_run(tmp_path, {"environment": files.environment(), "tokenizer": "bytes"})
    files.write_run(tmp_path, {"environment": files.environment(), "tokenizer": "bpe"})
    run = files.read_json(tmp_path / files.RUN)
    assert len(run["starts"]) == 2 and run["tokenizer"] == "bpe"
    assert run["environment"]["platform"] == "cpu" and len(run["environment"]["devices"]) == 8
    (tmp_path / files.RUN).write_text("{torn")
    files.write_run(tmp_path, {})
    assert len(files.read_json(tmp_path / files.RUN)["starts"]) == 1


def test_elapsed_seconds(tmp_path):
    assert files.elapsed_seconds(tmp_path) == 0.0
    (tmp_path / files.TIMING).write_bytes(b'{"step": 1, "seconds": 1.5}\n{"step": 2, "mfu": 0.5}\n')
    assert files.elapsed_seconds(tmp_path) == 1.5


def test_damaged_objects_and_bad_paths_are_one_sentence(tmp_path):
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"half.json' does not hold a JSON object; delete it"):
        files.read_json(tmp_path / "half.json")
    with pytest.raises(files.WorkdirError) as caught:
        files.write_json(tmp_path / "half.json" / "config.json", {})
    assert str(caught.value).endswith("use a new folder, e.g. --workdir=runs/first.") and caught.value.errno
    assert isinstance(caught.value, OSError) and "\n" not in str(caught.value)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO])
def test_every_refusal_of_the_system_becomes_a_sentence(code):
    error = files.explain(OSError(code, os.strerror(code)), "runs/a/metrics.jsonl")
    assert error.errno == code
    assert str(error).startswith("'runs/a/metrics.jsonl' cannot be used: ") and str(error).endswith(".")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    files.write_json(path, {"seed": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(files.WorkdirError, match="the disk is full; free some space"):
        files.write_json(path, {"seed": 2})
    assert json.loads(path.read_text()) == {"seed": 1} and os.listdir(tmp_path) == ["config.json"]


def test_one_process_at_a_time_trains_in_a_workdir(tmp_path):
    """Another one is refused in a sentence, until this one has ended, in whatever way."""
    holds = "import fcntl, sys; f = open(sys.argv[1], 'wb'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", holds, tmp_path / files.LOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline()
    with pytest.raises(Refused, match=r"is being trained by another process; wait for its end, or use another workdir"):
        files.hold(tmp_path)
    other.kill()
    other.communicate()
    files.hold(tmp_path).close()
    with pytest.raises(files.WorkdirError, match="check the path given as --workdir"):
        files.hold(tmp_path / "missing")
