"""The format of a file, by its name and by its first bytes, and the documents in it.

A format is known by name without regard to case (.txt .md .py .jsonl .csv .tsv, each also .gz .bz2 .xz .zst; .parquet,
.arrow) and by the first bytes. A file is refused, with the reason, if the two disagree or if neither names a format: a
compressed or binary file is never read as text.
"""

import bz2
import codecs
import gzip
import json
import lzma
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from data import places, tables

TEXT_SUFFIXES = (".txt", ".md", ".py", ".jsonl")
TABLES = (*tables.PARQUET, *tables.ARROW, *tables.COMMAS)
_KNOWN = (*TEXT_SUFFIXES, *TABLES)
_HEAD = 1 << 16  # bytes by which a file is judged
_COMPRESSED = {
    ".gz": ("gzip", b"\x1f\x8b", gzip.open),
    ".bz2": ("bzip2", b"BZh", bz2.open),
    ".xz": ("xz", b"\xfd7zXZ\x00", lzma.open),
    ".zst": ("Zstandard", b"\x28\xb5\x2f\xfd", None),  # by pyarrow, see `_opened`
}
# Formats that are not text: how such a file begins (at an offset), or how it is named.
_BEGINNINGS = (
    (0, b"\x04\x22\x4d\x18", "LZ4"),
    (0, b"\x1f\x9d", "compress"),
    (0, b"\xff\x06\x00\x00sNaPpY", "Snappy"),
    (0, b"\x5d\x00\x00", "LZMA"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"PK\x05\x06", "zip"),
    (0, b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    (0, b"Rar!\x1a\x07", "RAR"),
    (257, b"ustar", "tar"),
    (0, b"\x89PNG\r\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"%PDF-", "PDF"),
    (0, b"\x93NUMPY", "NumPy"),
    (0, b"\x89HDF\r\n", "HDF5"),
    (0, b"SQLite format 3\x00", "SQLite"),
    (0, b"\x7fELF", "ELF"),
    (0, b"\x00asm", "WebAssembly"),
    (0, b"\xca\xfe\xba\xbe", "Java class or Mach-O"),
    (0, b"\xd0\xcf\x11\xe0", "Office"),
    (0, b"\xff\xfe", "UTF-16"),
    (0, b"\xfe\xff", "UTF-16"),
    (0, b"\x00\x00\xfe\xff", "UTF-32"),
)
# Beginnings that a text may have too: they only give a name to what is not text.
_PRINTABLE = (
    (0, b"PAR1", "Parquet"),
    (0, b"ARROW1", "Arrow"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (8, b"WEBP", "WebP"),
    (8, b"WAVE", "WAVE"),
    (4, b"ftyp", "MP4"),
    (0, b"ID3", "MP3"),
    (0, b"OggS", "Ogg"),
    (0, b"fLaC", "FLAC"),
    (0, b"MZ", "Windows program"),
)
_NAMES = {
    ".zstd": "Zstandard", ".lz4": "LZ4", ".br": "Brotli", ".z": "compress", ".lzma": "LZMA",
    ".sz": "Snappy", ".snappy": "Snappy", ".zip": "zip", ".7z": "7-Zip", ".rar": "RAR", ".tar": "tar", ".tgz": "tar",
    ".tbz2": "tar", ".txz": "tar", ".orc": "ORC",
    ".avro": "Avro", ".npy": "NumPy", ".npz": "NumPy", ".h5": "HDF5", ".hdf5": "HDF5", ".pkl": "pickle",
    ".pickle": "pickle", ".pt": "PyTorch", ".pth": "PyTorch", ".safetensors": "safetensors", ".msgpack": "MessagePack",
    ".tfrecord": "TFRecord", ".array_record": "array_record", ".sqlite": "SQLite", ".db": "SQLite", ".pdf": "PDF",
    ".docx": "Office", ".xlsx": "Office", ".pptx": "Office", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG",
    ".gif": "GIF", ".bmp": "BMP", ".webp": "WebP", ".tif": "TIFF", ".tiff": "TIFF", ".mp3": "MP3", ".mp4": "MP4",
    ".wav": "WAVE", ".ogg": "Ogg", ".flac": "FLAC", ".pyc": "compiled Python", ".so": "ELF", ".exe": "Windows program",
}  # fmt: skip
_CONTROL = re.compile(
    rb"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]"
)  # in no text of any 8-bit code page; \x1b colours terminals
_DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)


class NotText(Exception):
    """A file that is not read; the message is a phrase such as "a Zstandard file"."""


def suffix(name: str) -> str:
    """The lower-case suffix of a file's name without the one of its compression: "A.TXT.GZ" gives ".txt"."""
    path = pathlib.PurePath(name.lower())
    return pathlib.PurePath(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix


def documents(path: str, asked: os.stat_result | places.Stat, pick: tables.Pick) -> Iterator[bytes]:
    """The documents of one file: the file itself where it is text, else what `pick` takes of each of its records.

    `asked` is the file as it was when it was listed.

    Errors: NotText before the first document where the file is not text. ValueError naming the file, and the line,
    where it is damaged, cannot be read, or was changed since it was listed.
    """
    kind = ""
    try:
        with places.opened(path) as raw:
            kind = _compression(path, raw.read(_HEAD))
        yield from _contents(path, lambda: _opened(path, kind), bool(kind), pick)
        now = places.stat(path)
    except _DAMAGE as error:
        raise _damaged(path, _COMPRESSED[kind][0], str(error)) from None
    except OSError as error:
        if error.errno is None and kind:  # how bz2 and pyarrow say that a stream is damaged
            raise _damaged(path, _COMPRESSED[kind][0], str(error)) from None
        why = error.strerror or str(error)
        raise ValueError(f"path={path!r} cannot be read ({why}); use files that you may read.") from error
    if (now.st_size, now.st_mtime_ns) != (asked.st_size, asked.st_mtime_ns):
        raise ValueError(f"path={path!r} was changed while it was read; start again when nobody writes to it.")


def _opened(path: str, kind: str) -> BinaryIO:
    """The file at `path`, its compression undone."""
    raw = places.opened(path)
    if not kind:
        return raw
    return tables.unpacked(raw, path) if kind == ".zst" else _COMPRESSED[kind][2](raw)


def _contents(path: str, opened: Callable[[], BinaryIO], compressed: bool, pick: tables.Pick) -> Iterator[bytes]:
    """The documents in a file whose compression, if any, is undone by `opened`."""
    named = suffix(path)
    with opened() as file:
        head = file.read(_HEAD)
    if named in tables.PARQUET and head.startswith(b"PAR1"):
        reader = tables.parquet
    elif named in tables.ARROW:
        reader = tables.arrow
    else:
        _check_text(path, head, compressed)
        reader = tables.lines if _is_lines(path, head) else None
        if named in tables.COMMAS:
            reader = lambda file, path, pick: tables.commas(file, path, pick, ",\t"[named == ".tsv"])  # noqa: E731
    if reader and compressed and named in (*tables.PARQUET, *tables.ARROW):
        raise NotText(f"a {named} file inside a compressed one, which must be unpacked first")
    with opened() as file:
        if reader is None:
            yield file.read()
        else:
            yield from reader(file, path, pick)


def _compression(path: str, head: bytes) -> str:
    """The suffix of the compression that undoes the file, by its first bytes; "" for none."""
    named = pathlib.PurePath(path.lower()).suffix
    for kind, (format_name, magic, _) in _COMPRESSED.items():
        if head.startswith(magic) and (kind != ".bz2" or head[4:10] in (b"1AY&SY", b"\x17rE8P\x90")):
            if named in _COMPRESSED and named != kind:
                raise NotText(f"named {named} and begins as a {format_name} file")
            return kind
    if named in _COMPRESSED:
        raise _damaged(path, _COMPRESSED[named][0], "it does not begin as one")
    return ""


def _check_text(path: str, head: bytes, compressed: bool) -> None:
    """Raises NotText for a file whose first bytes are not text, or whose name is that of another format."""
    for offset, magic, name in _BEGINNINGS:
        if head.startswith(magic, offset):
            if name.startswith("UTF"):
                raise NotText(f"{name} text, which must be made UTF-8 first")
            raise NotText(f"a {name} file" + (" inside a compressed one" if compressed else ""))
    if compressed and any(head.startswith(magic) for kind, (_, magic, _) in _COMPRESSED.items() if kind != ".bz2"):
        raise NotText("a compressed file inside a compressed one")
    is_utf8 = _is_utf8(head)
    if b"\x00" in head or (not is_utf8 and _CONTROL.search(head)):
        name = next((n for offset, magic, n in _PRINTABLE if head.startswith(magic, offset)), "")
        raise NotText(f"a {name} file" if name else "a binary file")
    named = suffix(path)
    if named in (*_NAMES, *tables.PARQUET):
        raise NotText(f"named as a {_NAMES.get(named, 'Parquet')} file and does not begin as one")
    if named not in _KNOWN and not is_utf8:
        raise NotText("of no known format, by its name or by its first bytes")


def _is_utf8(head: bytes) -> bool:
    """Whether the bytes are UTF-8, the last character perhaps cut off."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _is_lines(path: str, head: bytes) -> bool:
    """Whether a file holds a document in each line: by its name, or where the name says nothing, by its first line."""
    named = suffix(path)
    if named in tables.LINES or named in _KNOWN:
        return named in tables.LINES
    try:
        first = json.loads(head.lstrip().split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and isinstance(first.get("text"), str)


def _damaged(path: str, kind: str, why: str) -> ValueError:
    return ValueError(f"path={path!r} is not a whole {kind} file ({why}); compress it again.")
