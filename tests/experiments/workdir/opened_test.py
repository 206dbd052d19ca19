"""Files of a workdir are opened as what they are: through no link, never in waiting, of the shape that is expected."""

import json
import os
import subprocess
import sys

import pytest

from experiments import training
from experiments import workdir as files
from experiments.sweep import search
from experiments.workdir import disk, writers
from tests import environment
from tests.experiments import tiny


def test_a_line_is_added_whole_and_through_no_link(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / files.DRAFTS
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    with pytest.raises(files.WorkdirError, match="it is a link"):
        writers.add_line(path, {"step": 1})
    assert victim.read_bytes() == b"precious"
    path.unlink()
    writers.add_line(path, {"step": 2})
    path.write_bytes(path.read_bytes() + b'{"st')  # A kill, in the middle of a line.
    writers.add_line(path, {"step": 1})
    assert files.read_lines(path) == ([{"step": 2}, {"step": 1}], [])
    os.link(path, tmp_path / "copy")
    writers.add_line(path, {"step": 3})
    assert len(files.read_lines(path)[0]) == 3 and len(files.read_lines(tmp_path / "copy")[0]) == 2


@pytest.mark.parametrize("name", [files.METRICS, files.TIMING, files.SAMPLES])
def test_lines_are_never_written_through_a_link(tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_bytes(b'{"step": 1}\n{"step": 9}\n')
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(victim)
    for act in (lambda: writers.truncate(run, 1), lambda: writers.Writer(run, tensorboard=False)):
        with pytest.raises(files.WorkdirError, match=f"{name}' cannot be used: it is a link"):
            act()
    (run / name).unlink()
    os.link(victim, run / name)  # Nothing is to be cut: the writer itself must not add to both.
    assert writers.truncate(run, 9)[name] == 0
    with writers.Writer(run, tensorboard=False) as writer:
        {files.METRICS: writer.scalars, files.TIMING: writer.timing}.get(name, writer.scalars)(9, {"a": 1.0})
        writer.sample(9, "a", "b")
    assert victim.read_bytes() == b'{"step": 1}\n{"step": 9}\n' != (run / name).read_bytes()
    (run / name).unlink()
    os.link(victim, run / name)  # A copy made by `cp -al`: ours is copied apart, the other stays.
    assert writers.truncate(run, 1)[name] == 1
    with writers.Writer(run, tensorboard=False) as writer:
        writer.scalars(2, {"a": 1.0})
    assert victim.read_bytes() == b'{"step": 1}\n{"step": 9}\n'
    assert (run / name).read_bytes().startswith(b'{"step": 1}\n')


def test_folders_of_events_and_files_that_are_replaced_follow_no_link(tmp_path):
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.mkdir()
    run.mkdir()
    (victim / "file").write_text("x")
    (run / files.TENSORBOARD).symlink_to(victim)
    with pytest.raises(files.WorkdirError, match="it is a link"):
        writers.Writer(run)
    (run / files.CONFIG).symlink_to(victim / "file")
    files.write_config(run, {}, "")  # Replaced by a file: what it pointed to stays.
    assert not (run / files.CONFIG).is_symlink() and (victim / "file").read_text() == "x"
    (run / files.LOCK).symlink_to(victim / "file")
    with pytest.raises(files.WorkdirError, match="it is a link"):
        files.hold(run)
    assert sorted(os.listdir(victim)) == ["file"] and (victim / "file").read_text() == "x"


@pytest.mark.parametrize("name", ["profile", "profile/plugins", "profile/plugins/profile"])
def test_the_profiler_writes_through_no_link(tmp_path, monkeypatch, name):
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.mkdir()
    (run / name).parent.mkdir(parents=True)
    (run / name).symlink_to(victim)
    started = []
    monkeypatch.setattr("jax.profiler.start_trace", started.append)
    config = tiny.config(tmp_path, train__profile_step=1, train__profile_steps=2)
    with (
        pytest.raises(files.WorkdirError, match=f"{name}' cannot be used: it is a link"),
        training._profile(config, 1, run),
    ):
        pass
    assert not started and not os.listdir(victim)
    (run / name).unlink()
    with training._profile(config, 1, run):
        pass
    assert started == [run / "profile"]


def test_the_journal_of_a_search_is_written_through_no_link(tmp_path):
    optuna = pytest.importorskip("optuna")
    victim = tmp_path / "victim"
    victim.write_text("x")
    (tmp_path / search.JOURNAL).symlink_to(victim)
    with pytest.raises(files.WorkdirError, match="it is a link"):
        search._stored(optuna, tmp_path)
    assert victim.read_text() == "x"


def test_a_lock_file_that_is_removed_lets_nobody_in(tmp_path):
    """The locks are of processes, so the other one is a process."""
    code = (
        "import pathlib, sys; from experiments import workdir as f; "
        "held = f.hold(pathlib.Path(sys.argv[1])); print(flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=environment.ROOT,
    )
    assert other.stdout.readline()
    (tmp_path / files.LOCK).unlink()
    with pytest.raises(ValueError, match="is being trained by another process"):
        files.hold(tmp_path)
    other.kill()
    other.communicate()
    files.hold(tmp_path).close()


def test_a_lock_keeps_what_its_file_holds(tmp_path):
    (tmp_path / files.LOCK).write_text("mine")
    files.hold(tmp_path).close()
    assert (tmp_path / files.LOCK).read_text() == "mine"


def test_no_reader_waits_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / files.METRICS)
    os.mkfifo(tmp_path / files.RESULT)
    for read in (files.read_lines, files.read_json):
        with pytest.raises(files.WorkdirError, match="it is no plain file"):
            read(tmp_path / (files.METRICS if read is files.read_lines else files.RESULT))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (files.RESULT, {"step": "9"}), (files.RESULT, {"step": True}), (files.RESULT, {"eval/kind": 3}),
        (files.RUN, {"starts": 5}), (files.RUN, {"parameters": [1]}), (files.CONFIG, {"config": []}),
        (files.CONFIG, {"hash": 7, "config": {}}),
    ],
)  # fmt: skip
def test_known_keys_hold_what_they_should_or_the_file_is_named(tmp_path, name, value):
    (tmp_path / name).write_text(json.dumps(value))
    with pytest.raises(ValueError, match=f"{name}' holds .* where .* stands; delete it or restore it"):
        files.read_json(tmp_path / name)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, "null", "3", '"x"', "\xff", ""])
def test_whatever_a_json_file_holds_is_a_sentence(tmp_path, text):
    path = tmp_path / files.RESULT
    path.write_text(text, "latin-1")
    with pytest.raises(ValueError, match="does not hold a JSON object"):
        files.read_json(path)
    (tmp_path / files.METRICS).write_text(f'{{"step": 1}}\n{text.replace(chr(10), "")}\n{{"step": true}}\n', "latin-1")
    rows, damaged = files.read_lines(tmp_path / files.METRICS)
    assert rows == [{"step": 1}] and damaged == [2, 3]


def test_moving_aside_goes_over_nothing(tmp_path):
    for i in range(3):
        (tmp_path / "x").write_text(str(i))
        disk.move_aside(tmp_path / "x", "damaged")
    assert sorted(p.read_text() for p in tmp_path.glob("damaged-x-*")) == ["0", "1", "2"]
