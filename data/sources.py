"""Where documents come from: a table of names, each a plain function from a `Request` to documents.

A source gives either `Texts` (bytes that a tokenizer still has to cut) or `Sequences` (symbols with a vocabulary of
their own). A new source is one function and one line in `SOURCES`.
"""

import dataclasses
import glob
import gzip
import hashlib
import json
import os
import pathlib
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from data import cache

# A document: its bytes, and its split ("train", "valid", or None to let the hash of the bytes decide).
Document = tuple[bytes, str | None]

TEXT_SUFFIXES = (".txt", ".md", ".py", ".jsonl")
_TEST_FOLDERS = {"test", "tests", "idle_test"}
_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}
_RANDOM_LENGTH = 1022  # symbols per document of random tokens: 1024 with bos and eos
_RANDOM_SIZE = 1 << 22


@dataclasses.dataclass(frozen=True)
class Request:
    """What a source may be asked for; each source reads the fields that mean something to it.

    `size` is a number of tokens (0: the source's own default), `max_files` a number of files (0: all).
    """

    path: str = ""
    name: str = ""
    vocab_size: int = 0
    max_files: int = 0
    size: int = 0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Texts:
    """Documents of bytes. `fingerprint` changes when the documents may have; `documents()` reads them one by one.

    `asked` is what a person wrote to name them, for messages: "path='corpus.txt'".
    """

    fingerprint: str
    files: int
    documents: Callable[[], Iterator[Document]]
    asked: str = ""


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Documents of symbols 0..num_symbols-1: a `[D, n]` array or a list of arrays, and what is known of each.

    `valid` (`[D]` bool) decides the splits; None lets the hash of each document decide. `best_loss` is the entropy of
    the law that made them, in nats per target token (eos included), where that law is known.
    """

    documents: np.ndarray | Sequence[np.ndarray]
    num_symbols: int
    labels: np.ndarray | None = None
    valid: np.ndarray | None = None
    best_loss: float | None = None


def stdlib(request: Request) -> Texts:
    """The Python standard library's own source: every .py file that is UTF-8, without what is installed beside it.

    `name="all"` keeps the library's test folders, which are left out otherwise. `max_files` takes a fixed sample.
    """
    if request.name not in ("", "all"):
        raise ValueError(f"name={request.name!r} means nothing to source='stdlib'; use '' or 'all' (with its tests).")
    root = pathlib.Path(request.path or sysconfig.get_paths()["stdlib"]).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"path={request.path!r} is no folder for source='stdlib'; use source='text' or path=''."
        )
    skip = _NOT_THE_LIBRARY | (set() if request.name == "all" else _TEST_FOLDERS)
    files = [(n, s) for n, s in _walk(root, skip) if n.endswith(".py")]
    if request.max_files:
        files = sorted(files, key=lambda f: hashlib.sha256(f[0].encode()).digest())[: request.max_files]
    if not files:
        raise FileNotFoundError(f"source='stdlib' has no .py files under {str(root)!r}; use source='text' and a path.")

    def documents() -> Iterator[Document]:
        for name, _ in files:
            try:
                content = (root / name).read_bytes()
                content.decode("utf-8")
            except (OSError, UnicodeDecodeError):
                continue  # some files of the library test other encodings
            yield content, None

    return Texts(stat_fingerprint("stdlib", files), len(files), documents)


def text(request: Request) -> Texts:
    """Local files: one file, a folder (.txt .md .py .jsonl, each also .gz, at any depth), or a glob pattern.

    A file is one document; a .jsonl file is one document per line, in its field `text`. A file named by itself or by a
    pattern is read as text whatever its suffix.
    """
    if not request.path:
        raise ValueError("path='' is missing for source='text'; use a file, a folder or a pattern like 'a/*.txt'.")
    path = pathlib.Path(request.path).expanduser()
    if path.is_dir():
        files = [(n, s) for n, s in _walk(path, _NOT_THE_LIBRARY) if n.removesuffix(".gz").endswith(TEXT_SUFFIXES)]
        found = [(str(path / n), s) for n, s in files]
    elif path.exists():
        found = [(str(path), path.stat())]
    else:
        matches = sorted(glob.glob(str(path), recursive=True))
        found = [(m, os.stat(m)) for m in matches if os.path.isfile(m)]
    if request.max_files:
        found = found[: request.max_files]
    if not found:
        what = "has no .txt, .md, .py or .jsonl files" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"path={request.path!r} {what}; use a file, a folder or a pattern like 'a/*.txt'.")
    read = lambda: _read_all(name for name, _ in found)  # noqa: E731
    return Texts(stat_fingerprint("text", found), len(found), read, asked=f"path={request.path!r}")


def digits(request: Request) -> Sequences:
    """scikit-learn's 1,797 images of handwritten digits, 8 by 8, row by row: 64 grey levels 0..16, with labels 0..9."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    return Sequences(images.astype(np.uint8), 17, labels=labels.astype(np.int32))


