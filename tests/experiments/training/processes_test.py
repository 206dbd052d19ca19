"""One run by many processes: the same numbers, one writer, and an end for all when one is lost."""

import re
import signal
import socket
import time

import numpy as np
import pytest

from experiments import workdir as files
from experiments.settings import processes
from experiments.settings.errors import Refused
from experiments.training import train
from experiments.workdir.checkpoints import Checkpoints
from tests import many_processes
from tests.experiments import tiny

SAME, LOST = processes.SAME, processes.LOST
WAIT = 300  # Seconds, on a machine that does other things too.
# Two processes hold halves of every row and of every parameter: all that can go wrong between them does.
STEPS = 20
SETTINGS = {
    "train__steps": STEPS, "train__log_every": 1, "checkpoint__every": 7, "eval__every": 2, "eval__sample_tokens": 2,
    "mesh__data": 1, "mesh__fsdp": 2, "mesh__context": 2, "parallel__schedule": "zigzag",
    "optimizer__eps": 1e-3,  # Keeps Adam from dividing by gradients that are zero but for rounding.
}  # fmt: skip


def losses(workdir):
    lines, damaged = files.read_lines(workdir / files.METRICS)
    assert not damaged
    return {(line["step"], key): line[key] for line in lines for key in line if key.endswith(("loss", "per_byte"))}


def run(workdir, *flags, processes):
    """The outputs of a run that must end well."""
    ended = many_processes.ended(many_processes.start(workdir, *flags, processes=processes), WAIT)
    assert [code for code, _ in ended] == [0] * processes, ended
    return [said for _, said in ended]


def test_one_of_two_processes_is_killed_and_one_process_goes_on(tmp_path):
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    config = tiny.config(tmp_path, **SETTINGS)
    flags = many_processes.training(config.data.path, config.data.cache_dir, **SETTINGS)
    both = many_processes.start(killed, *flags, processes=2)
    many_processes.wait_for_checkpoint(killed, both, WAIT)
    both[1].kill()
    (code, said), _ = many_processes.ended(both, WAIT)
    assert code == 2 and said.endswith(f"{processes.LOST}\n"), said
    assert not (killed / files.RESULT).exists()
    run(killed, *flags, processes=1)
    train(tiny.config(tmp_path, **SETTINGS | {"mesh__data": 2}), alone, quiet=True)  # On the eight devices here.

    one, other = losses(alone), losses(killed)
    assert one.keys() == other.keys() and {step for step, _ in one} == set(range(1, STEPS + 1))
    for key, value in one.items():
        np.testing.assert_allclose(other[key], value, rtol=1e-5, err_msg=str(key))
    # What one process saved, two read; and one of them speaks.
    said, silent = run(killed, "--mode=evaluate", processes=2)
    bits = float(re.search(r"held-out bits per byte = ([0-9.]+)", said)[1])
    assert abs(bits - one[STEPS, "eval/bits_per_byte"]) < 6e-4 and "held-out" not in silent


def test_two_processes_learn_from_one_teacher(tmp_path):
    """Its parameters lie over both. The losses and the teacher's checksum are those of one process, before and after
    both start again."""
    train(tiny.config(tmp_path, train__steps=2, eval__every=0, model__width=48), tmp_path / "teacher", quiet=True)
    settings = SETTINGS | {
        "train__steps": 6, "checkpoint__every": 2, "objective": "distillation", "optimizer__schedule": "constant",
        "companions__teacher__workdir": str(tmp_path / "teacher"),
    }  # fmt: skip
    config = tiny.config(tmp_path, **settings)
    for steps in (4, 6):
        flags = many_processes.training(config.data.path, config.data.cache_dir, **settings | {"train__steps": steps})
        run(tmp_path / "both", *flags, processes=2)
    made = tiny.config(tmp_path, **settings | {"mesh__data": 2})
    train(made, tmp_path / "alone", quiet=True)  # On the eight devices here.

    one, other = losses(tmp_path / "alone"), losses(tmp_path / "both")
    assert one.keys() == other.keys() and {step for step, _ in one} == set(range(1, 7))
    for key, value in one.items():
        np.testing.assert_allclose(other[key], value, rtol=1e-5, err_msg=str(key))
    told = [Checkpoints(tmp_path / name).about(6)["companions"]["teacher"] for name in ("alone", "both")]
    assert told[0] == told[1] and told[0]["step"] == 2


