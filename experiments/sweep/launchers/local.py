"""Processes of this machine, each on cores of its own."""

import dataclasses
import os
import pathlib
import subprocess

from experiments.sweep import process


@dataclasses.dataclass(frozen=True)
class _Job:
    child: subprocess.Popen | None

    def poll(self) -> int | None:
        return process.LOCKED if self.child is None else self.child.poll()

    def stop(self) -> None:
        if self.child is not None:
            self.child.terminate()


@dataclasses.dataclass(frozen=True)
class _Local:
    slots: tuple[tuple[int, ...], ...]

    def start(self, workdir: pathlib.Path, slot: int) -> _Job:
        return _Job(process.start(workdir, self.slots[slot]))

    def close(self) -> None:
        pass


def launcher(jobs: int, folder: pathlib.Path) -> _Local:
    """`jobs` processes at a time. One job has the whole machine; several share out its cores."""
    return _Local(((),) if jobs == 1 else shares(jobs))


def shares(jobs: int) -> tuple[tuple[int, ...], ...]:
    """The cores of each of `jobs` slots: equal parts of those that this process may use, at least one each.

    Nothing is pinned ((), for each) where the operating system cannot.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ((),) * jobs
    cores = sorted(os.sched_getaffinity(0))
    if jobs > len(cores):
        return tuple((cores[slot % len(cores)],) for slot in range(jobs))
    return tuple(tuple(cores[slot * len(cores) // jobs : (slot + 1) * len(cores) // jobs]) for slot in range(jobs))
