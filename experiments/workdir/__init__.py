"""The files of a workdir: their names, and how each is written and read back.

    config.json     {"config": {...}, "hash": "..", "command": "python main.py ..", "base": {...} (optional)}
    run.json        {"environment": {...}, "corpus": {...}, "tokenizer": .., "parameters": {"total", "embedding"},
                     "flops_per_token": .., "matmul_flops_per_second": .., "starts": ["2025-01-31T12:00:00Z", ..]}
    metrics.jsonl   deterministic lines only: {"step", "tokens", "flops", "train/loss", ..} and {.., "eval/loss", ..}
    timing.jsonl    what differs between two runs of one config: {"step", "seconds", "tokens_per_second", "mfu", ..}
    samples.jsonl   {"step", "prompt", "text"}
    result.json     the summary of a finished run; absent while the run is under way
    tokenizer.json  what turns the model's ids into text
    report.html     built from the files above at any time

JSON has no NaN, so floats that are not finite are written as the strings "NaN", "Infinity" and "-Infinity".
"""

import contextlib
import datetime
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
from typing import Any, BinaryIO

from experiments.settings import history, identity
from experiments.settings.errors import Refused

CONFIG = "config.json"
RUN = "run.json"
METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
SAMPLES = "samples.jsonl"
RESULT = "result.json"
REPORT = "report.html"
TOKENIZER = "tokenizer.json"
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class WorkdirError(OSError):
    """A file of the workdir could not be written or read; the message is one sentence for the user."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()


def explain(error: OSError, path: str | os.PathLike) -> WorkdirError:
    """Turns what the operating system says about `path` into one sentence with a way out."""
    if isinstance(error, WorkdirError):
        return error
    path = os.fspath(path)
    reasons = {
        errno.ENOSPC: "the disk is full; free some space, then start the same command again to resume",
        errno.EDQUOT: "the disk quota is used up; free some space, then start the same command again to resume",
        errno.EFBIG: "the file-size limit is reached; raise it (ulimit -f), then start the same command to resume",
        errno.EROFS: "the file system is read-only; use a workdir that can be written, e.g. --workdir=runs/first",
        errno.EACCES: "permission is denied; use a workdir that you own, e.g. --workdir=runs/first",
        errno.EPERM: "permission is denied; use a workdir that you own, e.g. --workdir=runs/first",
        errno.ENOTDIR: "part of the path is a file, not a folder; use a new folder, e.g. --workdir=runs/first",
        errno.EEXIST: "part of the path is a file, not a folder; use a new folder, e.g. --workdir=runs/first",
        errno.EISDIR: "a folder stands where the file should be; move it away or use a new workdir",
    }
    reason = reasons.get(error.errno, f"{(error.strerror or str(error)).lower()}; check the path given as --workdir")
    return WorkdirError(error.errno or errno.EIO, f"{path!r} cannot be used: {reason}.")


def hold(workdir: pathlib.Path) -> BinaryIO:
    """Makes this process the only one that trains in an existing `workdir`, for as long as the result is open.

    The operating system lets go when a process ends, however it ends. Refused where another one holds it.
    """
    try:
        lock = open(workdir / LOCK, "wb")  # noqa: SIM115 (closed by whoever holds it)
    except OSError as error:
        raise explain(error, workdir / LOCK) from error
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        lock.close()
        raise Refused(
            f"--workdir={workdir} is being trained by another process; wait for its end, or use another workdir, "
            "e.g. --workdir=runs/second."
        ) from None
    return lock


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
        record = json.loads(raw)
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if whole else None


def read_lines(path: str | os.PathLike, *, numbers: bool = True) -> tuple[list[dict[str, Any]], list[int]]:
    """The records of a .jsonl file, and the numbers (from 1) of the lines that cannot be read.

    A missing file has no records. A last line without its newline is one being written: it is left out and not
    called damaged. `numbers=False` leaves the text "NaN" as text, as samples need.
    """
    try:
        *lines, _ = pathlib.Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise explain(error, path) from error
    records = [parse(raw) for raw in lines]
    damaged = [number for number, record in enumerate(records, 1) if record is None]
    kept = [record for record in records if record is not None]
    return [revive(record) for record in kept] if numbers else kept, damaged


def write_file(path: str | os.PathLike, data: bytes) -> None:
    """Writes a whole file or nothing: a reader, or a kill at any instant, sees the old file or the new one."""
    path = pathlib.Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise explain(error, path) from error


def write_json(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """Writes `value` as readable JSON, whole or not at all."""
    write_file(path, (json.dumps(plain(value), indent=2, allow_nan=False) + "\n").encode("ascii"))


def read_json(path: str | os.PathLike) -> dict[str, Any] | None:
    """The object in a .json file, None where there is no file. Raises ValueError, one sentence, where it is damaged."""
    try:
        value = json.loads(pathlib.Path(path).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise explain(error, path) from error
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{os.fspath(path)!r} does not hold a JSON object; delete it or restore it from a copy.")
    return revive(value)


def digest(settings: dict[str, Any]) -> str:
    """Twelve hex digits that name settings: equal for equal ones, whatever the order of their keys."""
    text = json.dumps(plain(settings, "settings"), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:12]


def config_hash(config: dict[str, Any]) -> str:
    """The digest of what decides the numbers of a run of `config`: the same for whatever nothing in it reads, for
    settings of generation, and after knobs are added to the house. See `experiments.settings.identity`."""
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
    """Where in the folder `runs` the run of `config` is, or will be: the folder of its hash, or of an older name."""
    name = config_hash(config)
    return folders(runs).get(name, pathlib.Path(runs) / name)


def write_config(workdir: str | os.PathLike, config: dict, command: str, base: dict | None = None) -> str:
    """Writes config.json and returns the hash of `config`. With `base`, the report shows what differs from it."""
    name = config_hash(config)
    record = {"hash": name, "command": command, "config": config}
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


def elapsed_seconds(workdir: str | os.PathLike) -> float:
    """Training wall seconds already in timing.jsonl: what the next start counts on from."""
    rows, _ = read_lines(pathlib.Path(workdir) / TIMING)
    return float(max((row["seconds"] for row in rows if isinstance(row.get("seconds"), int | float)), default=0.0))
