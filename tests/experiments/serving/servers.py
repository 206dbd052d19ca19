"""A server of a tiny run, as a user starts it, and what its tests ask of it."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from experiments.training import train
from tests import environment
from tests.experiments import tiny

ROOT = pathlib.Path(__file__).resolve().parents[3]
LANES, QUEUE, CAPACITY, TOKENS, NAME = 4, 32, 192, 24, "tiny-run"
SETTINGS = (
    f"--config.generate.engine.lanes={LANES}", f"--config.generate.engine.queue={QUEUE}",
    f"--config.generate.engine.capacity={CAPACITY}", f"--config.generate.max_tokens={TOKENS}",
)  # fmt: skip


def trained(folder: pathlib.Path) -> pathlib.Path:
    """The workdir of a run on short conversations, whose choices are sharp."""
    lines = [{"instruction": f"say {i}", "output": "äx€" * (i % 9 + 1)} for i in range(80)]
    (folder / "talks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    chat = {"data__source": "chat", "data__path": str(folder / "talks.jsonl"), "data__template": "chatml"}
    sharp = {"model__init": "fan_in", "model__init_std": 0.3}
    train(tiny.config(folder, **chat, **sharp, data__length=64, train__steps=4), folder / NAME, quiet=True)
    return folder / NAME


@dataclasses.dataclass
class Server:
    """A server under way: where it is, its process, and the workdir of its model."""

    url: str
    process: subprocess.Popen
    workdir: pathlib.Path

    def end(self) -> int:
        """Ends it as a service manager does; its code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def environ() -> dict[str, str]:
    """Of its processes."""
    return environment.child() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def started(workdir: pathlib.Path, *flags: str, **more: str) -> Server:
    """Starts one and waits until it says where it is."""
    command = [sys.executable, "main.py", "--mode=serve", f"--workdir={workdir}", "--port=0", *SETTINGS, *flags]
    process = subprocess.Popen(command, cwd=ROOT, env=environ() | more, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    where = re.search(r"http://\S+", line)
    assert where, (line, process.poll())
    return Server(where[0], process, workdir)


def until(true, seconds: float = 30.0) -> None:
    """Waits until something is true; an error where it never is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ask(server: Server, path: str = "/v1/completions", **body):
    """The answer to a body."""
    import httpx

    return httpx.post(f"{server.url}{path}", json=body, timeout=120)


def text(server: Server, prompt, **more) -> str:
    """The text behind a prompt, of seed 7."""
    answer = ask(server, **{"prompt": prompt, "seed": 7} | more)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def busy(server: Server) -> tuple[int, int]:
    """(texts in lanes, texts under way) by the server's figures."""
    import httpx

    page = httpx.get(f"{server.url}/metrics").text
    value = lambda name: int(page.split(f"\ntessera_{name} ")[1].split("\n")[0])  # noqa: E731
    return value("texts_running"), value("texts_under_way")
