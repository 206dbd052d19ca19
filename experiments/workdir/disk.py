"""The one place through which the files of a workdir are opened, written, listed, moved and removed.

A workdir may come from another person, so it is not trusted:

- Symbolic links below it are not followed. Nothing outside the workdir is read, written, cut or removed.
- Pipes and devices are refused without waiting for them.
- A file with several names (hard links) is copied before it is changed.

Failures are one sentence (WorkdirError).
"""

import contextlib
import errno
import json
import os
import pathlib
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable
from typing import Any, BinaryIO

DEPTH = 100  # Levels of a .json file; deeper ones are nobody's, and would end in a RecursionError somewhere.

_DIGITS = 308  # Of the largest whole number that is surely a float, too.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_LINK = "it is a link, and a run follows none in its folder; put the file itself there, or use a new workdir"


class WorkdirError(OSError):
    """A file of the workdir could not be written or read; the message is one sentence for the user."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()


def explain(error: OSError, path: str | os.PathLike) -> WorkdirError:
    """Turns what the operating system says about `path` into one sentence with a way out."""
    if isinstance(error, WorkdirError):
        return error
    path = os.fspath(path)
    reasons = {
        errno.ENOSPC: "the disk is full; free some space, then start the same command again to resume",
        errno.EDQUOT: "the disk quota is used up; free some space, then start the same command again to resume",
        errno.EFBIG: "the file-size limit is reached; raise it (ulimit -f), then start the same command to resume",
        errno.EROFS: "the file system is read-only; use a workdir that can be written, e.g. --workdir=runs/first",
        errno.EACCES: "permission is denied; use a workdir that you own, e.g. --workdir=runs/first",
        errno.EPERM: "permission is denied; use a workdir that you own, e.g. --workdir=runs/first",
        errno.ENOTDIR: "part of the path is a file, not a folder; use a new folder, e.g. --workdir=runs/first",
        errno.EEXIST: "part of the path is a file, not a folder; use a new folder, e.g. --workdir=runs/first",
        errno.EISDIR: "a folder stands where the file should be; move it away or use a new workdir",
        errno.ELOOP: _LINK,
        errno.EMLINK: _LINK,  # What FreeBSD says of a link that is not followed.
        errno.ENODEV: "it is no plain file (a pipe, a device or a folder); move it away or use a new workdir",
        errno.ENXIO: "it is no plain file (a pipe, a device or a folder); move it away or use a new workdir",
    }
    reason = reasons.get(error.errno, f"{(error.strerror or str(error)).lower()}; check the path given as --workdir")
    return WorkdirError(error.errno or errno.EIO, f"{path!r} cannot be used: {reason}.")


@contextlib.contextmanager
def explained(path: str | os.PathLike):
    """Context in which an OSError becomes a WorkdirError about `path`; FileNotFoundError and our own errors pass."""
    try:
        yield
    except (FileNotFoundError, WorkdirError):
        raise
    except OSError as error:
        raise explain(error, path) from error


def is_folder(path: str | os.PathLike) -> bool:
    """Whether a folder, and not a link to one, stands at `path`."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return False


def is_file(path: str | os.PathLike) -> bool:
    """Whether a plain file, and not a link to one, stands at `path`."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return False


def _open(path: str | os.PathLike, flags: int) -> int:
    """A descriptor of a plain file; OSError for a link (ELOOP) and for what is no file (ENODEV)."""
    descriptor = os.open(path, flags | _NO_LINK | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), os.fspath(path))
    return descriptor


def open_to_read(path: str | os.PathLike) -> BinaryIO:
    """A plain file, open to read. FileNotFoundError, or WorkdirError with one sentence."""
    with explained(path):
        return os.fdopen(_open(path, os.O_RDONLY), "rb")


def read_bytes(path: str | os.PathLike) -> bytes | None:
    """All bytes of a plain file; None where there is none."""
    try:
        with open_to_read(path) as file, explained(path):
            return file.read()
    except FileNotFoundError:
        return None


def read_object(path: str | os.PathLike) -> dict[str, Any] | None:
    """The object in a .json file, None where there is no file. ValueError in one sentence for anything else."""
    data = read_bytes(path)
    if data is None:
        return None
    try:
        value = parsed(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or deeper(value):
        raise ValueError(f"{os.fspath(path)!r} does not hold a JSON object; delete it or restore it from a copy.")
    return value


def parsed(data: bytes) -> Any:
    """What JSON says; ValueError or RecursionError where it is none. A whole number beyond every float is infinity."""
    return json.loads(data, parse_int=lambda text: int(text) if len(text) <= _DIGITS else float(text))


def deeper(value: Any, levels: int = DEPTH) -> bool:
    """Whether lists and objects nest deeper than `levels`; it does not recurse."""
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for item in layer
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, dict | list)
        ]
        if not layer:
            return False
    return True


def open_to_append(path: str | os.PathLike) -> int:
    """A descriptor that reads a file and adds to its end; the file is made where there is none, its folder too."""
    path = pathlib.Path(path)
    with explained(path):
        folder(path.parent)
        descriptor = _open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    if os.fstat(descriptor).st_nlink == 1:
        return descriptor
    os.close(descriptor)  # Another name has the same bytes (a copy by `cp -al`): what follows is written to ours alone.
    write_file(path, read_bytes(path) or b"")
    with explained(path):
        return _open(path, os.O_RDWR | os.O_APPEND)


def open_lock(path: str | os.PathLike) -> BinaryIO:
    """A descriptor of the lock file, created if it is missing; its content is not changed."""
    with explained(path):
        return os.fdopen(_open(path, os.O_RDWR | os.O_CREAT), "r+b")


def write_file(path: str | os.PathLike, data: bytes | Iterable[bytes]) -> None:
    """Writes a whole file or nothing: a reader, or a kill at any instant, sees the old file or the new one.

    `data` may come in parts. A link at `path` makes way for the file; what it pointed to stays as it was.
    """
    path = pathlib.Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        folder(path.parent)
        with os.fdopen(_open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            for piece in [data] if isinstance(data, bytes) else data:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise explain(error, path) from error


def cut(path: str | os.PathLike, kept: bytes) -> None:
    """Replaces a file's content by `kept`. If `kept` is a prefix of the file, the file is truncated in place."""
    try:
        descriptor = _open(path, os.O_RDWR)
    except OSError as error:
        raise explain(error, path) from error
    with os.fdopen(descriptor, "r+b") as file, explained(path):
        if os.fstat(descriptor).st_nlink == 1 and file.read(len(kept)) == kept:
            file.truncate(len(kept))
            return
    write_file(path, kept)


