"""A folder of results keyed by hash: written whole or not at all, checked when opened, safe among processes.

A result is built in a private folder beside its final place and moved there by one rename. Two processes that build
the same result waste time but nothing else: the first rename wins, and the second process uses that result. Every 8
MiB of a result have a CRC-32, and so has the meta data. All checksums are verified, on all cores, whenever the result
is opened.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import secrets
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from data import disk

_META = "meta.json"
_BLOCK = 8 << 20  # bytes that share a checksum
_STALE_SECONDS = 86400
_BEGUN = ".begun"
_FORGOTTEN_SECONDS = 14 * 86400  # a build that was begun so long ago is not taken up again
_CANNOT_WRITE = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "ENOTDIR", "EEXIST", "EFBIG", "ENOENT")
    if hasattr(errno, name)
}


def digest(*parts: object) -> str:
    """Hex SHA-256 of the parts (any JSON values); the borders between parts count, too."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cached(
    folder: pathlib.Path, build: Callable[[pathlib.Path], dict[str, Any]], *, resumable: bool = False
) -> dict[str, Any]:
    """The meta data of the result in `folder`, built first when it is missing or damaged.

    `build(private_folder)` writes the files of the result and returns its meta data (JSON). A file that is missing,
    truncated or altered makes the whole result count as damaged, and it is built again. `resumable`: where the folder
    of a build that was killed is left, `build` is given that one, with what it holds.

    Errors: OSError with one sentence when the folder cannot be written.
    """
    meta = _verified(folder)
    if meta is not None:
        return meta
    with begun(folder) if resumable else private(folder) as made:
        meta = build(made)
        files = {p.name: _fingerprint(p) for p in sorted(made.iterdir())}
        with disk.create(made / _META) as file:
            file.write(json.dumps({"files": files, "meta": meta, "digest": digest(files, meta)}).encode("ascii"))
        _publish(made, folder)
    return json.loads(json.dumps(meta))  # as a later call will read it


def found(folder: pathlib.Path) -> bool:
    """Whether `folder` holds an undamaged result."""
    return _verified(folder) is not None


@contextlib.contextmanager
def private(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder beside `folder` for files that only this process needs; it is deleted when the context ends.

    Errors: OSError with one sentence when it cannot be written.
    """
    made = folder.with_name(f"{folder.name}.tmp-{secrets.token_hex(6)}")
    try:
        with _writing(folder):
            disk.new_folder(made)
            _sweep(folder.parent)
            yield made
    finally:
        disk.remove_folder(made)


@contextlib.contextmanager
def begun(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """As `private`, a folder that outlives this process, and that the next one is given; one process at a time has it.

    A process that finds it taken is given a `private` one. It is left when the context ends by an error, if it holds
    anything.
    """
    made, lock = folder.with_name(f"{folder.name}{_BEGUN}"), folder.with_name(f"{folder.name}{_BEGUN}.lock")
    with _writing(folder):
        disk.folder(made.parent)
        held = disk.hold(lock)
    if held is None:
        with private(folder) as elsewhere:
            yield elsewhere
        return
    with held, _writing(folder):
        _sweep(folder.parent)
        disk.own_folder(made)
        try:
            yield made
            disk.remove_folder(made)  # Where another process has published the result before.
        finally:
            disk.remove_empty(made)
            disk.remove(lock)


@contextlib.contextmanager
def _writing(folder: pathlib.Path):
    """Says in one sentence that the cache cannot be written; other errors (a source that cannot be read) pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE or _is_elsewhere(error.filename, folder):
            raise
        raise type(error)(
            f"cache_dir={str(folder.parent.parent)!r} cannot be written ({error.strerror}); "
            "use a folder that you may write to, on a disk with room, such as '/tmp/tessera'."
        ) from error


def _is_elsewhere(filename: str | None, folder: pathlib.Path) -> bool:
    """Whether the file that failed is neither in the cache nor one of the folders above it."""
    if filename is None:
        return False
    path = pathlib.Path(filename)
    return not (path.is_relative_to(folder.parent) or folder.is_relative_to(path))


def _fingerprint(path: pathlib.Path) -> list[int]:
    """[size, CRC-32 of the first 8 MiB, of the next, ...] of a file, computed on all cores."""
    with path.open("rb") as f:
        size = os.fstat(f.fileno()).st_size
        block = lambda begin: zlib.crc32(os.pread(f.fileno(), _BLOCK, begin))  # noqa: E731
        begins = range(0, size, _BLOCK)
        if len(begins) < 2:
            return [size, *map(block, begins)]
        with ThreadPoolExecutor(min(len(begins), os.cpu_count() or 1)) as threads:
            return [size, *threads.map(block, begins)]


def _verified(folder: pathlib.Path) -> dict[str, Any] | None:
    """The meta data when every file of the result and the meta data itself are as they were written, else None."""
    try:
        record = json.loads((folder / _META).read_text())
        if record["digest"] != digest(record["files"], record["meta"]):
            return None
        for name, expected in record["files"].items():
            if _fingerprint(folder / name) != expected:
                return None
        return record["meta"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _publish(private: pathlib.Path, folder: pathlib.Path) -> None:
    """Moves a finished result to its place; a good result already there is kept, a damaged one is replaced."""
    for _ in range(10):
        try:
            disk.rename(private, folder)
            return
        except OSError:
            if not folder.exists():
                raise
        if _verified(folder) is not None:
            return
        aside = folder.with_name(f"{folder.name}.tmp-{secrets.token_hex(6)}")
        with contextlib.suppress(FileNotFoundError):  # another process may have moved it aside first
            disk.rename(folder, aside)
            disk.remove_folder(aside)
    raise OSError(f"{str(folder)!r} could not be replaced in 10 attempts; remove it and start again.")


def _sweep(parent: pathlib.Path) -> None:
    """Removes the private folders of builds that were killed more than a day ago."""
    for pattern, limit in (("*.tmp-*", _STALE_SECONDS), (f"*{_BEGUN}", _FORGOTTEN_SECONDS)):
        for leftover in parent.glob(pattern):
            with contextlib.suppress(OSError):
                newest = max(p.stat().st_mtime for p in (leftover, *leftover.iterdir()))  # a long build writes on
                if time.time() - newest > limit:
                    disk.remove_folder(leftover)
