"""The writers: a run that is killed and started again leaves the bytes of the run left alone."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import workdir as files
from experiments.workdir import writers

ROOT = pathlib.Path(__file__).resolve().parents[3]
SAVE_EVERY = 5
# A run of 40 steps: logs each step, evaluates and saves every fifth, and is told where to kill itself.
SCRIPT = f"""
import os, pathlib, signal, sys
from experiments.workdir import writers
workdir, kill_at, torn = pathlib.Path(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
saved = workdir / "saved"
start = int(saved.read_text()) if saved.exists() else -1
writers.truncate(workdir, start)
with writers.Writer(workdir, tensorboard=False) as writer:
    for step in range(start + 1, 41):
        writer.scalars(step, {{"train/loss": 1 / (step + 3), "tokens": 64 * step, "flops": 1e9 * step}})
        writer.timing(step, {{"seconds": step + os.getpid() / 1e6}})
        if step % {SAVE_EVERY} == 0:
            writer.scalars(step, {{"tokens": 64 * step, "flops": 1e9 * step, "eval/loss": 0.1 / (step + 7)}})
            writer.sample(step, "a", "b")
            saved.write_text(str(step))
        if step == kill_at:
            with open(workdir / "metrics.jsonl", "ab") as file:
                file.write(torn)
            os.kill(os.getpid(), signal.SIGKILL)
"""


def run_script(workdir, kill_at=-1, torn=b""):
    workdir.mkdir(exist_ok=True)
    command = [sys.executable, "-c", SCRIPT, str(workdir), str(kill_at), torn.hex()]
    return subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode


def test_a_killed_run_ends_with_the_bytes_of_the_run_left_alone(tmp_path):
    assert run_script(tmp_path / "alone") == 0
    for kill_at, torn in ((13, b'{"step": 14, "tok'), (15, b""), (38, b'{"step": 39}\n{"st'), (3, b"\0\0\0\n\0")):
        assert run_script(tmp_path / "killed", kill_at, torn) == -signal.SIGKILL
        if kill_at == 38:
            (tmp_path / "killed" / "saved").unlink()  # its checkpoints are lost: it starts from scratch
    assert run_script(tmp_path / "killed") == 0
    for name in (files.METRICS, files.SAMPLES):
        alone, killed = ((tmp_path / run / name).read_bytes() for run in ("alone", "killed"))
        assert killed == alone and alone
    steps = [row["step"] for row in files.read_lines(tmp_path / "killed" / files.TIMING)[0]]
    assert steps == list(range(41))


def test_lines_hold_what_was_given_in_a_fixed_order(tmp_path):
    with writers.Writer(tmp_path) as writer:
        writer.scalars(10, {"train/loss": jnp.float32(0.1), "flops": 1e12, "tokens": np.int32(640), "bad": np.nan})
        writer.timing(10, {"seconds": 1.5, "mfu": float("inf")})
        writer.sample(10, "NaN", 'é"\n\ud800')
    line = (tmp_path / files.METRICS).read_text()
    exact = '{"step": 10, "tokens": 640, "flops": 1000000000000.0, "train/loss": 0.10000000149011612, "bad": "NaN"}\n'
    assert line == exact
    assert files.read_lines(tmp_path / files.TIMING)[0] == [{"step": 10, "seconds": 1.5, "mfu": float("inf")}]
    sample = files.read_lines(tmp_path / files.SAMPLES, numbers=False)[0]
    assert sample == [{"step": 10, "prompt": "NaN", "text": 'é"\n\ud800'}]


def test_truncate_keeps_the_step_and_counts_the_rest(tmp_path):
    with writers.Writer(tmp_path, tensorboard=False) as writer:
        for step in (1, 2, 2, 3):
            writer.scalars(step, {"x": step})
            writer.timing(step, {"seconds": step})
        writer.sample(3, "a", "b")
    files.write_json(tmp_path / files.RESULT, {"step": 3})
    assert writers.truncate(tmp_path, 3) == {files.METRICS: 0, files.TIMING: 0, files.SAMPLES: 0}
    assert (tmp_path / files.RESULT).exists()
    assert writers.truncate(tmp_path, 2) == {files.METRICS: 1, files.TIMING: 1, files.SAMPLES: 1}
    assert [row["x"] for row in files.read_lines(tmp_path / files.METRICS)[0]] == [1, 2, 2]
    assert not (tmp_path / files.RESULT).exists()
    assert writers.truncate(tmp_path, -1)[files.METRICS] == 3
    assert (tmp_path / files.METRICS).read_bytes() == b""
    assert writers.truncate(tmp_path / "missing", 2) == dict.fromkeys((files.METRICS, files.TIMING, files.SAMPLES), 0)


def test_truncate_says_when_lines_in_the_middle_are_damaged(tmp_path):
    (tmp_path / files.METRICS).write_bytes(b'{"step": 1}\n{"st\n{"step": 2}\n{"step": 3}\n')
    with pytest.warns(UserWarning, match=r"metrics.jsonl had damaged lines \[2\]"):
        writers.truncate(tmp_path, 2)
    assert (tmp_path / files.METRICS).read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_torn_line_is_cut_on_opening_and_steps_never_go_back(tmp_path):
    (tmp_path / files.METRICS).write_bytes(b'{"step": 7}\n{"step": 8, "x"')
    with writers.Writer(tmp_path, tensorboard=False) as writer:
        with pytest.raises(ValueError, match=r"step=6 comes after step 7.*truncate\(workdir, 5\)"):
            writer.scalars(6, {"x": 1})
        writer.scalars(7, {"x": 1})
    assert (tmp_path / files.METRICS).read_bytes() == b'{"step": 7}\n{"step": 7, "x": 1}\n'


def test_tensorboard_forgets_the_steps_that_a_restart_repeats(tmp_path):
    for start in (0, 3):  # the second start within the same second must not overwrite the first one's file
        writers.truncate(tmp_path, start - 1)
        with writers.Writer(tmp_path) as writer:
            for step in range(start, 5):
                writer.scalars(step, {"train/loss": float(10 * start + step), "eval/kind": "="})
                writer.timing(step, {"seconds": step})
            writer.sample(4, "p", "t")
    events = read_events(tmp_path / files.TENSORBOARD)
    seen = {}
    for event in events:  # TensorBoard's rule: a START drops what an earlier session wrote at or after its step
        if event.HasField("session_log"):
            seen = {key: value for key, value in seen.items() if key[1] < event.step}
        for value in event.summary.value:
            if value.tag in ("train/loss", "timing/seconds"):
                seen[value.tag, event.step] = value.simple_value
    assert {step: seen["train/loss", step] for step in range(5)} == {0: 0, 1: 1, 2: 2, 3: 33, 4: 34}
    assert sum(tag == "timing/seconds" for tag, _ in seen) == 5
    assert any(event.HasField("session_log") and event.step == 3 for event in events)


def read_events(folder):
    """All events of a folder in the order of its files' names."""
    import struct

    from tensorboardX.proto import event_pb2

    events = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def test_an_inactive_writer_touches_nothing(tmp_path):
    with writers.Writer(tmp_path / "w", wandb="absent", active=False) as writer:
        writer.scalars(1, {"x": 1})
        writer.timing(1, {"x": 1})
        writer.sample(1, "a", "b")
    assert not (tmp_path / "w").exists()


def test_a_closed_writer_stays_closed(tmp_path):
    writer = writers.Writer(tmp_path, tensorboard=False)
    writer.close()
    writer.close()
    writer.scalars(1, {"x": 1})
    assert (tmp_path / files.METRICS).read_bytes() == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the system's always-full device")
def test_a_full_disk_is_one_sentence(tmp_path):
    with writers.Writer(tmp_path, tensorboard=False) as writer, pytest.raises(files.WorkdirError) as caught:
        with open("/dev/full", "wb") as full:
            os.dup2(full.fileno(), writer._metrics.file)
        writer.scalars(1, {"x": 1})
    assert "metrics.jsonl' cannot be used: the disk is full; free some space" in str(caught.value)


def test_a_disk_that_fills_within_a_line_leaves_no_half_line(tmp_path, monkeypatch):
    real = os.write
    with writers.Writer(tmp_path, tensorboard=False) as writer:
        writer.scalars(1, {"x": 1})
        calls = []

        def short(file, data):
            calls.append(len(data))
            if len(calls) > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(file, data[:5])

        monkeypatch.setattr(os, "write", short)
        with pytest.raises(files.WorkdirError, match="the disk is full"):
            writer.scalars(2, {"x": 2})
        monkeypatch.undo()
        writer.scalars(2, {"x": 2})
    assert (tmp_path / files.METRICS).read_bytes() == b'{"step": 1, "x": 1}\n{"step": 2, "x": 2}\n'


def test_a_workdir_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be used: .*e\.g\. --workdir=runs/first\.$"):
        writers.Writer(tmp_path / "file" / "run")


def test_wandb_is_asked_for_by_name_and_told_how_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if not installed
    with pytest.raises(ValueError, match=r"wandb='tokens' asks for .*run `pip install wandb`"):
        writers.Writer(tmp_path / "w", wandb="tokens")
    assert not (tmp_path / "w").exists()

    logged, asked = [], {}
    session = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: logged.append("end")
    )
    fake = types.ModuleType("wandb")
    fake.init = lambda **settings: asked.update(settings) or session
    monkeypatch.setitem(sys.modules, "wandb", fake)
    digest = files.write_config(tmp_path / "run", {"seed": 1}, "python main.py")
    with writers.Writer(tmp_path / "run", tensorboard=False, wandb="tokens") as writer:
        writer.scalars(3, {"train/loss": 1.0, "eval/kind": "="})
        writer.timing(3, {"mfu": 0.5})
    assert logged == [(3, {"train/loss": 1.0}), (3, {"timing/mfu": 0.5}), "end"]
    assert asked["project"] == "tokens" and asked["id"] == f"run-{digest}" and asked["config"] == {"seed": 1}