def random(request: Request) -> Sequences:
    """Uniformly random symbols in documents of 1,024 tokens, for benchmarks; `vocab_size` counts the specials."""
    if request.vocab_size < 5:
        raise ValueError(
            f"vocab_size={request.vocab_size} is too small for source='random'; use 5 or more, such as 256."
        )
    symbols = request.vocab_size - 3
    count = max(2, (request.size or _RANDOM_SIZE) // (_RANDOM_LENGTH + 2))
    dtype = np.uint8 if symbols <= 1 << 8 else np.uint16 if symbols <= 1 << 16 else np.uint32
    documents = np.random.default_rng(request.seed).integers(0, symbols, (count, _RANDOM_LENGTH), dtype)
    # Given the document so far, a symbol costs log(symbols) nats and the eos, whose place is fixed, nothing.
    return Sequences(documents, symbols, best_loss=float(np.log(symbols)) * _RANDOM_LENGTH / (_RANDOM_LENGTH + 1))


def tfds(request: Request) -> Texts:
    """A prepared TensorFlow Datasets text set, by name (see `data.tfds_source`)."""
    from data import tfds_source

    return tfds_source.texts(request)


SOURCES: dict[str, Callable[[Request], Texts | Sequences]] = {
    "stdlib": stdlib,
    "text": text,
    "tfds": tfds,
    "digits": digits,
    "random": random,
}


def stat_fingerprint(kind: str, files: Iterable[tuple[str, os.stat_result]]) -> str:
    """Digest of names, sizes and times of files: changes when any of them was written, without reading them."""
    return cache.digest(kind, [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in files])


def _walk(root: pathlib.Path, skip: set[str]) -> list[tuple[str, os.stat_result]]:
    """(path relative to `root` with forward slashes, stat) of all files, sorted, without hidden or skipped folders."""
    found = []
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError:
            if not folder:
                raise
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in skip:
                    pending.append(f"{folder}{entry.name}/")
            elif entry.is_file():
                found.append((folder + entry.name, entry.stat()))
    return sorted(found, key=lambda f: f[0])


def _read_all(paths: Iterable[str]) -> Iterator[Document]:
    """The documents of each file in turn. Errors: ValueError naming the file (and line) that cannot be read."""
    for path in paths:
        opener = gzip.open if path.endswith(".gz") else open
        try:
            with opener(path, "rb") as f:
                if path.removesuffix(".gz").endswith(".jsonl"):
                    for number, line in enumerate(f, 1):
                        if line.strip():
                            yield _jsonl_text(line, f"{path}:{number}"), None
                else:
                    yield f.read(), None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"path={path!r} is not a whole gzip file ({error}); compress it again.") from None


def _jsonl_text(line: bytes, where: str) -> bytes:
    try:
        value = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        value = None
    if not isinstance(value, str):
        raise ValueError(f'path={where!r} is not an object with a string in "text"; use lines like {{"text": "..."}}.')
    return value.encode("utf-8", "replace")
