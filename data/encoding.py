"""Documents to ids on disk, a few MiB at a time: what a killed process wrote is kept and gone on from.

A split is NAME.tokens.bin, the ids end to end; NAME.starts.npy, where each document begins; and of conversations
NAME.scored.bin and NAME.kinds.bin (data.roles), a byte a token each. Beside them, until all is done, stand the lengths
of documents and a journal with a line a chunk: the sizes of the files after it and the CRC-32 of what it added, so that
only whole chunks count.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from data import conversations, disk, progress

_CHUNK_BYTES = 4 << 20
_JOURNAL = "journal.jsonl"

# Of each document its ids, whole, which of them are scored (None: all), and their kinds (None: all are output).
Encoded = list[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]]


@dataclasses.dataclass(frozen=True)
class Encode:
    """How documents become ids: `of` for some of them at a time. `masked`: whether it says what is scored."""

    of: Callable[[Sequence[bytes]], Encoded]
    dtype: type
    masked: bool
    token_bytes: np.ndarray | None = None  # `[V]`, where the size of a document is that of its ids


def token_dtype(vocab_size: int) -> type:
    """The smallest unsigned type that holds every id."""
    return np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32


def texts(kind: Any) -> Encode:
    """`[bos] text [eos]`, by a tokenizer that uses all cores for a batch."""
    dtype = token_dtype(kind.vocab_size)

    def of(documents: Sequence[bytes]) -> Encoded:
        found: Encoded = []
        for ids in kind.encode_batch(list(documents)):
            whole = np.empty(len(ids) + 2, dtype)
            whole[0], whole[1:-1], whole[-1] = kind.bos, ids, kind.eos
            found.append((whole, None, None))
        return found

    return Encode(of, dtype, masked=False)


def talks(kind: Any, template: str) -> Encode:
    """Canonical conversations by a chat template (data.conversations); `template` "" is the tokenizer's own."""
    dtype = token_dtype(kind.vocab_size)

    def of(documents: Sequence[bytes]) -> Encoded:
        found = (conversations.encoded(document, kind, template) for document in documents)
        return [(ids.astype(dtype), scored, kinds) for ids, scored, kinds in found]

    return Encode(of, dtype, masked=True, token_bytes=kind.token_bytes)


def write(folder: pathlib.Path, made: Any, splits: Mapping[str, np.ndarray], encode: Encode) -> dict[str, dict]:
    """Encodes each split in its order into `folder`; returns documents, tokens and bytes of each.

    Args:
      folder: new, or with what an earlier call for the same documents left.
      made: a `data.tokenise.Divided`.
      splits: name -> indices of its documents.
    """
    begun = _begun(folder, made.hash)
    total = sum(int(made.size[which].sum()) for which in splits.values())
    done = sum(line["content"] for lines in begun.values() for line in lines)
    with (
        disk.grown(folder / _JOURNAL, _size(folder / _JOURNAL)) as journal,
        progress.shown("tokenising", total, done) as told,
    ):
        if not _size(folder / _JOURNAL):
            _say(journal, {"hash": made.hash})
        return {
            split: _split(folder, made, which, split, encode, begun.get(split, []), journal, told)
            for split, which in splits.items()
        } | _closed(folder, splits)


def _closed(folder: pathlib.Path, splits: Mapping[str, np.ndarray]) -> dict:
    """Takes away what stood there to go on from."""
    for name in (_JOURNAL, *(f"{split}.lengths.bin" for split in splits)):
        disk.remove(folder / name)
    return {}


