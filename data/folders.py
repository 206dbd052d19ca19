"""The files that a path names: a file, a folder at any depth, or a pattern; each file once, skipped ones listed."""

import fnmatch
import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data.documents import LeftOut

NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}
_LINKED_FOLDER = "links to folders, which are not followed"
_AGAIN = "further names of files that are read already"


class Found(NamedTuple):
    """A file: its name (with forward slashes, relative in a folder) and its stat."""

    name: str
    stat: os.stat_result


def folder(root: pathlib.Path, skip: set[str], left_out: list[LeftOut]) -> list[Found]:
    """All regular files under `root`, sorted by name, without hidden files and folders and those named in `skip`.

    Links to files are followed, links to folders are not. Every skipped entry is appended to `left_out`.
    """
    found: list[Found] = []
    pending = [""]
    while pending:
        inner = pending.pop()
        try:
            entries = list(os.scandir(root / inner))
        except OSError as error:
            if not inner:
                raise
            left_out.append((f"folders that cannot be read ({error.strerror})", inner))
            continue
        for entry in entries:
            name = inner + entry.name
            if entry.name.startswith("."):
                left_out.append(("hidden", name))
            elif entry.is_dir(follow_symlinks=False):
                if entry.name in skip:
                    left_out.append((f"in folders named {entry.name}", name))
                else:
                    pending.append(f"{name}/")
            else:
                found.extend(_regular(name, root / name, left_out))
    return sorted(found)


def pattern(text: str, left_out: list[LeftOut]) -> list[Found]:
    """All regular files that a pattern names (`*`, `?`, `[...]` within a name, `**` for folders at any depth), sorted.

    As `glob.glob(text, recursive=True)`, but `**` does not follow links to folders, so that no loop of links is walked.
    """
    path = pathlib.Path(text)
    matched = _matches(path.anchor, list(path.parts[1:] if path.anchor else path.parts), left_out)
    found = [f for name in dict.fromkeys(matched) for f in _regular(name, pathlib.Path(name), left_out)]
    return sorted(found)


def once(found: list[Found], left_out: list[LeftOut], of: Callable[[str], str] = str) -> list[Found]:
    """The files, each under one name: the name that is no link if there is one, else the first.

    `of` gives the path of a name.
    """
    first: dict[tuple[int, int], Found] = {}
    for file in sorted(found, key=lambda f: (os.path.islink(of(f.name)), f.name)):
        key = (file.stat.st_dev, file.stat.st_ino)
        if key in first:
            left_out.append((_AGAIN, file.name))
        else:
            first[key] = file
    return sorted(first.values())


def _regular(name: str, path: pathlib.Path, left_out: list[LeftOut]) -> Iterator[Found]:
    """The file with its stat, if it is a regular one, through links; else nothing, and why."""
    try:
        found = os.stat(path)
    except OSError as error:
        left_out.append((f"links that lead nowhere ({error.strerror})", name))
        return
    if stat.S_ISREG(found.st_mode):
        yield Found(name, found)
    elif stat.S_ISDIR(found.st_mode):
        left_out.append((_LINKED_FOLDER if os.path.islink(path) else "folders", name))
    else:
        left_out.append(("neither files nor folders", name))


def _matches(base: str, parts: list[str], left_out: list[LeftOut]) -> Iterator[str]:
    """Paths under `base` that the parts of a pattern name."""
    if not parts:
        if base:
            yield base
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _matches(base, rest or ["*"], left_out)
        for entry in _entries(base):
            if entry.is_dir(follow_symlinks=False):
                yield from _matches(os.path.join(base, entry.name), parts, left_out)
            elif entry.is_symlink() and _is_folder(entry):
                left_out.append((_LINKED_FOLDER, os.path.join(base, entry.name)))
    elif not any(c in part for c in "*?["):
        path = os.path.join(base, part)
        if os.path.lexists(path):
            yield from _matches(path, rest, left_out)
    else:
        for entry in _entries(base, hidden=part.startswith(".")):
            if fnmatch.fnmatch(entry.name, part) and (not rest or _is_folder(entry)):
                yield from _matches(os.path.join(base, entry.name), rest, left_out)


def _entries(base: str, hidden: bool = False) -> list[os.DirEntry]:
    """The entries of a folder, sorted; none if it cannot be read, as in `glob`."""
    try:
        return sorted(
            (e for e in os.scandir(base or ".") if hidden or not e.name.startswith(".")), key=lambda e: e.name
        )
    except OSError:
        return []


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False
