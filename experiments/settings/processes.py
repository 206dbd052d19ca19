"""Many processes as one run: how they find each other, take turns, stop at one step, and end together.

All run the same command and the same program; process 0 writes. They exchange the arrays of the training step, and a
few short messages through the coordinator.
"""

import contextlib
import ctypes
import errno
import glob
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, NoReturn, TypeVar

from experiments.settings.errors import Refused

T = TypeVar("T")

JOIN = 120  # Seconds until all processes must have come.
ALIVE = 30  # Seconds without a sign of life after which a process counts as lost.
TURN = 24 * 3600  # Seconds that others wait for process 0 to read a corpus; a lost process ends the wait sooner.
AGREE = 300  # Seconds until all must have said what they run: between two of them lie imports, or a checkpoint.
HEARD = 10  # Seconds until all have heard why they end.
STOP = 30  # Seconds that a signal waits for the next step of a loop, on top of the longest time between two so far.
LEAVE = 60  # Seconds until all must have come to the end, once one is there.

LOST = (
    "another process of this run ended or cannot be reached; start all of them again with the same commands, or the "
    "run on other devices: it goes on from its last checkpoint."
)
SAME = "start all of them with the same command, code, libraries and data, and one workdir that all see."


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
        if process_id == 0:
            _check_port(coordinator)
        where = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    limits = {"initialization_timeout": 2 * JOIN, "heartbeat_timeout_seconds": ALIVE, "shutdown_timeout_seconds": LEAVE}
    late = threading.Timer(JOIN, _nobody_came, (coordinator, num_processes))
    late.start()
    # jax's client ends a process whose peers are silent, or whose coordinator is gone, by abort() in a thread of C++:
    # no exception comes of it, so the sentence is said from the signal.
    ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)
    try:
        jax.distributed.initialize(**where, **limits)
    except ValueError:
        if where:
            raise
        # A TPU that belongs to no cluster: this process is alone.
        ctypes.CDLL(None).signal(signal.SIGABRT, None)
    finally:
        late.cancel()
    if jax.distributed.is_initialized():
        _take_sigterm()


_listeners: list[Callable[[int], None]] = []  # jax's handler of SIGTERM, as there is one for a process.


def _take_sigterm() -> None:
    """SIGTERM ends this process again: jax only notes it, and where no loop asks for what it noted nothing ends."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    if (handler := libc.signal(signal.SIGTERM, None)) not in (None, int(signal.SIG_IGN)):
        _listeners[:] = [ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)]


def tell_all_to_stop() -> None:
    """Lets jax know that this process was told to stop: `told_to_stop` then names a step, the same for all."""
    for listener in _listeners:
        listener(signal.SIGTERM)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    """Ends the process with a sentence below what jax wrote."""
    why = "where they speak of an incarnation, two were given one --process_id; else, as a rule,"
    os.write(2, f"error: jax ended this process, in the words above; {why} {LOST}\n".encode())
    os._exit(2)


def _nobody_came(coordinator: str, num_processes: int) -> NoReturn:
    """Ends the process with a sentence, where jax would end it with a trace of C++."""
    flags = f"--num_processes={num_processes} --coordinator={coordinator}" if coordinator else "this job"
    print(
        f"error: {flags}: not all processes came within {JOIN} seconds; start all of them, these flags the same and "
        "--process_id from 0 on, each number once.",
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


def _check_port(coordinator: str) -> None:
    """Raises Refused where somebody listens already: two coordinators would share a port, and wait for each other."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # The last run's connections may linger.
            probe.bind(("::", int(coordinator.rpartition(":")[2])))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Refused(
                f"--coordinator={coordinator}: another process listens there; give --process_id=0 to one process only, "
                "and a port that is free."
            ) from None


