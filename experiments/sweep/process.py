"""One trial as a process of this machine: the command as it would be typed, its log, its lock.

The lock is a file lock of the operating system, taken before the process starts and held for as long as it lives, even
when the sweep that started it was killed: another sweep on the same folder waits for it instead of being refused by
`workdir.hold`, which is another kind of lock on the same file.
"""

import contextlib
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from experiments import workdir as files
from experiments.workdir import disk

LOG = "log.txt"
LOCKED = 75  # As an exit code: another process runs this trial (EX_TEMPFAIL of sysexits.h).
_LOOK = 0.1  # seconds
_MAIN = pathlib.Path(__file__).resolve().parents[2] / "main.py"


def start(workdir: pathlib.Path, cores: Sequence[int] = ()) -> subprocess.Popen | None:
    """Trains the run of `workdir`, which holds its config, in a new process; None if another process does so already.

    `cores`: those it may use; with one core XLA computes in one thread. The process does not receive the terminal's
    Ctrl-C: its caller stops it.
    """
    disk.folder(workdir)
    with disk.open_lock(workdir / files.LOCK) as lock, os.fdopen(disk.open_to_append(workdir / LOG), "ab") as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        process = subprocess.Popen(
            [sys.executable, str(_MAIN), f"--workdir={workdir}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, env=_environment(cores), pass_fds=(lock.fileno(),),
        )  # fmt: skip
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)  # Threads that it starts later inherit this.
    return process


def _environment(cores: Sequence[int]) -> dict[str, str]:
    if not cores:
        return dict(os.environ)
    threads = {f"{name}_NUM_THREADS": str(len(cores)) for name in ("OMP", "OPENBLAS", "MKL")}
    one = " --xla_cpu_multi_thread_eigen=false" if len(cores) == 1 else ""
    return os.environ | threads | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + one}


def wait(workdir: str) -> int:
    """Trains the run of `workdir` and returns its exit code; launchers for other machines call this function there.

    An exception from outside (a cancelled task) tells the process to save and leave, and waits for that.
    """
    process = start(pathlib.Path(workdir))
    if process is None:
        return LOCKED
    try:
        while (code := process.poll()) is None:
            time.sleep(_LOOK)  # Ray interrupts Python only, not a system call that waits.
        return code
    except BaseException:
        process.terminate()
        process.wait()
        raise


def error(workdir: pathlib.Path, code: int = 1) -> str:
    """Why a run failed: the signal that ended it, by its exit code, else the last sentence or line of its log."""
    if name := ended_by(code):
        hint = "; a process that asks for more memory than there is ends so" if name == "SIGKILL" else ""
        return f"ended by the signal {name}{hint}; the same command goes on with it"
    data = disk.read_bytes(workdir / LOG)
    if data is None:
        return "it wrote no log"
    lines = data.decode("utf-8", "replace").splitlines()
    lines = [line for line in lines if line.strip()]
    told = [line for line in lines if line.startswith("error: ")]
    return (told or lines or ["it wrote nothing"])[-1].removeprefix("error: ")


def ended_by(code: int) -> str:
    """The name of the signal behind an exit code: -9 as `subprocess` has it, 137 as a shell; "" where there is none."""
    number = -code if code < 0 else code - 128
    return signal.Signals(number).name if number in {*signal.Signals} else ""


def finished(workdir: pathlib.Path) -> bool:
    """Whether the run of `workdir` came to its end."""
    return (workdir / files.RESULT).exists()
