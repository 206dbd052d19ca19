"""Many processes as one run: how they find each other, take turns, stop at one step, and end together.

All run the same command and the same program; process 0 is the one that writes. Between them only the numbers of the
training step travel, and a word now and then.
"""

import ctypes
import glob
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from experiments.settings.errors import Refused

T = TypeVar("T")

JOIN = 120  # Seconds until all processes must have come.
ALIVE = 30  # Seconds without a sign of life after which a process counts as lost.
TURN = 24 * 3600  # Seconds that others wait for process 0 to read a corpus; a lost process ends the wait sooner.
LEAVE = 60  # Seconds until all must have come to the end, once one is there.

LOST = (
    "another process of this run ended or cannot be reached; start all of them again with the same commands, or the "
    "run on other devices: it goes on from its last checkpoint."
)


def join(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins the other processes, before any device is touched; nothing to do for a process that is alone.

    Where the environment knows (TPU, SLURM, Open MPI), no argument is needed: "", 0 and -1. Raises Refused.
    """
    if not (coordinator or num_processes or process_id >= 0):
        if not _cluster():
            return
        where = {}
    else:
        check(coordinator, num_processes, process_id)
        if num_processes == 1:
            return
        where = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    limits = {"initialization_timeout": 2 * JOIN, "heartbeat_timeout_seconds": ALIVE, "shutdown_timeout_seconds": LEAVE}
    late = threading.Timer(JOIN, _nobody_came, (coordinator, num_processes))
    late.start()
    try:
        jax.distributed.initialize(**where, **limits)
    except ValueError:
        if where:
            raise
        # A TPU that belongs to no cluster: this process is alone.
    finally:
        late.cancel()
    if jax.distributed.is_initialized():
        # jax's client ends a process whose peers are silent, or whose coordinator is gone, by abort() in a thread of
        # C++: no exception comes of it, so the sentence is said from the signal.
        ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    """Ends the process with a sentence below what jax wrote."""
    os.write(2, f"error: jax ended this process, in the words above; as a rule because {LOST}\n".encode())
    os._exit(2)


def _nobody_came(coordinator: str, num_processes: int) -> NoReturn:
    """Ends the process with a sentence, where jax would end it with a trace of C++."""
    flags = f"--num_processes={num_processes} --coordinator={coordinator}" if coordinator else "this job"
    print(
        f"error: {flags}: not all processes came within {JOIN} seconds; start all of them, these flags the same and "
        "--process_id from 0 on.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def check(coordinator: str, num_processes: int, process_id: int) -> None:
    """Raises Refused unless the three flags name one process of many."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise Refused(
            f"--coordinator={coordinator} must be HOST:PORT of process 0, the same for all, e.g. localhost:9876."
        )
    if num_processes < 1:
        raise Refused(f"--num_processes={num_processes} must be a positive count, e.g. --num_processes=2.")
    if not 0 <= process_id < num_processes:
        raise Refused(f"--process_id={process_id} must be from 0 to {num_processes - 1}, another for each process.")


def _cluster() -> bool:
    """Whether a scheduler started several processes, or this is a TPU, which may be one host of many."""
    if any(int(os.environ.get(name) or 1) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")):
        return True
    if os.environ.get("JAX_PLATFORMS", "tpu") not in ("", "tpu"):
        return False
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def many() -> bool:
    """Whether this process is one of several. False before `join`."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Whether this is the process that writes."""
    return not many() or sys.modules["jax"].process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process is here; `name` is that of the place, met once in a run."""
    if many():
        from orbax.checkpoint import multihost

        # By the coordinator and not by the devices: these give up on a slow process too soon.
        multihost.get_barrier_sync_fn()(key=f"tessera/{name}", timeout_ms=1000 * TURN)


def main_first(name: str, make: Callable[[], T]) -> T:
    """`make()` on process 0, then on the others, which find on disk what it wrote."""
    if not is_main():
        wait_for_all(name)
        return make()
    try:
        return make()
    finally:  # Also when it failed: the others then fail in the same words.
        wait_for_all(name)


def from_main(value: int) -> int:
    """What process 0 says, everywhere: for what was read from a disk that is changing."""
    if not many():
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def told_to_stop(step: int) -> str:
    """ "SIGTERM" at the one step, the same for all, before which many processes stop when one of them was told to."""
    from jax.experimental import multihost_utils

    return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else ""


def sentence(error: BaseException | None) -> str:
    """What to say of an error that another process caused by ending; "" for any other."""
    if not many():
        return ""
    words = ("gloo", "connection", "heartbeat", "coordination", "unavailable", "barrier", "peer", "nccl")
    while error is not None:  # Orbax wraps what it is told.
        if type(error).__name__ == "JaxRuntimeError" and any(word in str(error).lower() for word in words):
            return LOST
        error = error.__cause__ or error.__context__
    return ""


def leave(code: int) -> NoReturn:
    """Ends this process; one of many without waiting for the others, who may wait for it."""
    if many():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def abandoned(error: Any) -> bool:
    """Whether what is under way must not be waited for: an error left this process without the others."""
    return error is not None and many()
