"""Where the numbers of a run go: metrics.jsonl, timing.jsonl, samples.jsonl, TensorBoard, Weights & Biases.

The promise behind exact resume: metrics.jsonl holds deterministic lines only, each is written whole by one call, and
`truncate` drops what lies after the restored checkpoint, so that a killed and restarted run ends with the same bytes
as the run left alone. For that the caller must have written every line up to step s before it saves checkpoint s.
"""

import contextlib
import functools
import importlib
import os
import pathlib
import warnings
from typing import Any

from absl import logging

from experiments import workdir as files
from experiments.workdir import disk

_LEADING = ("tokens", "flops")


def truncate(workdir: str | os.PathLike, step: int, steps: int = 0) -> dict[str, int]:
    """Drops every line after `step` (and a torn last line) from the metrics, timing and sample files.

    Call it before the writer opens, with the step of the restored checkpoint, or -1 when the run starts from scratch.
    A result.json of a later step goes too, and one of fewer than the `steps` that the run now has. Returns the number
    of lines dropped, by file name. TensorBoard needs nothing here: the next writer tells it which events to forget.
    """
    workdir = pathlib.Path(workdir)
    dropped = {name: _truncate_lines(workdir / name, step) for name in (files.METRICS, files.TIMING, files.SAMPLES)}
    with contextlib.suppress(ValueError):
        result = files.read_json(workdir / files.RESULT)
        if result and not steps <= result.get("step", step) <= step:
            disk.remove(workdir / files.RESULT)
    return dropped


def _truncate_lines(path: pathlib.Path, step: int) -> int:
    data = disk.read_bytes(path)
    if data is None:
        return 0
    *lines, torn = data.split(b"\n")
    records = [files.parse(raw) for raw in lines]
    # Damage at the end is what a power cut leaves; damage before a good line is something else, and is told.
    good = [number for number, record in enumerate(records) if record is not None]
    inner = [n + 1 for n, record in enumerate(records) if record is None and good and n < good[-1]]
    if inner:
        warnings.warn(
            f"{path.name} had damaged lines {inner}, now dropped; its bytes can no longer match.", stacklevel=3
        )
    kept = b"".join(
        raw + b"\n" for raw, record in zip(lines, records, strict=True) if record is not None and record["step"] <= step
    )
    if kept != data:
        disk.cut(path, kept)
    return len(lines) + bool(torn) - kept.count(b"\n")


class _Lines:
    """Appends whole lines to one file: each line is in the system's hands when `write` returns, or not there at all."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.last_step = -1
        self.file = disk.open_to_append(path)
        self._cut_torn_line()

    def _cut_torn_line(self) -> None:
        data = disk.read_bytes(self.path) or b""
        end = data.rfind(b"\n") + 1
        if end < len(data):
            os.ftruncate(self.file, end)
        for raw in reversed(data[:end].split(b"\n")):
            record = files.parse(raw)
            if record is not None:
                self.last_step = record["step"]
                return

    def write(self, record: dict[str, Any]) -> None:
        step = record["step"]
        if step < self.last_step:
            raise ValueError(
                f"step={step} comes after step {self.last_step} in {self.path.name}; call "
                f"writers.truncate(workdir, {step - 1}) before the writer opens."
            )
        data = files.line(record)
        written = 0
        try:
            while written < len(data):
                written += os.write(self.file, data[written:])
        except OSError as error:
            if written:  # a disk that fills up in the middle of a line: take the half line back
                with contextlib.suppress(OSError):
                    os.ftruncate(self.file, os.fstat(self.file).st_size - written)
            raise files.explain(error, self.path) from error
        self.last_step = step

    def close(self) -> None:
        os.close(self.file)


def add_line(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Adds one line to a file of lines, in place of what a kill left of another one at its end."""
    descriptor = disk.open_to_append(path)
    try:
        data = disk.read_bytes(path) or b""
        with disk.explained(path):
            os.ftruncate(descriptor, data.rfind(b"\n") + 1)
            line = files.line(record)
            while line:
                line = line[os.write(descriptor, line) :]
    finally:
        os.close(descriptor)


