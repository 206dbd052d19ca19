"""The files of a workdir: their names, and how each is written and read back.

    config.json     {"config": {...}, "hash": "..", "command": "python main.py ..", "base": {...} (optional),
                     "later": [knobs that came after the run began] (optional)}
    run.json        {"environment": {...}, "corpus": {...}, "tokenizer": .., "parameters": {"total", "embedding"},
                     "flops_per_token": .., "matmul_flops_per_second": .., "starts": ["2025-01-31T12:00:00Z", ..],
                     "code": {"hash", "commit", "changed", "diff", "command", "host", "packages"}}
    code.diff       how the code of the last start differs from its commit; absent where it does not
    metrics.jsonl   deterministic lines only: {"step", "tokens", "flops", "train/loss", ..} and {.., "eval/loss", ..}
    timing.jsonl    what differs between two runs of one config: {"step", "seconds", "tokens_per_second", "mfu", ..}
    samples.jsonl   {"step", "prompt", "text"}
    drafts.jsonl    {"step", "drafter", "wrote": [rounds of 1, 2, .. tokens], "calls", ..} of --mode=evaluate
    result.json     the summary of a finished run; absent while the run is under way
    tokenizer.json  what turns the model's ids into text
    template.jinja  the chat template, where data.template names a file
    start/          the parameters that the run began with, where it is its own companion
    report.html     built from the files above at any time

JSON has no NaN, so floats that are not finite are written as the strings "NaN", "Infinity" and "-Infinity".
"""

import contextlib
import datetime
import fcntl
import hashlib
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
from typing import Any, BinaryIO

from experiments.settings import history, identity
from experiments.settings.errors import Refused
from experiments.workdir import disk
from experiments.workdir.disk import WorkdirError as WorkdirError
from experiments.workdir.disk import explain, write_file

CONFIG = "config.json"
RUN = "run.json"
METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
SAMPLES = "samples.jsonl"
DRAFTS = "drafts.jsonl"
MEMORIES = "memories"  # a folder: evaluations with a policy of generate.memory
BUDGETS = "budgets"  # in it: the table and the figure of a sweep over budgets, without their suffixes
PATTERNS = "patterns.json"  # The last search of patterns of sparse prefill.
RESULT = "result.json"
REPORT = "report.html"
TEXTS = "texts.json"  # The last evaluation of other texts.
ROUTING = "routing.npz"  # The experts of some held-out tokens, where they were asked for.
EXPORTS = {"safetensors": "model.safetensors", "hf": "hf", "gguf": "model.gguf"}  # By --format.
TOKENIZER = "tokenizer.json"
TEMPLATE = "template.jinja"
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"
START = "start"  # The parameters that a run began with, where it is its own companion.
LOCK = ".lock"
REPLACED = "replaced"  # Folders `replaced-TIME`: what a run left that was started over there.

