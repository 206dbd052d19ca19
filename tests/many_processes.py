"""Starts main.py as two processes of two simulated devices on loopback, or as one process of four; for tests."""

import contextlib
import pathlib
import socket
import subprocess
import sys
import time

from experiments.workdir.checkpoints import Checkpoints
from tests import environment


def start(workdir: pathlib.Path, *flags: str, processes: int, last: tuple[str, ...] = ()) -> list[subprocess.Popen]:
    """main.py with these flags in `workdir`, as `processes` processes that share four devices; `last`: more flags of
    the last one."""
    flags = (f"--workdir={workdir}", f"--simulate={4 // processes}", *flags)
    if processes > 1:
        flags += (f"--coordinator=localhost:{free_port()}", f"--num_processes={processes}")
    env = environment.child() | {"TF_CPP_MIN_LOG_LEVEL": "2"}
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(
            [
                sys.executable, "main.py", *flags, *([f"--process_id={i}"] if processes > 1 else []),
                *(last if i == processes - 1 else ()),
            ],
            cwd=environment.ROOT, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip


def scripts(script: str, count: int) -> list[subprocess.Popen]:
    """`script` as `count` processes: sys.argv[1] is HOST:PORT, sys.argv[2] which process it is."""
    where = f"localhost:{free_port()}"
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, where, str(i)],
            cwd=environment.ROOT, env=environment.child(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(count)
    ]  # fmt: skip


def training(texts: pathlib.Path, cache: pathlib.Path, **settings) -> tuple[str, ...]:
    """Flags of a tiny run over `texts`; settings are keys of the config with __ for dots."""
    changes = {
        "data.source": "text", "data.path": texts, "data.cache_dir": cache,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }  # fmt: skip
    return f"--config={environment.ROOT / 'tests' / 'kill_config.py'}", *(
        f"--config.{k}={v}" for k, v in changes.items()
    )


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def ended(started: list, seconds: float) -> list[tuple[int, str]]:
    """Exit code and output of every process, all within `seconds`; none is left running."""
    deadline = time.monotonic() + seconds
    try:
        outputs = [p.communicate(timeout=max(0.1, deadline - time.monotonic()))[0] for p in started]
        return [(p.returncode, text) for p, text in zip(started, outputs, strict=True)]
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def wait_for_checkpoint(workdir: pathlib.Path, started: list[subprocess.Popen], seconds: float) -> None:
    """Returns when a run under way has saved; AssertionError when it ended before, or has not by then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and all(p.poll() is None for p in started):
        if Checkpoints(workdir).steps():
            return
        time.sleep(0.05)
    for process in started:
        process.kill()
    raise AssertionError([text for _, text in ended(started, 10)])
