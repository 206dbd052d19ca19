"""Folders of this machine that flags name: the workdir, and the runs that are compared."""

import glob
import os
import pathlib
import re
from typing import Any

from experiments import workdir as files
from experiments.settings.errors import Refused


def workdir(flags: Any) -> pathlib.Path:
    """The folder that --workdir names."""
    if not flags.workdir:
        raise Refused("--workdir is missing; try --workdir=runs/first.")
    return local("workdir", flags.workdir)


def runs(flags: Any) -> list[pathlib.Path]:
    """The workdirs that --runs names."""
    runs = [run for name in (flags.runs or "").split(",") if name.strip() for run in matching(name.strip())]
    if flags.runs is not None and not runs:
        raise Refused(f"--runs={flags.runs} names no workdir; try --runs=runs/a,runs/b or --runs='runs/*'.")
    return runs


def matching(name: str) -> list[pathlib.Path]:
    """The workdir `name`, or those that it matches as a pattern, in the order of their names; files are left out."""
    path = local("runs", name)
    if path.exists() or not glob.has_magic(name):
        return [path]
    return [
        pathlib.Path(found)
        for found in sorted(glob.glob(_pattern(path)))
        if (pathlib.Path(found) / files.CONFIG).is_file()
    ]


def _pattern(path: pathlib.Path) -> str:
    """The pattern of a path; its folders that are there are named and not matched, as they may hold brackets."""
    there = next((parent for parent in path.parents if parent.exists()), pathlib.Path())
    return os.path.join(glob.escape(str(there)), str(path.relative_to(there)))


def local(flag: str, name: str) -> pathlib.Path:
    """The folder that the flag `flag` names on a disk of this machine."""
    if scheme := re.match(r"([a-z][a-z0-9+.-]+):/", name):
        raise Refused(
            f"--{flag}={name} is in a store ({scheme[1]}:); runs are written to disks: mount it (gcsfuse, s3fs, NFS) "
            f"and give the folder, e.g. --{flag}=/mnt/runs/first."
        )
    try:
        return pathlib.Path(name).expanduser()
    except RuntimeError:
        raise Refused(f"--{flag}={name} names no home folder; try --{flag}=runs/first.") from None