def folder(path: str | os.PathLike) -> pathlib.Path:
    """The folder at `path`, made with those above it where there is none."""
    path = pathlib.Path(path)
    with explained(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # A folder above it went away.
            raise explain(error, path) from error
    return path


def own_folder(path: str | os.PathLike) -> pathlib.Path:
    """A folder inside a workdir, made where there is none. WorkdirError where a link or a file stands there."""
    path = pathlib.Path(path)
    if path.is_symlink():
        raise explain(OSError(errno.ELOOP, os.strerror(errno.ELOOP)), path)
    return folder(path)


def names(path: str | os.PathLike) -> list[str]:
    """The names in a folder, sorted; none where it is missing, a link or a file."""
    if not is_folder(path):
        return []
    with explained(path):
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []


def files_below(path: str | os.PathLike) -> list[str]:
    """The plain files below a folder, as sorted relative paths. ValueError names what is no file and no folder."""
    found, waiting = [], [""]
    while waiting:
        inside = waiting.pop()
        with os.scandir(os.path.join(path, inside)) as entries:
            for entry in entries:
                name = os.path.join(inside, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
                elif entry.is_file(follow_symlinks=False):
                    found.append(name)
                else:
                    raise ValueError(f"{name} is no plain file")
    return sorted(found)


def move_aside(path: pathlib.Path, label: str, name: str | None = None) -> pathlib.Path:
    """Renames what stands at `path` to `LABEL-NAME-TIME` beside it, over nothing; returns the new path."""
    middle = path.name if name is None else name
    base = "-".join(filter(None, (label, middle, time.strftime("%Y%m%dT%H%M%S"))))
    for number in range(1000):
        aside = path.with_name(base if not number else f"{base}-{number}")
        if not os.path.lexists(aside):
            rename(path, aside)
            return aside
    raise WorkdirError(errno.EEXIST, f"{os.fspath(path)!r} cannot be moved aside: too many {base}-... stand there.")


def rename(path: str | os.PathLike, to: str | os.PathLike) -> None:
    """Renames what stands at `path`, a link itself and not what it points to."""
    with explained(path):
        os.rename(path, to)


def remove(path: str | os.PathLike) -> None:
    """Removes a file, a link (not what it points to) or a folder with all in it; nothing there is no error."""
    with explained(path), contextlib.suppress(FileNotFoundError):
        if is_folder(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def temporary_folder(place: str | os.PathLike | None = None) -> tempfile.TemporaryDirectory:
    """A new folder in `place` (by default where temporary files lie), as a context at whose end it is removed."""
    return tempfile.TemporaryDirectory(prefix="tessera-", dir=place)


def link(path: str | os.PathLike, to: str | os.PathLike) -> None:
    """Makes `path`, where nothing stands, a link to `to`."""
    with explained(path):
        os.symlink(to, path)


def probe(path: str | os.PathLike) -> None:
    """Raises OSError where the folder at `path` takes no file of a few KiB; nothing is left behind."""
    with tempfile.TemporaryFile(dir=path) as file:  # Without a name, gone when it is closed.
        file.write(bytes(4096))


def keep(path: str | os.PathLike) -> None:
    """Makes the names in a folder outlast a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