_NUMBER, _WHOLE, _TEXT, _GROUP = (int, float), (int,), (str,), (dict,)
_KINDS = {int: "a whole number", float: "a number", str: "text", dict: "an object", list: "a list"}
SHAPES = {  # What the keys of a file of a run hold, where they are there.
    CONFIG: {"config": _GROUP, "hash": _TEXT, "command": _TEXT, "base": _GROUP, "later": (list,)},
    RUN: {
        "environment": _GROUP, "corpus": _GROUP, "tokenizer": _TEXT, "parameters": _GROUP, "flops_per_token": _NUMBER,
        "matmul_flops_per_second": _NUMBER, "mesh": _GROUP, "starts": (list,), "code": _GROUP,
    },
    RESULT: {
        "step": _WHOLE, "tokens": _WHOLE, "flops": _NUMBER, "seconds": _NUMBER, "parameters": _WHOLE,
        "eval/loss": _NUMBER, "eval/bits_per_byte": _NUMBER, "eval/bits_per_byte_se": _NUMBER, "eval/tokens": _WHOLE,
        "eval/kind": _TEXT,
    },
}  # fmt: skip
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Held:
    """The lock on a workdir: no other process trains there until `close`, or until this process ends."""

    def __init__(self, file: BinaryIO, folder: int):
        self._file, self._folder = file, folder

    def close(self) -> None:
        """Lets others in; calling it again does nothing."""
        self._file.close()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def hold(workdir: pathlib.Path) -> Held:
    """Makes this process the only one that trains in an existing `workdir`, for as long as the result is open.

    Two locks: of the file, which every file system has, and of the folder itself, which outlives a file that somebody
    removed. The operating system lets go when a process ends, however it ends. Refused where another one holds either.
    """
    try:
        held = Held(disk.open_lock(workdir / LOCK), os.open(workdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        raise explain(error, workdir / LOCK) from error
    try:
        fcntl.lockf(held._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _lock_folder(held._folder)
    except (BlockingIOError, PermissionError):
        held.close()
        raise Refused(
            f"--workdir={workdir} is being trained by another process; wait for its end, or use another workdir, "
            "e.g. --workdir=runs/second."
        ) from None
    return held


def _lock_folder(descriptor: int) -> None:
    """Locks a folder, where its file system can (NFS has no lock of a folder). BlockingIOError where another has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return


def plain(value: Any, key: str = "value") -> Any:
    """`value` as JSON can hold it: arrays of one element become numbers, tuples lists, non-finite floats strings."""
    if isinstance(value, dict):
        return {str(name): plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:  # a numpy or jax scalar
        value = value.item()
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if value is None or isinstance(value, bool | int | str):
        return value
    raise ValueError(f"{key}={value!r} of type {type(value).__name__} cannot be logged; use a number, text or None.")


def revive(value: Any) -> Any:
    """The inverse of `plain` for floats that are not finite."""
    if isinstance(value, dict):
        return {name: revive(item) for name, item in value.items()}
    if isinstance(value, list):
        return [revive(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def line(record: dict[str, Any]) -> bytes:
    """One record as one line of a .jsonl file, ASCII, newline included."""
    return (json.dumps({key: plain(item, key) for key, item in record.items()}, allow_nan=False) + "\n").encode("ascii")


def parse(raw: bytes) -> dict[str, Any] | None:
    """The record in one line of a .jsonl file, or None where the line is torn or damaged."""
    try:
        record = disk.parsed(raw)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and _is(record.get("step"), _WHOLE) and not disk.deeper(record)
    return record if whole else None


def read_lines(path: str | os.PathLike, *, numbers: bool = True) -> tuple[list[dict[str, Any]], list[int]]:
    """The records of a .jsonl file, and the numbers (from 1) of the lines that cannot be read.

    A missing file has no records. A last line without its newline is one being written: it is left out and not
    called damaged. `numbers=False` leaves the text "NaN" as text, as samples need.
    """
    *lines, _ = (disk.read_bytes(path) or b"").split(b"\n")
    records = [parse(raw) for raw in lines]
    damaged = [number for number, record in enumerate(records, 1) if record is None]
    kept = [record for record in records if record is not None]
    return [revive(record) for record in kept] if numbers else kept, damaged


def write_json(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """Writes `value` as readable JSON, whole or not at all."""
    write_file(path, (json.dumps(plain(value), indent=2, allow_nan=False) + "\n").encode("ascii"))


def read_json(path: str | os.PathLike) -> dict[str, Any] | None:
    """The object in a .json file, None where there is no file. Raises ValueError, one sentence, where it is damaged.

    Keys named in `SHAPES` have the types stated there; a file in which one has another type is damaged.
    """
    value = disk.read_object(path)
    if value is None:
        return None
    value = revive(value)
    for key, kind in SHAPES.get(pathlib.Path(path).name, {}).items():
        if key in value and not _is(value[key], kind):
            found, wanted = type(value[key]).__name__, " or ".join(_KINDS[k] for k in kind)
            raise ValueError(
                f"{os.fspath(path)!r} holds {key!r} as {found}, where {wanted} stands; "
                "delete it or restore it from a copy."
            )
    return value


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def digest(settings: dict[str, Any]) -> str:
    """Twelve hex digits that name settings: equal for equal ones, whatever the order of their keys."""
    text = json.dumps(plain(settings, "settings"), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:12]


def config_hash(config: dict[str, Any]) -> str:
    """The digest of the settings that decide the numbers of a run of `config`.

    It does not depend on knobs that nothing in the config reads, on settings of generation, or on knobs added to the
    house since. See `experiments.settings.identity`.
    """
    return digest(identity.canonical(config))


def folders(runs: str | os.PathLike) -> dict[str, pathlib.Path]:
    """The runs in the folder `runs`, by the hash of their configs as today's house computes it.

    An older house hashed all keys: its folders have other names.
    """
    found: dict[str, pathlib.Path] = {}
    for record in sorted(pathlib.Path(runs).glob(f"*/{CONFIG}")):
        try:
            saved = (read_json(record) or {}).get("config")
        except ValueError:  # damaged: told by whoever opens the run
            continue
        if isinstance(saved, dict):
            name = config_hash(history.filled(saved))
            if name not in found or name == record.parent.name:
                found[name] = record.parent
    return found


def folder_of(runs: str | os.PathLike, config: dict[str, Any]) -> pathlib.Path:
    """The folder in `runs` for the run of `config`: named by its hash, or, if it exists, by an older version's hash."""
    name = config_hash(config)
    return folders(runs).get(name, pathlib.Path(runs) / name)


def write_figure(path: str | os.PathLike, figure: Any, **options: Any) -> None:
    """Writes a figure of matplotlib, whole or not at all; `options` (`format` among them) are those of its savefig."""
    buffer = io.BytesIO()
    figure.savefig(buffer, **options)
    write_file(path, buffer.getvalue())


def write_config(workdir: str | os.PathLike, config: dict, command: str, base: dict | None = None) -> str:
    """Writes config.json and returns the hash of `config`. With `base`, the report shows what differs from it.

    For a run begun by an older version, config.json also lists the knobs that were added since (`later`), so that the
    command of that run still resumes it.
    """
    name = config_hash(config)
    record = {"hash": name, "command": command, "config": config}
    try:
        before = read_json(pathlib.Path(workdir) / CONFIG) or {}
    except (ValueError, OSError):  # Damaged, or a link: it is replaced.
        before = {}
    if "config" in before and (later := history.came_later(before)):
        record["later"] = sorted(later)
    write_json(pathlib.Path(workdir) / CONFIG, record if base is None else record | {"base": base})
    return name


def environment() -> dict[str, Any]:
    """Versions and devices of this process, as run.json keeps them. Imports jax and touches its devices."""
    import jax

    devices = jax.devices()
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "python": platform.python_version(),
        **versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "platform": devices[0].platform,
        "devices": [device.device_kind for device in devices],
        "processes": jax.process_count(),
    }


def write_run(workdir: str | os.PathLike, facts: dict[str, Any]) -> None:
    """Notes a start of the run in run.json: `facts` replace those of the last start, the start times are kept."""
    path = pathlib.Path(workdir) / RUN
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        starts = (read_json(path) or {}).get("starts", [])
    except ValueError:  # a damaged run.json costs the list of starts, never the run
        starts = []
    write_json(path, facts | {"starts": [*starts, now]})


def elapsed_seconds(workdir: str | os.PathLike, step: float = math.inf) -> float:
    """Training wall seconds up to `step` that are in timing.jsonl: what a start there counts on from."""
    rows, _ = read_lines(pathlib.Path(workdir) / TIMING)
    seconds = [row["seconds"] for row in rows if row["step"] <= step and _is(row.get("seconds"), _NUMBER)]
    return float(max(filter(math.isfinite, seconds), default=0.0))
