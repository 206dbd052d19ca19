"""Documents from files: one, a folder of them at any depth, a pattern, on a disk or in a store."""

import json
import pathlib
import re
import stat
from collections.abc import Iterator

from data import cache, folders, formats, places, tables
from data.documents import Document, LeftOut, Request, Texts, stat_fingerprint

_SPLIT = re.compile(r"(?:^|[/_.-])(train|validation|valid|val|dev|test)(?=[/_.-])")
_HELD_OUT = ("validation", "valid", "val", "dev")
_TEST = "of a test split, which is not read"
_STATE = "state.json"  # What the datasets library says of a folder of Arrow files.


def texts(request: Request, pick: tables.Pick, *, source: str, form: str = "text") -> Texts:
    """The documents that `request.path` names; see `data.sources.text`. `source` names who asks, in messages."""
    if not request.path:
        raise ValueError(f"path='' is missing for source={source!r}; use a file, a folder or a pattern like 'a/*.txt'.")
    left_out: list[LeftOut] = []
    root, found = _found(request, left_out, source)
    if request.max_files:
        left_out += [("more than max_files", file.name) for file in found[request.max_files :]]
        found = found[: request.max_files]
    if not found:
        what = "has no .txt, .md, .py, .jsonl, .csv, .parquet or .arrow files" if root else "does not exist"
        raise FileNotFoundError(
            f"path={request.path!r} {what}{_instead(left_out)}; use a file, a folder or a pattern like 'a/*.txt'."
        )
    place = lambda name: f"{root}/{name}" if root else name  # noqa: E731
    alone = len(found) == 1 and found[0].name == str(pathlib.Path(request.path).expanduser())

    def documents(left_out: list[LeftOut]) -> Iterator[Document]:
        for name, listed in found:
            side = _side(name) if formats.suffix(name) in formats.TABLES else None
            side = None if side == "test" else side  # It was asked for by its name.
            try:
                for content in formats.documents(place(name), listed, pick):
                    yield content, side
            except formats.NotText as error:
                if alone:
                    raise ValueError(
                        f"path={request.path!r} is {error}; use UTF-8 text, JSON lines, or .gz of them."
                    ) from None
                left_out.append((str(error), name))

    fingerprint = stat_fingerprint("text", [(place(name), s) for name, s in found])
    if request.columns or form != "text":
        fingerprint = cache.digest(fingerprint, form, list(request.columns))
    size = sum(told.st_size for _, told in found)
    return Texts(fingerprint, len(found), documents, f"path={request.path!r}", tuple(left_out), size, form)


def _found(request: Request, left_out: list[LeftOut], source: str) -> tuple[str, list[folders.Found]]:
    """(the folder that names are relative to, or "", the files that are read)."""
    if places.remote(request.path):
        listed = [folders.Found(name, told) for name, told in places.found(request.path)]
        several = len(listed) != 1 or listed[0].name != request.path
        return "", _read_ones(listed, left_out, "") if several else listed
    path = pathlib.Path(request.path).expanduser()
    if path.is_dir():
        chosen = _read_ones(folders.folder(path, folders.NOT_THE_LIBRARY, left_out), left_out, str(path))
        return str(path), folders.once(chosen, left_out, lambda name: str(path / name))
    if not path.exists():
        return "", folders.once(folders.pattern(str(path), left_out), left_out)
    found = folders.Found(str(path), path.stat())
    if not stat.S_ISREG(found.stat.st_mode):
        raise ValueError(f"path={request.path!r} is neither a file nor a folder; use a file that can be read twice.")
    return "", [found]


def _read_ones(files: list[folders.Found], left_out: list[LeftOut], root: str) -> list[folders.Found]:
    """The files of a folder that are read: its texts, or where it has none (a README.md counts as none) its tables."""
    kind = lambda file: formats.suffix(file.name)  # noqa: E731
    written = [file for file in files if kind(file) in formats.TEXT_SUFFIXES]
    of_tables = [file for file in files if kind(file) in formats.TABLES]
    if of_tables and all(kind(file) == ".md" for file in written):
        of_tables = _current(of_tables, left_out, root)
        tested = [file for file in of_tables if _side(file.name) == "test"]
        left_out += [(_TEST, file.name) for file in tested]
        chosen = [file for file in of_tables if file not in tested]
    else:
        chosen = written
    named = {file.name for file in chosen} | {name for _, name in left_out}
    left_out += [("of other kinds", file.name) for file in files if file.name not in named]
    return chosen


def _current(files: list[folders.Found], left_out: list[LeftOut], root: str) -> list[folders.Found]:
    """Without the Arrow files that a folder of the datasets library holds beside its data: results that it cached."""
    kept = []
    for file in files:
        state = pathlib.Path(root, file.name).parent / _STATE
        if root and formats.suffix(file.name) in tables.ARROW and state.is_file():
            try:
                named = [each["filename"] for each in json.loads(state.read_text("utf-8"))["_data_files"]]
            except (ValueError, KeyError, TypeError, OSError):
                raise ValueError(f"path={str(state)!r} is damaged; save the data set again.") from None
            if pathlib.PurePath(file.name).name not in named:
                left_out.append(("no part of the data set", file.name))
                continue
        kept.append(file)
    return kept


def _side(name: str) -> str | None:
    """The split that the name of a table says: "train", "valid", "test", or None."""
    found = _SPLIT.findall(name.lower())
    return None if not found else "valid" if found[-1] in _HELD_OUT else found[-1]


def _instead(left_out: list[LeftOut]) -> str:
    """The first entry that was skipped, for a message where no file could be read."""
    if not left_out:
        return ""
    why, name = left_out[0]
    return f" ({name!r} and {len(left_out) - 1} more: {why})" if len(left_out) > 1 else f" ({name!r}: {why})"