def _split(
    folder: pathlib.Path, made: Any, which: np.ndarray, split: str, encode: Encode, begun: list[dict], journal: Any,
    told: Callable[[int], None],
) -> dict[str, int]:  # fmt: skip
    last = begun[-1] if begun else {"tokens": 0, "lengths": 0, "scored": 0, "kinds": 0, "documents": 0, "bytes": 0}
    names = ("tokens", "lengths", *(["scored", "kinds"] if encode.masked else []))
    size, first = last["bytes"], last["documents"]
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(disk.grown(folder / f"{split}.{name}.bin", last[name])) for name in names}
        for chunk, documents in _ahead(made, which[first:]):
            rows = encode.of(documents)
            ids = np.concatenate([row[0] for row in rows])
            added = {
                "tokens": memoryview(ids),
                "lengths": memoryview(np.array([len(row[0]) for row in rows], np.int64)),
            }
            if encode.masked:
                added["scored"] = memoryview(np.concatenate([row[1] for row in rows]).view(np.uint8))
                added["kinds"] = memoryview(np.concatenate([row[2] for row in rows]))
            content = sum(map(len, documents))
            size += content if encode.token_bytes is None else int(encode.token_bytes[ids].sum())
            first += len(chunk)
            crc = 0
            for name, data in added.items():
                files[name].write(data)  # tofile would hide that the disk is full.
                files[name].flush()
                crc = zlib.crc32(data, crc)
            line = {"split": split, "documents": first, "bytes": size, "content": content}
            line |= {name: files[name].tell() for name in names}
            _say(journal, {**line, "crc": _with_facts(crc, line)})
            told(content)
    taken = np.fromfile(folder / f"{split}.lengths.bin", np.int64)
    with disk.create(folder / f"{split}.starts.npy") as file:
        np.save(file, np.cumsum(taken) - taken)
    return {"documents": len(which), "tokens": int(taken.sum()), "bytes": size}


def _ahead(made: Any, which: np.ndarray) -> Iterator[tuple[np.ndarray, list[bytes]]]:
    """Chunks and their documents, the next one read from the disk while this one is encoded."""
    with ThreadPoolExecutor(1) as thread:
        waiting = None
        for chunk in chunks(made.size, which):
            coming = chunk, thread.submit(lambda chunk=chunk: list(made.texts(chunk)))
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting:
            yield waiting[0], waiting[1].result()


def chunks(size: np.ndarray, which: np.ndarray) -> Iterator[np.ndarray]:
    """The documents `which` in parts of a few MiB, so that a tokenizer can use all cores on each part."""
    ends = np.cumsum(size[which])
    first = 0
    while first < len(which):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + _CHUNK_BYTES)) + 1)
        yield which[first:last]
        first = last


def _say(journal: Any, told: dict[str, Any]) -> None:
    journal.write((json.dumps(told) + "\n").encode("ascii"))
    journal.flush()


def _size(path: pathlib.Path) -> int:
    return os.path.getsize(path) if path.exists() else 0


def _begun(folder: pathlib.Path, hashed: str) -> dict[str, list[dict]]:
    """The lines of the journal, by split, whose chunks stand whole in their files; the journal is cut after them.

    Nothing of a folder counts that was begun for other documents.
    """
    path, found = folder / _JOURNAL, {}
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    good = 0
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError):
        if lines and json.loads(lines[0]) == {"hash": hashed}:
            good = len(lines[0])
            for text in lines[1:]:
                line = json.loads(text)
                before = found.get(line["split"], [])
                if not text.endswith(b"\n") or line["crc"] != _crc(folder, line, before[-1] if before else {}):
                    break
                found[line["split"]] = [*before, line]
                good += len(text)
    disk.grown(path, good).close()
    return found


def _crc(folder: pathlib.Path, line: dict[str, Any], before: dict[str, Any]) -> int:
    """The CRC-32 of what a chunk added, as it stands on the disk, and of its line; -1: it is not whole."""
    if ("scored" in line) != ("kinds" in line):  # Begun by a house that did not keep kinds.
        return -1
    crc = 0
    for name in ("tokens", "lengths", "scored", "kinds"):
        if name in line:
            with (folder / f"{line['split']}.{name}.bin").open("rb") as file:
                file.seek(before.get(name, 0))
                data = file.read(line[name] - before.get(name, 0))
            if len(data) != line[name] - before.get(name, 0):
                return -1
            crc = zlib.crc32(data, crc)
    return _with_facts(crc, line)


def _with_facts(crc: int, line: dict[str, Any]) -> int:
    """The CRC-32 of what a chunk added, carried on over what its line says."""
    return zlib.crc32(json.dumps({name: value for name, value in line.items() if name != "crc"}).encode(), crc)
