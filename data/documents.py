"""Requests to sources, and their results: documents of bytes or of symbols."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from data import cache

# A document: its bytes, and its split ("train", "valid", or None to let the hash of the bytes decide).
Document = tuple[bytes, str | None]
# A file that was not read: why ("a link to a folder"), and its name.
LeftOut = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Request:
    """A request to a source; each source reads the fields that apply to it.

    `size` is a number of tokens (0: the source's own default), `max_files` a number of files (0: all), `columns` what
    is read of records (see `data.tables`).
    """

    path: str = ""
    name: str = ""
    vocab_size: int = 0
    max_files: int = 0
    size: int = 0
    seed: int = 0
    columns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Texts:
    """Documents of bytes.

    Args:
      fingerprint: changes when the documents may have changed.
      files: how many files hold them.
      documents: `documents(left_out)` reads them one by one and appends to the list `left_out` each file that turns out
        not to be text when it is opened.
      asked: the argument that names them as it was written, for messages: "path='corpus.txt'".
      left_out: files that were skipped by their names, links and kinds.
      size: bytes of the files on disk, as they are listed; 0: not known.
      form: "text", or "chat": canonical conversations (data.conversations), which are never cut in two.
    """

    fingerprint: str
    files: int
    documents: Callable[[list[LeftOut]], Iterator[Document]]
    asked: str = ""
    left_out: tuple[LeftOut, ...] = ()
    size: int = 0
    form: str = "text"


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Documents of symbols 0..num_symbols-1: a `[D, n]` array or a list of arrays, with their splits and labels.

    `valid` (`[D]` bool) decides the splits; None lets the hash of each document decide. `best_loss` is the entropy of
    the law that made them, in nats per target token (eos included), where that law is known.
    """

    documents: np.ndarray | Sequence[np.ndarray]
    num_symbols: int
    labels: np.ndarray | None = None
    valid: np.ndarray | None = None
    best_loss: float | None = None


def stat_fingerprint(kind: str, files: Iterable[tuple[str, os.stat_result]]) -> str:
    """Digest of names, sizes and times of files: it changes when any of them is written. The files are not read."""
    return cache.digest(kind, [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in files])
