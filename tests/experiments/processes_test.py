"""One run by many processes: the same numbers, one writer, and an end for all when one is lost."""

import re
import subprocess
import sys

import numpy as np
import pytest

from experiments import workdir as files
from experiments.settings import processes
from experiments.settings.errors import Refused
from experiments.training import train
from tests import environment, many_processes
from tests.experiments import tiny

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


@pytest.mark.parametrize("lost", [0, 1])
def test_whoever_is_left_alone_ends_in_a_sentence(lost):
    """Process 0 takes the coordinator with it; of another one only the silence is heard."""
    port = many_processes.free_port()
    script = (
        "import sys, time\nfrom experiments.settings import processes\nprocesses.ALIVE = 3\n"
        f"processes.join('localhost:{port}', 2, int(sys.argv[1]))\nprint('here', flush=True)\ntime.sleep({WAIT})"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(i)],
            cwd=environment.ROOT, env=environment.child(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
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
