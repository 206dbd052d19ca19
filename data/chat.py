"""Chat templates: messages as the text that a model was trained on, rendered in a process that has limits.

A template sees the messages and the names of start and end. One that works on and on, or fills the memory, ends in a
sentence: see `data.chat_worker`.
"""

import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, str]  # {"role": "user", "content": "..."}
SECONDS = 10.0  # CPU seconds of one text.
_WORKER = pathlib.Path(__file__).with_name("chat_worker.py")


def render(template: str, messages: Sequence[Message], *, answer: bool = True, **names: str) -> str:
    """`messages` by `template`; `answer`: with the beginning of the assistant's answer behind them.

    names: bos_token and eos_token. Errors: ValueError with one sentence.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise ValueError("chat templates need jinja2; pip install -r requirements-pretrained.txt.")
    checked = [_message(message) for message in messages]
    asked = {"template": template, "messages": checked, "answer": answer, "names": names, "seconds": SECONDS}
    found = _worker(os.getpid()).ask(asked)
    if "error" in found:
        raise ValueError(f"the chat template refuses these messages: {found['error']}.")
    return found["text"]


def _message(message: Message) -> dict[str, str]:
    if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
        raise ValueError('a message is not an object with texts in "role" and "content".')
    return {key: value for key, value in message.items() if isinstance(value, str)}


@functools.cache
def _worker(process: int) -> "_Worker":
    """The worker of the process of this number: one that was forked has its own."""
    return _Worker()


class _Worker:
    """A process that renders, started when it is first asked and again when it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, str]:
        """The worker's answer, or {"error": why it gave none}."""
        with self._lock:
            if self._process is None:
                self._process = _started()
            try:
                told = self._told(self._process, request)
            except BaseException:  # Ctrl-C: what comes next would be the answer to this.
                self._end(self._process)
                raise
            if told is None:
                self._end(self._process)
                told = {"error": f"it works for longer than {SECONDS:g} seconds, or ends the process that renders it"}
            return told

    def _end(self, process: subprocess.Popen) -> None:
        self._process = None
        process.kill()
        with contextlib.suppress(OSError):  # It may hold bytes that nobody reads any more.
            process.stdin.close()
        process.stdout.close()
        process.wait()

    @staticmethod
    def _told(process: subprocess.Popen, request: Mapping[str, Any]) -> dict[str, str] | None:
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        line = process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None


def _started() -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    process.stdin.write(json.dumps(sys.path).encode() + b"\n")
    return process
