"""SLURM, through submitit: each trial is one job that sees the same file system.

`resources` are submitit's parameters (`timeout_min`, `gpus_per_node`, `slurm_partition`, ...), and `cluster`: "slurm",
or "local" for submitit's processes on this machine. A job is signalled before its time runs out
(`slurm_signal_delay_s`) and saves; the same sweep command goes on with it.
"""

import dataclasses
import os
import pathlib
from typing import Any

import submitit

from experiments.sweep import process

_ROOT = pathlib.Path(__file__).resolve().parents[3]


@dataclasses.dataclass(frozen=True)
class _Job:
    job: submitit.Job

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        return 1 if self.job.exception() is not None else self.job.result()

    def stop(self) -> None:
        self.job.cancel()


@dataclasses.dataclass(frozen=True)
class _Slurm:
    executor: submitit.AutoExecutor

    def start(self, workdir: pathlib.Path, slot: int) -> _Job:
        return _Job(self.executor.submit(process.wait, str(workdir.absolute())))

    def close(self) -> None:
        pass


def launcher(jobs: int, folder: pathlib.Path, *, cluster: str = "slurm", **parameters: Any) -> _Slurm:
    """At most `jobs` jobs in the queue at a time; submitit's own files go to `folder`."""
    # Jobs inherit the environment; they find the house wherever they start.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    executor.update_parameters(**{"name": "tessera", "timeout_min": 24 * 60, **parameters})
    return _Slurm(executor)
