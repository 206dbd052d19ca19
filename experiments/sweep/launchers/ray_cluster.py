"""Ray: each trial is one task, on the cluster that RAY_ADDRESS names, else on a local one that ends with the sweep.

`resources` are those of a Ray task (`num_cpus`, `num_gpus`, `resources`, ...). Nodes see the same file system and have
the same packages.
"""

import dataclasses
import os
import pathlib
from typing import Any

import ray

from experiments.sweep import process

_ROOT = pathlib.Path(__file__).resolve().parents[3]


@dataclasses.dataclass(frozen=True)
class _Job:
    task: Any

    def poll(self) -> int | None:
        ready, _ = ray.wait([self.task], timeout=0)
        if not ready:
            return None
        try:
            return ray.get(self.task)
        except (ray.exceptions.RayError, KeyboardInterrupt):
            return 1

    def stop(self) -> None:
        ray.cancel(self.task)


@dataclasses.dataclass(frozen=True)
class _Ray:
    run: Any
    started: bool

    def start(self, workdir: pathlib.Path, slot: int) -> _Job:
        return _Job(self.run.remote(str(workdir.absolute())))

    def close(self) -> None:
        if self.started:
            ray.shutdown()


def launcher(jobs: int, folder: pathlib.Path, **options: Any) -> _Ray:
    """At most `jobs` tasks at a time, of one CPU each unless `options` say otherwise."""
    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS")
        size = {"address": address} if address else {"num_cpus": jobs, "include_dashboard": False}
        environment = {"env_vars": {"PYTHONPATH": f"{_ROOT}:{os.environ.get('PYTHONPATH', '')}"}}
        ray.init(**size, runtime_env=environment, log_to_driver=False, logging_level="error")
    return _Ray(ray.remote(**{"num_cpus": 1, "max_retries": 0, **options})(process.wait), started)
