"""Sweeps: many runs from one file, resumable, checked before anything runs, and a table of their results."""

import functools
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from experiments.settings import overrides
from experiments.settings.errors import Refused
from experiments.sweep import launchers, pool, table, trials
from experiments.sweep.trials import Trial, load

__all__ = ["Trial", "load", "run", "run_trials"]


def run(
    sweep: Mapping[str, Any],
    workdir: pathlib.Path,
    *,
    changes: Sequence[overrides.Override] = (),
    shrink: bool = False,
    jobs: int = 1,
    launcher: str = "local",
    command: str = "",
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Runs a sweep (see `experiments.sweep.trials`) in `workdir` and returns the rows of its table.

    Args:
      changes: overrides of the command line, which have the last word in every trial.
      shrink: the smoke form of every trial.
      jobs: trials at a time.
      launcher: a name in `launchers.LAUNCHERS`.

    Errors: ConfigError with all problems of all trials before anything runs; KeyboardInterrupt once every trial has
    saved, on SIGINT or SIGTERM.
    """
    if jobs < 1:
        raise Refused(f"--jobs={jobs} must be at least 1, e.g. --jobs=2.")

    named = sweep["search"].get("space", ()) if "search" in sweep else ()

    def go(chosen: Sequence[Mapping[str, Any]], read: Collection[str] = ()) -> list[dict[str, Any]]:
        made = trials.resolve(sweep["base"], chosen, changes, shrink=shrink, named=named, read=read, workdir=workdir)
        return run_trials(
            made, workdir, jobs=jobs, launcher=launcher, resources=sweep.get("resources", {}), command=command,
            quiet=quiet,
        )  # fmt: skip

    if "search" in sweep:
        from experiments.sweep import search

        corners = trials.resolve(sweep["base"], search.corners(sweep), changes, shrink=shrink, workdir=workdir)
        trials.check(trials.placed(corners, workdir), workdir)
        read = trials.read_by([trial.config for trial in corners])
        found = search.run(sweep, workdir, functools.partial(go, read=read))
    else:
        found = go(trials.points(sweep))
    table.write(found, workdir)
    return found


def run_trials(
    made: Sequence[Trial],
    workdir: pathlib.Path,
    *,
    jobs: int = 1,
    launcher: str = "local",
    resources: Mapping[str, Any] | None = None,
    command: str = "",
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Checks every one of the trials, runs them all and returns their rows; as for `run`."""
    made = trials.placed(made, workdir)
    work = trials.check(made, workdir)
    place = launchers.make(launcher, jobs, workdir / "jobs", resources or {})
    try:
        failed = pool.run(made, workdir, jobs=jobs, launcher=place, work=work, command=command, quiet=quiet)
    finally:
        place.close()
    return table.rows(made, workdir, failed)
