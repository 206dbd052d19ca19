"""Which folders are checkpoints, and whether one can be trusted: checksums, no file too many, what it says of itself.

Everything here reads plain files; nothing is loaded, moved or removed.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from experiments import workdir as files
from experiments.settings import history, identity
from experiments.workdir import disk

SUFFIX = ".sha256.json"
_NAME = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PROCESS = re.compile(r"(?<![^/.])process_(0|[1-9][0-9]{0,8})(?![^/])", re.ASCII)  # In a part of a path.
_LARGEST = 2**31 - 1  # `step` is an int32.
_ABOUT = os.path.join("about", "metadata")
_KINDS = {  # If there.
    "step": int, "taken": int, "config": dict, "corpus": str, "tokenizer": str, "template": str, "companions": dict
}  # fmt: skip
_COMPANION = {"workdir": str, "step": int, "checksum": str}


def checksums(root: pathlib.Path, step: int) -> pathlib.Path:
    """The file with the checksums of a step."""
    return root / f"{step}{SUFFIX}"


def is_step(name: str) -> bool:
    """Whether a folder of this name would be a step: a plain number, written as `str` writes it."""
    return _NAME.fullmatch(name) is not None and int(name) <= _LARGEST


def present(root: pathlib.Path) -> list[int]:
    """Every step that has a folder or a file of checksums, good or not, oldest first."""
    return sorted(int(name) for name in disk.names(root) if is_step(name))


def finished(root: pathlib.Path) -> list[int]:
    """Steps that have a folder and a file of checksums, oldest first; whether these agree is `problem`'s to say."""
    return [s for s in present(root) if disk.is_folder(root / str(s)) and disk.is_file(checksums(root, s))]


def problem(
    root: pathlib.Path, step: int, config: Mapping[str, Any] | None = None, *, part: tuple[int, int] = (0, 1)
) -> str:
    """Why a step cannot be used, or "". With the `config` of a run: also whether the step is that run's own.

    A checkpoint is good if every file has the checksum written for it, no file is missing or extra, and its
    description names this step and this run. A file that cannot be read is a problem, not an exception.

    Args:
      part: (which, of how many) shares of the bytes are read: each of many processes reads one.
    """
    try:
        found = _files_problem(root / str(step), checksums(root, step), part)
        return found or own_problem(root, step, config)
    except (OSError, ValueError) as error:
        return f"it cannot be read: {str(error).rstrip('.')}"


def _files_problem(folder: pathlib.Path, vouching: pathlib.Path, part: tuple[int, int]) -> str:
    if not disk.is_folder(folder):
        return "it is a link or a file, not a folder"
    try:
        expected = disk.read_object(vouching)
    except ValueError:
        expected = {}
    if expected is None:
        return f"{vouching.name} is missing"
    if not expected or not all(isinstance(d, str) and _DIGEST.fullmatch(d) for d in expected.values()):
        return f"{vouching.name} holds no checksums"
    there = disk.files_below(folder)
    for what, names in (("is missing", set(expected) - set(there)), ("was added", set(there) - set(expected))):
        if names:
            return f"{sorted(names)[0]} {what}"
    sizes = {name: os.lstat(folder / name).st_size for name in there}
    for name, digest in hashes(folder, shares(sizes, part[1])[part[0]]).items():
        if digest != expected[name]:
            return f"{name} does not match its checksum"
    return ""


def own_problem(root: pathlib.Path, step: int, config: Mapping[str, Any] | None = None) -> str:
    """Why a step is not what its name and its run's `config` say, by its own description, or "".

    Raises OSError or ValueError where that cannot be read.
    """
    said = about(root, step)
    if said.get("step", step) != step:  # Before steps were written down, the state alone knew.
        return f"it holds step {said['step']}"
    if config is not None and isinstance(said.get("config"), dict):
        for key, (was, asked) in identity.another_run(history.filled(said["config"]), config).items():
            if identity.ABSENT not in (was, asked):  # A key that went with another version of the house.
                return f"it is of another run: {key} {was!r} there, {asked!r} here"
    return ""


def about(root: pathlib.Path, step: int) -> dict[str, Any]:
    """What a step says of itself. ValueError in one sentence where it says nothing that can be used."""
    path = root / str(step) / _ABOUT
    said = disk.read_object(path)
    arrays = said and said.get("arrays")
    whole = isinstance(arrays, dict) and all(isinstance(text, str) for text in arrays.values())
    companions = said.get("companions") if whole else None
    beside = list(companions.values()) if isinstance(companions, dict) else []
    if not whole or not _holds(said, _KINDS) or not all(_holds(one, _COMPANION, every=True) for one in beside):
        raise ValueError(f"{_ABOUT} does not describe a checkpoint")
    return said


def _holds(value: Any, kinds: Mapping[str, type], *, every: bool = False) -> bool:
    """Whether `value` is an object whose keys are of these types, those that are there or `every` one."""
    if not isinstance(value, dict):
        return False
    return all(type(value[key]) is kind if key in value else not every for key, kind in kinds.items())


def loss(root: pathlib.Path, step: int) -> float | None:
    """The held-out loss measured at a step, None where none was; of one without a note of it, from the run's metrics.

    ValueError where the step says nothing that can be used.
    """
    said = about(root, step)
    if "loss" in said:
        found = said["loss"]
    else:
        lines, _ = files.read_lines(root.parent / files.METRICS)
        measured = [line["eval/loss"] for line in lines if line["step"] == step and "eval/loss" in line]
        found = measured[-1] if measured else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def shares(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Files, name -> bytes, in `count` shares of about as many bytes each: the largest next goes to the smallest."""
    found, filled = [[] for _ in range(count)], [0] * count
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        smallest = filled.index(min(filled))
        found[smallest].append(name)
        filled[smallest] += sizes[name]
    return [sorted(share) for share in found]


def wrote(name: str, count: int) -> int:
    """Which of `count` processes wrote a file of a save: Orbax names it, and what it names nobody for is process 0's.

    Args:
      name: the file's path in the folder of the save.
      count: of the processes that saved.
    """
    told = _PROCESS.search(name)
    return int(told[1]) if told and int(told[1]) < count else 0


def hashes(folder: pathlib.Path, names: list[str]) -> dict[str, str]:
    """SHA-256 of files below `folder`, as hex; files are read in pieces, up to eight at a time."""

    def digest(name: str) -> str:
        with disk.open_to_read(folder / name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with concurrent.futures.ThreadPoolExecutor(min(8, max(2, os.cpu_count() or 1))) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def write_checksums(root: pathlib.Path, step: int, digests: Mapping[str, str]) -> None:
    """Vouches for files, name -> SHA-256, as those of `step`."""
    disk.write_file(checksums(root, step), json.dumps(dict(sorted(digests.items()))).encode("ascii"))
