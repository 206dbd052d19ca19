"""A file of prompts over lanes: rows are written as they end, and what was killed goes on where it was."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from data import conversations
from experiments.generation import requests
from experiments.generation.chatting import spoken_to
from experiments.generation.decoder import Decoder
from experiments.generation.engine import Engine
from experiments.generation.request import Result
from experiments.settings.errors import ConfigError, Refused
from experiments.workdir import disk, states

FIELDS = {"index": int, "prompt": str, "text": str, "reason": str, "tokens": int, "calls": int, "settings": str}
_BEGIN = b'{"index": '  # Of every line: a file that ends in anything else is somebody's, and is left as it is.


def write(trained: Any, prompts: Sequence[str], output: str) -> int:
    """Continues every prompt, a line of JSON each, in `output`; how many of them failed.

    A line has the keys of `FIELDS`: which prompt (from 0) and its text, what was written, why it ended (see
    `request.Result`), tokens that were drawn, passes of the model, and a hash of all that decides the text.

    Args:
      trained: of `experiments.workdir.trained.load`; its `config.generate` holds the settings.
      prompts: in the order of the file; one that comes twice is two requests.
      output: the file. Rows that stand in it are not made again; a line that was cut off is.

    Errors: ConfigError before anything is read for a prompt that does not fit; Refused for an output of something else.
    """
    engine = made(trained, prompts)
    with contextlib.closing(Rows(output, prompts, digest(trained, engine))) as rows:
        left = [i for i in range(len(prompts)) if i not in rows.finished]
        for index, result in _ended(engine, prompts, left, "resumed, " if rows.finished else ""):
            rows.add(index, result)
        return rows.failed


def show(trained: Any, prompts: Sequence[str], say: Callable[[int, str], None]) -> None:
    """Continues every prompt; `say(index, text)` in their order, each as soon as those before it are there."""
    engine, held, following = made(trained, prompts), {}, 0
    for index, result in _ended(engine, prompts, range(len(prompts)), ""):
        held[index] = result.text if not result.failed else f"{result.text}\n[not finished: {result.reason}]"
        while following in held:
            say(following, held.pop(following))
            following += 1


def made(trained: Any, prompts: Sequence[str]) -> Engine:
    """An engine with the lanes of `generate.engine`, as wide as the longest prompt needs, or as its capacity says."""
    options, devices = trained.config.generate.to_dict(), Decoder(trained.program, trained.tokenizer).devices
    lanes = -(-min(options["engine"]["lanes"], len(prompts)) // devices) * devices
    capacity = options["engine"]["capacity"]
    tokenizer = spoken_to(trained.tokenizer, options["chat"], trained.config.data.template)
    requests.check_length(trained.program, tokenizer, prompts, options["max_tokens"])
    lengths = [len(requests.encode(tokenizer, prompt)) + options["max_tokens"] for prompt in prompts]
    if capacity and max(lengths) > capacity:
        worst = int(np.argmax(lengths))
        raise ConfigError([
            f"prompt {worst + 1} has {lengths[worst] - options['max_tokens']} tokens and generate.max_tokens="
            f"{options['max_tokens']} more do not fit generate.engine.capacity={capacity}; use e.g. "
            f"generate.engine.capacity={lengths[worst]}."
        ])  # fmt: skip
    return Engine(trained, lanes=lanes, capacity=capacity or max(lengths))


def _ended(engine: Engine, prompts: Sequence[str], chosen: Sequence[int], how: str) -> Iterator[tuple[int, Result]]:
    """(index, result) of the chosen prompts as they end, with progress on stderr. Keys are those of the whole file."""
    numbers = np.asarray(requests.rows(prompts))
    ids = engine.admit_all([prompts[i] for i in chosen], numbers=[int(numbers[i]) for i in chosen])
    index = dict(zip(ids, chosen, strict=True))
    with Shown(len(prompts), len(prompts) - len(chosen), how) as shown:
        for result in engine.results():
            yield index[result.id], result
            shown.update(engine.drawn)


def digest(trained: Any, engine: Engine) -> str:
    """12 hex digits of what a text depends on, beside its prompt: settings, seed, tokenizer, the parameters of the
    model and of those that are read beside it, and the files that settings name."""
    generate = {key: value for key, value in trained.config.generate.to_dict().items() if key != "engine"}
    said = json.dumps([generate, trained.config.seed, trained.tokenizer.hash, int(trained.step)], sort_keys=True)
    made = hashlib.sha256(said.encode() + states.marks(trained.params))
    for name in sorted(engine.weights.keys() - {"model"}):
        made.update(name.encode() + states.marks(engine.weights[name]))
    if "vectors" in generate["control"] and (vectors := generate["vectors"]["path"]):
        with contextlib.suppress(OSError):  # Whoever reads it says so.
            made.update(pathlib.Path(vectors).read_bytes())
    if generate["chat"] and (template := trained.config.data.template):
        made.update(conversations.template_of(template).encode())
    return made.hexdigest()[:12]


class Rows:
    """The lines of an output: those that are whole when it is opened, and more.

    Attributes:
      finished: indices of prompts with a line.
      failed: how many of them failed.
    """

    def __init__(self, path: str, prompts: Sequence[str], settings: str):
        self.path, self.prompts, self.settings = pathlib.Path(path).expanduser(), prompts, settings
        self.finished: set[int] = set()
        self.failed = 0
        self.file = disk.open_to_append(self.path)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.file)
            raise Refused(f"--output={path} is being written by another process; wait for it to end.") from None
        try:
            data = disk.read_bytes(self.path) or b""
            whole = data[: data.rfind(b"\n") + 1]
            for number, line in enumerate(whole.splitlines(), 1):
                self._take(number, line)
            rest = data[len(whole) :]
            if rest[: len(_BEGIN)] != _BEGIN[: len(rest)]:
                raise Refused(f"--output={self.path}: its end is no line of generate's; give a new file.")
            os.ftruncate(self.file, len(whole))  # What a kill cut off is made again.
        except BaseException:
            self.close()
            raise

    def _take(self, number: int, line: bytes) -> None:
        try:
            row = disk.parsed(line)
        except (ValueError, RecursionError):
            row = None
        right = isinstance(row, dict) and row.keys() == FIELDS.keys()
        if not right or any(type(row[key]) is not kind for key, kind in FIELDS.items()):
            raise Refused(f"--output={self.path}: line {number} is none of generate's; give a new file.")
        index = row["index"]
        if not 0 <= index < len(self.prompts) or self.prompts[index] != row["prompt"]:
            raise Refused(
                f"--output={self.path}: line {number} is of other prompts; give a new file, or those prompts."
            )
        if row["settings"] != self.settings:
            raise Refused(
                f"--output={self.path}: line {number} was made with another model, seed or settings; give a new file."
            )
        self.finished.add(index)
        self.failed += _failed(row["reason"])

    def add(self, index: int, result: Result) -> None:
        """Writes one line, at once."""
        row = (index, self.prompts[index], result.text, result.reason, len(result.tokens), result.calls, self.settings)
        line = json.dumps(dict(zip(FIELDS, row, strict=True))).encode() + b"\n"
        with disk.explained(self.path):
            while line:
                line = line[os.write(self.file, line) :]
        self.finished.add(index)
        self.failed += result.failed

    def close(self) -> None:
        """Gives the file back."""
        os.close(self.file)


def _failed(reason: str) -> bool:
    return Result(0, "", (), reason, 0).failed


class Shown:
    """How many of `total` prompts are done, tokens a second and the time left: a bar on a terminal, else lines."""

    def __init__(self, total: int, before: int, how: str, *, every: float = 5.0):
        self.console = Console(stderr=True, soft_wrap=True, highlight=False)
        self.total, self.before, self.how, self.every = total, before, how, every
        self.done, self.begun = before, time.monotonic()
        self.said = self.begun
        self.bar: Bar | None = None

    def __enter__(self) -> "Shown":
        if sys.stderr.isatty():
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self.bar = Bar(*columns, console=self.console)
            self.task = self.bar.add_task("compiling", total=self.total, completed=self.before)
            self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, drawn: int) -> None:
        """One more prompt is done; `drawn`: tokens of all rows since the beginning."""
        self.done += 1
        now = time.monotonic()
        if self.bar:
            self.bar.update(self.task, completed=self.done, description=self.text(drawn, now - self.begun))
        elif now - self.said > self.every or self.done == self.total:
            self.said = now
            self.console.print(self.text(drawn, now - self.begun))

    def text(self, drawn: int, seconds: float) -> str:
        """The line after so many seconds."""
        left = seconds / max(1, self.done - self.before) * (self.total - self.done)
        time_left = f"{left / 60:.0f} min left" if left > 90 else f"{left:.0f} s left"
        rate = drawn / max(seconds, 1e-9)
        return f"{self.how}{self.done:,}/{self.total:,} prompts  {rate:,.0f} tokens/s  {time_left}"


__all__ = ["FIELDS", "digest", "made", "show", "write"]
