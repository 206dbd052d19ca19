"""What flags name: folders of this machine (the workdir, the runs that are compared), and prompts."""

import contextlib
import errno
import glob
import os
import pathlib
import re
import stat
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


def prompts(flags: Any) -> list[str]:
    """The prompts that the command line names; bytes that are not UTF-8 stay what they are."""
    if (flags.prompt is None) == (flags.prompts is None):
        raise Refused('generate needs either --prompt="text" or --prompts=FILE with one prompt a line.')
    if flags.output and flags.prompt is not None:
        raise Refused(f"--output={flags.output} goes with --prompts=FILE; with --prompt the text is printed.")
    if flags.prompt == "":
        raise Refused('--prompt="" is empty; give the text to continue, e.g. --prompt="def main(".')
    if flags.prompt is not None:
        return [flags.prompt]
    try:
        text = _read(pathlib.Path(flags.prompts).expanduser()).decode("utf-8", "surrogateescape")
    except (OSError, RuntimeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise Refused(
            f"--prompts={flags.prompts} cannot be read: {reason}; give a file with one prompt a line."
        ) from None
    lines = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    if not lines:
        raise Refused(f"--prompts={flags.prompts} is empty; give a file with one prompt a line.")
    return lines


def _read(path: pathlib.Path) -> bytes:
    """All bytes of a file, or of a pipe that another program writes into; OSError where nobody does."""
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        first = b""
        if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            with contextlib.suppress(BlockingIOError):  # Somebody will write.
                first = os.read(file.fileno(), 1)
                if not first:
                    raise OSError(errno.EPIPE, "it is a pipe that nobody writes into")
            os.set_blocking(file.fileno(), True)
        return first + file.read()
