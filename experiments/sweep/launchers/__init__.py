"""Where trials run: one small module for each place, behind one protocol."""

import importlib
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

from experiments.settings.errors import Refused


class Job(Protocol):
    """One trial under way."""

    def poll(self) -> int | None:
        """Its exit code; `process.LOCKED` where another process runs the trial; None while it is under way."""

    def stop(self) -> None:
        """Tells it to save and leave; `poll` says when it has."""


class Launcher(Protocol):
    """A place with `jobs` slots, at most one trial in each."""

    def start(self, workdir: pathlib.Path, slot: int) -> Job:
        """Begins the run whose config lies in `workdir`."""

    def close(self) -> None:
        """Undoes all changes of the launcher."""


LAUNCHERS = {  # name: (module with a function `launcher`, the package it needs)
    "local": ("local", ""),
    "ray": ("ray_cluster", "ray"),
    "slurm": ("slurm", "submitit"),
}


def make(name: str, jobs: int, folder: pathlib.Path, resources: Mapping[str, Any]) -> Launcher:
    """The launcher `name` of `LAUNCHERS` for `jobs` trials at a time; `folder` is for its own files.

    `resources`: the needs of each trial, in the words of that launcher. Errors: Refused where its package
    is missing, or no cluster is found.
    """
    module, package = LAUNCHERS[name]
    try:
        made = importlib.import_module(f"experiments.sweep.launchers.{module}")
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise Refused(f"--launcher={name} needs the package {package}; pip install {package}.") from None
    try:
        return made.launcher(jobs, folder, **resources)
    except TypeError as error:
        raise Refused(
            f"resources={dict(resources)!r} do not suit --launcher={name}: {error}; see its module."
        ) from None
    except (RuntimeError, ConnectionError) as error:
        said = str(error).strip().split("\n")[0].rstrip(".?")
        raise Refused(f"--launcher={name} finds no cluster from here ({said}); use --launcher=local.") from None