@pytest.mark.parametrize("lost", [0, 1])
def test_whoever_is_left_alone_ends_in_a_sentence(lost):
    """Process 0 takes the coordinator with it; of another one only the silence is heard."""
    both = many_processes.scripts(
        "import sys, time\nfrom experiments.settings import processes\nprocesses.ALIVE = 3\n"
        f"processes.join(sys.argv[1], 2, int(sys.argv[2]))\nprint('here', flush=True)\ntime.sleep({WAIT})",
        count=2,
    )
    assert [process.stdout.readline() for process in both] == ["here\n"] * 2
    both[lost].kill()
    code, said = many_processes.ended(both, WAIT)[1 - lost]
    assert code == 2 and said.endswith(f"{processes.LOST}\n"), said


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("here", 2, 0), "--coordinator=here must be HOST:PORT"),
        (("", 2, 0), "--coordinator= must be HOST:PORT"),
        (("localhost:9", 0, 0), "--num_processes=0 must be a positive count"),
        (("localhost:9", 2, 2), "--process_id=2 must be from 0 to 1"),
        (("localhost:9", 2, -1), "--process_id=-1 must be from 0 to 1"),
    ],
)
def test_flags_that_name_no_process_are_refused(flags, told):
    with pytest.raises(Refused, match=told):
        processes.join(*flags)


def test_processes_that_differ_end_before_anything_is_written(tmp_path):
    """Another seed and number of steps, and another folder under the same name."""
    one, other = tmp_path / "one" / "run", tmp_path / "other" / "run"
    one.parent.mkdir()
    other.parent.mkdir()
    flags = many_processes.training(tiny.corpus(tmp_path), tmp_path / "cache")
    own = (f"--workdir={other}", "--config.seed=7", "--config.train.steps=21")
    ended = many_processes.ended(many_processes.start(one, *flags, processes=2, last=own), WAIT)
    assert [code for code, _ in ended] == [2, 2], ended
    for _, said in ended:
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert line.startswith("error: the processes of this run do not agree: process 1: ") and SAME in line
        assert f"--workdir={other} is another folder than that of process 0" in line
        assert "--config.seed=7 (process 0: 0)" in line and "--config.train.steps=21 (process 0: 4)" in line
        assert line.count("process 0: ") == 2
    assert not list(one.parent.iterdir()) and not list(other.parent.iterdir()) and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("chips", "compiler", "plugins", "given", "found"),
    [
        ((), True, (), {}, {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}),
        ((), True, ("cuda12",), {}, {"TPU_SKIP_MDS_QUERY": "1"}),  # jax looks for a GPU, and takes the CPU after that.
        ((), True, (), {"JAX_PLATFORMS": "tpu"}, {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "tpu"}),
        (("/dev/accel0",), True, (), {}, {}),
        ((), False, (), {}, {}),
    ],
)
def test_without_a_tpu_its_compiler_is_not_asked_for_one(monkeypatch, chips, compiler, plugins, given, found):
    specs = {"libtpu": compiler or None, "jax_plugins": None}
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: [chip for chip in chips if "accel" in pattern])
    monkeypatch.setattr(processes.importlib.util, "find_spec", specs.__getitem__)
    monkeypatch.setattr(processes.importlib.metadata, "entry_points", lambda group: plugins)
    environment = dict(given)
    processes.quiet_tpu(environment)
    assert environment == found


HANGS = f"""
import sys, time
from experiments.settings import processes
from experiments.training import stopping
processes.STOP, processes.ALIVE = 1, {WAIT}
processes.join(sys.argv[1], 2, int(sys.argv[2]))
import jax
from jax.experimental import multihost_utils
jax.devices()
print("here", flush=True)
if sys.argv[2] == "0":
    time.sleep({WAIT})
with stopping.collected() as stop:
    stop.look(0)
    print("loop", flush=True)
    multihost_utils.sync_global_devices("the other one sleeps")
"""


