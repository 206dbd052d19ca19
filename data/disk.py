"""The one place through which this room writes: files whole or not at all, through no link at their last name.

A cache is shared by runs and processes, and may lie where others write, too. What goes wrong is the OSError of the
operating system, which `data.cache` puts into words. (`experiments/workdir/disk.py` does the same for workdirs.)
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import BinaryIO


def create(path: str | os.PathLike) -> BinaryIO:
    """A file, new or emptied, open to write; OSError where a link stands at `path`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file that takes the place of what stands at `path` when the context ends without an error, else leaves it."""
    path = pathlib.Path(path)
    private = path.with_name(f".{path.name}.tmp-{secrets.token_hex(6)}")
    try:
        with create(private) as file:
            yield file
        os.replace(private, path)
    finally:
        with contextlib.suppress(OSError):
            private.unlink(missing_ok=True)


def grown(path: str | os.PathLike, size: int) -> BinaryIO:
    """A file cut to its first `size` bytes and open to be written on from there; OSError where a link stands there."""
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags, 0o666), "wb")
    file.truncate(size)
    file.seek(size)
    return file


def hold(path: str | os.PathLike) -> BinaryIO | None:
    """A file that this process alone holds until it is closed, or None where another one holds it."""
    file = grown(path, 0)
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):  # Not one that its holder has just removed.
            return file
    file.close()
    return None


def remove(path: str | os.PathLike) -> None:
    """Removes a file, if there is one."""
    pathlib.Path(path).unlink(missing_ok=True)


def new_folder(path: str | os.PathLike) -> pathlib.Path:
    """A folder that was not there before, and those above it. FileExistsError where anything stands at `path`."""
    path = pathlib.Path(path)
    path.mkdir(parents=True)
    return path


def folder(path: str | os.PathLike) -> pathlib.Path:
    """The folder at `path`, made with those above it where there is none."""
    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def own_folder(path: str | os.PathLike) -> pathlib.Path:
    """As `folder`; FileExistsError where a link stands at `path`."""
    if os.path.islink(path):
        raise FileExistsError(errno.EEXIST, "a link stands there", os.fspath(path))
    return folder(path)


def remove_empty(path: str | os.PathLike) -> None:
    """Removes a folder, if it is there and holds nothing."""
    with contextlib.suppress(OSError):
        os.rmdir(path)


def rename(path: str | os.PathLike, to: str | os.PathLike) -> None:
    """Renames a file or a folder; OSError where a folder that is not empty stands at `to`."""
    os.rename(path, to)


def remove_folder(path: str | os.PathLike) -> None:
    """Removes a folder with all in it, as far as that can be done; no link is followed."""
    shutil.rmtree(path, ignore_errors=True)