class Writer:
    """Writes the metrics, timings and samples of one run.

    `wandb` is None (off) or the name of a Weights & Biases project. `active=False` (every process but process 0)
    makes all methods do nothing and touches no file. Raises `workdir.WorkdirError` (an OSError) with one sentence on
    a full or read-only disk, ValueError when W&B is asked for and not installed.
    """

    def __init__(
        self, workdir: str | os.PathLike, *, tensorboard: bool = True, wandb: str | None = None, active: bool = True
    ):
        self._active = active
        self._stack = contextlib.ExitStack()
        self._tensorboard = self._wandb = None
        if not active:
            return
        workdir = pathlib.Path(workdir)
        wandb_module = import_wandb(wandb) if wandb else None
        with contextlib.ExitStack() as stack:  # whatever was opened is closed when a later part fails to open
            self._metrics, self._timing, self._samples = (
                self._open_lines(stack, workdir / name) for name in (files.METRICS, files.TIMING, files.SAMPLES)
            )
            if tensorboard:
                self._tensorboard = _open_tensorboard(workdir / files.TENSORBOARD, self._metrics.last_step + 1)
                stack.callback(self._tensorboard.close)
            if wandb_module:
                self._wandb = _open_wandb(wandb_module, workdir, wandb)
                stack.callback(self._wandb.finish)
            self._stack = stack.pop_all()

    @staticmethod
    def _open_lines(stack: contextlib.ExitStack, path: pathlib.Path) -> _Lines:
        lines = _Lines(path)
        stack.callback(lines.close)
        return lines

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """Appends one line of deterministic metrics: the same in every run of this config on this machine."""
        if not self._active:
            return
        leading = {key: values[key] for key in _LEADING if key in values}
        self._metrics.write({"step": int(step)} | leading | values)
        self._mirror(step, values)

    def timing(self, step: int, values: dict[str, Any]) -> None:
        """Appends one line of what differs between two runs: seconds, tokens per second, MFU, memory, waits."""
        if not self._active:
            return
        self._timing.write({"step": int(step)} | values)
        self._mirror(step, {f"timing/{key}": value for key, value in values.items()})

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Appends one generated text: `prompt` as given, `text` the continuation without the prompt."""
        if not self._active:
            return
        self._samples.write({"step": int(step), "prompt": prompt, "text": text})
        if self._tensorboard:
            shown = f"    {prompt}{text}".replace("\n", "\n    ")  # indented: Markdown for "as it is"
            self._tensorboard.add_text("sample", shown.encode("utf-8", "replace").decode("utf-8"), int(step))

    def _mirror(self, step: int, values: dict[str, Any]) -> None:
        numbers = {key: files.revive(files.plain(value, key)) for key, value in values.items()}
        numbers = {key: value for key, value in numbers.items() if isinstance(value, int | float)}
        if self._tensorboard:
            for key, value in numbers.items():
                self._tensorboard.add_scalar(key, value, int(step))
        if self._wandb:
            self._wandb.log(numbers, step=int(step))

    def close(self) -> None:
        """Closes all files; calling it again does nothing."""
        self._active = False
        self._stack.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def _open_tensorboard(folder: pathlib.Path, purge_step: int) -> Any:
    import tensorboardX

    try:
        disk.own_folder(folder)
        starts = len(disk.names(folder))
        # Events of an earlier start at or after purge_step are hidden by TensorBoard: the run repeats those steps.
        # The suffix keeps two starts within one second, which share the file's time stamp, from sharing a file.
        writer = tensorboardX.SummaryWriter(
            str(folder), purge_step=purge_step if starts else None, filename_suffix=f".{starts}"
        )
    except OSError as error:
        raise files.explain(error, folder) from error
    _forgive(writer.file_writer.event_writer._ev_writer)
    return writer


def _forgive(events: Any) -> None:
    """Events are a mirror, written by a thread and at exit, where nobody hears of a full disk: they end, and the run
    tells of it when metrics.jsonl cannot be written.
    """
    for name in ("write_event", "flush", "close"):
        setattr(events, name, functools.partial(_quiet, getattr(events, name)))


def _quiet(call: Any, *args: Any) -> Any:
    try:
        return call(*args)
    except OSError as error:
        logging.log_first_n(logging.WARNING, "events for TensorBoard are not written: %s", 1, error)


def import_wandb(project: str) -> Any:
    """The package of Weights & Biases. ValueError in one sentence where it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ValueError(
            f"wandb={project!r} asks for Weights & Biases, which is not installed; run `pip install wandb` or unset it."
        ) from error


def _open_wandb(module: Any, workdir: pathlib.Path, project: str) -> Any:
    record = files.read_json(workdir / files.CONFIG) or {}
    # The id is the workdir's name and config hash, so that a restarted run continues its own curve.
    name = workdir.resolve().name
    run_id = f"{name}-{record.get('hash', 'run')}"
    return module.init(
        project=project, dir=str(workdir), name=name, id=run_id, resume="allow", config=record.get("config", {})
    )