def _cluster() -> bool:
    """Whether a scheduler started several processes, or this is a TPU, which may be one host of many."""
    if any(int(os.environ.get(name) or 1) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")):
        return True
    if os.environ.get("JAX_PLATFORMS", "tpu") not in ("", "tpu"):
        return False
    return _chips() and importlib.util.find_spec("libtpu") is not None


def _chips() -> bool:
    """Whether this machine shows a TPU."""
    return bool(glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*"))


def quiet_tpu(environment: MutableMapping[str, str]) -> None:
    """Where the TPU's compiler is installed and no TPU is there, jax does not ask for one, in many seconds and lines.

    With no plugin of another chip either, jax takes the CPU at once, as it would in the end.

    Args:
      environment: os.environ, before jax is imported; what is set there already stays.
    """
    if _chips() or importlib.util.find_spec("libtpu") is None:
        return
    environment.setdefault("TPU_SKIP_MDS_QUERY", "1")
    if not importlib.metadata.entry_points(group="jax_plugins") and importlib.util.find_spec("jax_plugins") is None:
        environment.setdefault("JAX_PLATFORMS", "cpu")


def many() -> bool:
    """Whether this process is one of several. False before `join`."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Whether this is the process that writes."""
    return not many() or sys.modules["jax"].process_index() == 0


def which() -> tuple[int, int]:
    """(the number of this process, how many there are)."""
    return (sys.modules["jax"].process_index(), sys.modules["jax"].process_count()) if many() else (0, 1)


def wait_for_all(name: str) -> None:
    """Returns when every process is here; `name` is that of the place, met once in a run."""
    if many():
        from orbax.checkpoint import multihost

        # By the coordinator and not by the devices: these give up on a slow process too soon.
        multihost.get_barrier_sync_fn()(key=f"tessera/{name}", timeout_ms=1000 * TURN)


class Store:
    """Short messages between processes through the coordinator, each under a key that is set once."""

    def __init__(self):
        from jax._src import distributed  # What Orbax's barriers use too; jax shows it nowhere else.

        self._client = distributed.global_state.client

    def count(self, key: str) -> int:
        """1 at the first call with this key, then 2, ..."""
        return self._client.key_value_increment(key, 1)

    def set(self, key: str, value: Any) -> None:
        """Stores a JSON value."""
        self._client.key_value_set(key, json.dumps(value))

    def get(self, key: str, seconds: float) -> Any:
        """The stored value, waiting up to `seconds` for it; None after that."""
        try:
            return json.loads(self._client.blocking_key_value_get(key, max(1, int(1000 * seconds))))
        except sys.modules["jax"].errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        return None


def agree(place: str, mine: Any, differs: Callable[[Any], str]) -> None:
    """Raises Refused in every process of many, with the same sentence, unless all agree with process 0.

    Args:
      place: a name, the same for all.
      mine: what process 0 tells the others, as JSON can hold it.
      differs: from that, what is different here; "" for nothing.
    """
    jax = sys.modules["jax"]
    if said := exchange(Store(), jax.process_index(), jax.process_count(), place, mine, differs):
        raise Refused(said)


def exchange(
    store: Any, who: int, count: int, place: str, mine: Any, differs: Callable[[Any], str], limit: float | None = None
) -> str:
    """The part of `agree` of process `who` of `count`. Returns "", or a sentence, the same in every process.

    Each reads what process 0 says, and process 0 one word of each: what travels grows as the number of processes.
    """
    limit = AGREE if limit is None else limit
    key = f"tessera/agree/{place}/{store.count(f'tessera/agree/{place}/{who}')}"
    if who:
        theirs = store.get(f"{key}/main", limit)
        if theirs is None:
            return _silent([0], limit)
        store.set(f"{key}/{who}", differs(theirs))
        outcome = store.get(f"{key}/outcome", 2 * limit)
        if outcome:
            with contextlib.suppress(RuntimeError):  # Process 0 may end before it answers: this one knows why.
                store.set(f"{key}/heard/{who}", True)
        return _silent([0], 2 * limit) if outcome is None else outcome
    store.set(f"{key}/main", mine)
    said = _each(store, key, range(1, count), limit)
    silent = [i for i, word in said.items() if word is None]
    different = [f"process {i}: {word}" for i, word in said.items() if word]
    outcome = _silent(silent, limit) if silent else ""
    if different:
        more = f"; and {len(different) - 3} more processes" if len(different) > 3 else ""
        outcome = f"the processes of this run do not agree: {'; '.join(different[:3])}{more}; {SAME}"
    store.set(f"{key}/outcome", outcome)
    if outcome:  # The words are gone with this process.
        _each(store, f"{key}/heard", [i for i in said if i not in silent], HEARD)
    return outcome


def _each(store: Any, key: str, who: Iterable[int], seconds: float) -> dict[int, Any]:
    """What each process left under `key`, None where it did not within `seconds` for all of them."""
    end = time.monotonic() + seconds
    return {i: store.get(f"{key}/{i}", end - time.monotonic()) for i in who}


def _silent(who: list[int], seconds: float) -> str:
    named = f"process {who[0]}" if len(who) == 1 else f"processes {', '.join(map(str, who))}"
    return f"{named} did not say within {seconds:g} seconds what it runs; look there, end all, and start them again."


def through_main(place: str, mine: Any, decide: Callable[[list], T]) -> T:
    """What process 0 makes of what each process says: `decide([of process 0, of process 1, ...])`, told to all.

    It goes through the coordinator and not by the devices, so that a thread may ask while the devices train. A process
    that is lost ends the wait; what `decide` raises, process 0 raises, and the others wait for words that never come
    until it ends.

    Args:
      place: a name; all come to it equally often.
      mine: what this process says, as JSON can hold it.
      decide: returns what JSON can hold; called in process 0 alone.
    """
    if not many():
        return decide([mine])
    store, (who, count) = Store(), which()
    key = f"tessera/through/{place}/{store.count(f'tessera/through/{place}/{who}')}"
    if who:
        store.set(f"{key}/{who}", mine)
        return store.get(f"{key}/outcome", TURN)
    said = [mine, *_each(store, key, range(1, count), TURN).values()]
    outcome = decide(said)
    store.set(f"{key}/outcome", outcome)
    return outcome


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
    """The value of process 0 in every process, for values read from a disk that may change meanwhile."""
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
    """A sentence for an error that was caused by another process ending; "" for any other error."""
    if not many():
        return ""
    words = ("gloo", "connection", "heartbeat", "coordination", "unavailable", "barrier", "peer", "nccl")
    while error is not None:  # Orbax wraps what it is told.
        # A status of XLA comes as JaxRuntimeError or, from where an array is read, as a plain ValueError.
        status = type(error).__name__ == "JaxRuntimeError" or re.match(r"[A-Z]+(_[A-Z]+)*: ", str(error))
        if status and any(word in str(error).lower() for word in words):
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
