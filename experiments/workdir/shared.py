"""What a save costs, and what the processes of a run say to each other about it: each hashes what it wrote itself."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.settings import processes
from experiments.workdir import disk, vouched


@dataclasses.dataclass
class Cost:
    """What the saves of this process cost: their number, bytes of the last one on disk, and seconds of all of them.

    stood: that training stood still. wrote, hashed: that writing and hashing took, beside training.
    """

    saves: int = 0
    bytes: int = 0
    stood: float = 0.0
    wrote: float = 0.0
    hashed: float = 0.0

    def __str__(self) -> str:
        n = self.saves
        return (
            f"{n} checkpoint{'s' * (n > 1)} of {self.bytes / 2**20:,.1f} MiB: training stood still for "
            f"{self.stood:.1f} s; written in {self.wrote:.1f} s and hashed in {self.hashed:.1f} s beside it"
        )


def written(saving: pathlib.Path, wait: Callable[[], None], cost: Cost) -> dict[str, str]:
    """Waits until all have written, then hashes what this process wrote: file -> SHA-256.

    No process reads back what another one wrote, which would be the whole state through a network's disk.

    Args:
      saving: the folder of the save.
      wait: returns when all processes have written.
      cost: that of this save is added.
    """
    began = time.perf_counter()
    wait()
    there, (who, count) = disk.files_below(saving), processes.which()
    cost.wrote += (hashing := time.perf_counter()) - began
    digests = vouched.hashes(saving, [name for name in there if vouched.wrote(name, count) == who])
    cost.hashed += time.perf_counter() - hashing
    cost.saves, cost.bytes = cost.saves + 1, sum(os.lstat(saving / name).st_size for name in there)
    return digests


def together(place: str, mine: Callable[[], Any], main: Callable[[list], None]) -> None:
    """Calls `mine()` in every process, then `main([of process 0, of process 1, ...])` in process 0.

    It uses no collective of the devices. Where one fails, all raise: the one its error, the others OSError with its
    words.

    Args:
      place: a name, see `processes.through_main`.
      mine: returns what JSON can hold.
      main: is called where no process failed.
    """
    failure: Exception | None = None
    try:
        value = mine()
    except Exception as error:
        failure, value = error, None

    def decide(said: list[tuple[Any, str]]) -> str:
        nonlocal failure
        if told := first_said([words for _, words in said]):
            return told
        try:
            main([value for value, _ in said])
        except Exception as error:
            failure = error
            return reason(error)
        return ""

    told = processes.through_main(place, (value, reason(failure) if failure else ""), decide)
    if failure is not None:
        raise failure
    if told != "":
        raise OSError(told or "process 0 did not say that it is written")


def first_said(said: list[str]) -> str:
    """The first process's reason, with its number where it is not process 0."""
    who = next((i for i, why in enumerate(said) if why), 0)
    return f"process {who}: {said[who]}" if who else said[0]


def reason(error: BaseException) -> str:
    """What a library says of a failure, in one line; a full disk in our words."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "RESOURCE_EXHAUSTED" in text or "No space left" in text:
        return "the disk is full"
    if "Disk quota exceeded" in text:
        return "the disk quota is used up"
    if "File too large" in text:
        return "the file-size limit is reached"
    if "PERMISSION_DENIED" in text or "Permission denied" in text:
        return "permission is denied"
    return text.rstrip(".") if len(text) <= 200 else f"{text[:200]}..."


def all_processes(good: bool) -> bool:
    """Whether `good` holds on every process."""
    if not processes.many():
        return good
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.int32(good))))