def test_sigterm_ends_whoever_waits_for_a_process_that_hangs():
    """The one that hangs is process 0: it outlives the other one, while process 0 takes all others with it."""
    hangs, waits = both = many_processes.scripts(HANGS, count=2)
    assert [process.stdout.readline() for process in both] == ["here\n"] * 2
    assert waits.stdout.readline() == "loop\n"
    time.sleep(0.5)
    waits.send_signal(signal.SIGTERM)
    assert waits.wait(WAIT) == 128 + signal.SIGTERM
    hangs.send_signal(signal.SIGTERM)  # In no loop: nobody would ask what jax has heard.
    (code, _), (_, said) = many_processes.ended(both, WAIT)
    assert "error: SIGTERM came and no step came within 1 seconds to act on it; the same command goes on" in said
    assert code == -signal.SIGTERM


COST = """
import sys, time
from experiments.settings import processes
from experiments.training import stopping
processes.join(sys.argv[1], 2, int(sys.argv[2]))
with stopping.collected() as stop:
    stop.look(0)
    begin = time.process_time()
    for step in range(1, 2001):
        stop.look(step)
    print(1000 * (time.process_time() - begin) / 2000, flush=True)
processes.wait_for_all("measured")
"""


def test_the_agreement_before_a_step_costs_less_than_a_fiftieth_of_it():
    """Of a step of 0.1 s: one of shape a of the bench takes more than a second of a core here."""
    ended = many_processes.ended(many_processes.scripts(COST, count=2), WAIT)
    milliseconds = [float(said.strip().splitlines()[-1]) for _, said in ended]
    print(f"CPU ms a look: {milliseconds}")
    assert max(milliseconds) < 0.02 * 100, ended


LOOP = """
import sys, time
from experiments.settings import processes
from experiments.training import stopping
processes.join(sys.argv[1], 2, int(sys.argv[2]))
with stopping.collected() as stop:
    for step in range(10**6):
        stop.look(step)
        if stop.requested:
            break
        if step == 5:
            print("loop", flush=True)
        time.sleep(0.02)
print(stop.requested, step, flush=True)
time.sleep(600)
"""


def test_sigterm_to_one_process_stops_all_before_the_same_step():
    both = many_processes.scripts(LOOP, count=2)
    assert [process.stdout.readline() for process in both] == ["loop\n"] * 2
    both[1].send_signal(signal.SIGTERM)
    said = {next(line for line in process.stdout if line.startswith("SIG")) for process in both}
    assert len(said) == 1 and said.pop().startswith("SIGTERM "), said
    for process in reversed(both):  # Beyond the loop it ends them again; process 0 last, as it takes others with it.
        process.send_signal(signal.SIGTERM)
    assert [code for code, _ in many_processes.ended(both, WAIT)] == [-signal.SIGTERM] * 2


def test_sigterm_and_a_limit_end_a_rendezvous():
    script = (
        "import sys\nfrom experiments.settings import processes\nprint('here', flush=True)\n"
        "processes.JOIN = int(sys.argv[2]) or 600\nprocesses.join(sys.argv[1], 3, int(sys.argv[2]))"
    )
    told, late, never = many_processes.scripts(script.replace("int(sys.argv[2]) or", "1 if sys.argv[2] == '1' else"), 3)
    never.kill()
    assert told.stdout.readline() == late.stdout.readline() == "here\n"
    late_code, late_said = many_processes.ended([late], WAIT)[0]
    told.send_signal(signal.SIGTERM)
    assert many_processes.ended([told], WAIT)[0][0] == -signal.SIGTERM
    assert late_code == 2 and "not all processes came within 1 seconds" in late_said, late_said
    never.communicate()


def test_two_processes_0_do_not_share_a_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        listener.listen()
        with pytest.raises(Refused, match="another process listens there; give --process_id=0 to one process only"):
            processes.join(f"localhost:{listener.getsockname()[1]}", 2, 0)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: [external/gloo] Connection closed by peer [127.0.0.1]"), LOST),
        (ValueError("FAILED_PRECONDITION: Buffer Definition Event: Gloo all-gather failed"), LOST),
        (ValueError("INVALID_ARGUMENT: shapes do not match"), ""),
        (ValueError("the peer of a token is not known"), ""),
    ],
)
def test_a_lost_process_is_said_in_one_way(monkeypatch, error, said):
    monkeypatch.setattr(processes, "many", lambda: True)
    assert processes.sentence(error) == said
    wrapped = RuntimeError("not saved")
    wrapped.__cause__ = error
    assert processes.sentence(wrapped) == said
    monkeypatch.setattr(processes, "many", lambda: False)
    assert processes.sentence(error) == ""
