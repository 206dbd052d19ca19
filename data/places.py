"""Where files lie: on a disk of this machine, or in a store (gs://, s3://, ...) that fsspec reads."""

import hashlib
import io
import os
import re
from typing import Any, BinaryIO, NamedTuple

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hdfs": "pyarrow"}


class Stat(NamedTuple):
    """What is told of a file in a store, under the names of `os.stat_result`."""

    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int


def remote(path: str) -> bool:
    """Whether `path` names a store, as "gs://bucket/folder"."""
    return bool(_SCHEME.match(path))


def opened(path: str) -> BinaryIO:
    """The file at `path`, to be read. Errors: OSError, and ValueError as in `_store`."""
    if not remote(path):
        return open(path, "rb")
    store, inner = _store(path)
    return io.BufferedReader(_Raw(store.open(inner, "rb")), 1 << 20)


class _Raw(io.RawIOBase):
    """What a store opens, as a raw file of Python."""

    def __init__(self, file: Any):
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


def stat(path: str) -> os.stat_result | Stat:
    """Size and times of the file at `path`."""
    if not remote(path):
        return os.stat(path)
    store, inner = _store(path)
    return _told(store.info(inner))


def found(path: str) -> list[tuple[str, Stat]]:
    """All files of a store that `path` names: a file, those of a folder at any depth, or of a pattern; sorted by name.

    Errors: ValueError with one sentence where the store cannot be read.
    """
    store, inner = _store(path)
    scheme = _SCHEME.match(path)[0]
    try:
        if any(letter in inner for letter in "*?["):
            listed = store.glob(inner, detail=True)
        elif store.isdir(inner):
            listed = store.find(inner, detail=True)
        else:
            listed = {inner: store.info(inner)} if store.exists(inner) else {}
    except Exception as error:  # every store has errors of its own
        raise ValueError(
            f"path={path!r} cannot be read ({' '.join(str(error).split())}); check name and rights."
        ) from None
    files = [(name, info) for name, info in listed.items() if info.get("type") == "file"]
    return sorted((f"{scheme}{name.lstrip('/')}", _told(info)) for name, info in files)


def _told(info: dict[str, Any]) -> Stat:
    """Size and a number that changes when the file is written: of its time, tag or generation."""
    marks = [str(info.get(name, "")) for name in ("ETag", "etag", "generation", "mtime", "LastModified")]
    mark = int.from_bytes(hashlib.sha256("|".join(marks).encode()).digest()[:7], "big")
    return Stat(int(info.get("size") or 0), mark, 0)


def _store(path: str) -> tuple[Any, str]:
    """The store that `path` names, and the name within it. Errors: ValueError where its package is not installed."""
    scheme = _SCHEME.match(path)[1]
    try:
        import fsspec

        store, inner = fsspec.core.url_to_fs(path)
    except ImportError:
        package = _PACKAGES.get(scheme, "the package of fsspec for it")
        raise ValueError(
            f"path={path!r} needs {package}; pip install {package}, or copy the files to a disk."
        ) from None
    except ValueError:
        raise ValueError(
            f"path={path!r} names a store that is unknown ({scheme}); use gs://, s3:// or a folder."
        ) from None
    return store, inner
