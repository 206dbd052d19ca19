"""What HTTP costs: CPU time of the server beside that of its engine used directly, on the same requests.

    python -m experiments.serving.throughput --shape=b --lanes=8 --requests=24

Both read prompts of 64 ids and draw as many tokens for each; the texts are compared. Clients run in this process and
are not counted. A ratio of 1 says that the server takes no more CPU time than the engine alone.
"""

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import socket
import statistics
import time
import urllib.error
import urllib.request

import numpy as np

from data import ByteTokenizer
from experiments.bench.decoding import endless
from experiments.generation import requests
from experiments.generation.engine import Engine
from experiments.serving import server

PROMPT = 64  # ids of each prompt
BOS, SEED = ByteTokenizer().bos, 5


def prompts(count: int) -> list[list[int]]:
    """Ids of each prompt, the start of a document in front: bytes of letters."""
    drawn = np.random.default_rng(0).integers(97, 123, (count, PROMPT - 1))
    return [[BOS, *map(int, row)] for row in drawn]


def directly(engine: Engine, asked: list[list[int]], tokens: int) -> tuple[float, list[str]]:
    """(CPU seconds, texts) of the engine in this process."""
    began, texts = time.process_time(), {}
    for ids in asked:
        number = requests.number(engine.tokenizer.decode(ids), 0)
        texts[engine.admit(np.asarray(ids, np.int32), seed=SEED, number=number, max_tokens=tokens)] = ""
    for result in engine.results():
        texts[result.id] = result.text
    return time.process_time() - began, list(texts.values())


class Client:
    """A client of the server at an address; `cpu` says what its processes have used."""

    def __init__(self, url: str):
        self.url = url

    def get(self, path: str) -> str:
        """The text of a page."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=600) as answer:
            return answer.read().decode()

    def cpu(self) -> float:
        """CPU seconds of both processes of the server."""
        lines = dict(line.rsplit(" ", 1) for line in self.get("/metrics").splitlines() if not line.startswith("#"))
        return sum(float(lines[f"tessera_{name}_cpu_seconds_total"]) for name in ("engine", "http"))

    def written(self, ids: list[int], tokens: int, streamed: bool) -> str:
        """A text, whole or in pieces."""
        body = {"prompt": ids, "max_tokens": tokens, "seed": SEED, "stream": streamed}
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{self.url}/v1/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(asked, timeout=600) as answer:
            if not streamed:
                return json.loads(answer.read())["choices"][0]["text"]
            lines = [line[6:] for line in answer if line.startswith(b"data: {")]
        return "".join(json.loads(line)["choices"][0]["text"] for line in lines)

    def served(self, asked: list[list[int]], tokens: int, streamed: bool) -> tuple[float, list[str]]:
        """(CPU seconds, texts) of all requests at once."""
        began = self.cpu()
        with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
            texts = list(pool.map(lambda ids: self.written(ids, tokens, streamed), asked))
        return self.cpu() - began, texts


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def measured(shape: str, lanes: int, count: int, tokens: int, repeats: int) -> dict[str, list[float]]:
    """CPU seconds by how texts were made, `repeats` of each in turn, behind one of each that compiles.

    Errors: AssertionError where the server's texts are not the engine's.
    """
    serving = server.Serving("bench", port=free_port(), lanes=lanes, queue=count)
    process = multiprocessing.get_context("spawn").Process(
        target=server.serve, args=(functools.partial(endless, shape), serving)
    )
    process.start()
    client, asked = Client(serving.url(serving.port)), prompts(count)
    try:
        engine = Engine(endless(shape), lanes=lanes)
        while "ok" not in _health(client):
            assert process.is_alive(), "the server ended before it had begun."
            time.sleep(0.2)
        ways = {
            "engine": lambda: directly(engine, asked, tokens),
            "server": lambda: client.served(asked, tokens, False),
            "server, streams": lambda: client.served(asked, tokens, True),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(repeats + 1):
            made = {name: way() for name, way in ways.items()}
            texts = [texts for _, texts in made.values()]
            assert all(one == texts[0] for one in texts), "the server's texts are not those of its engine."
            for name, (seconds, _) in made.items() if repeat else ():
                found[name].append(seconds)
        return found
    finally:
        process.terminate()
        process.join()


def _health(client: Client) -> str:
    try:
        return client.get("/health")
    except (urllib.error.URLError, ConnectionError):
        return ""


def main() -> None:
    """See the module's docstring."""
    flags = argparse.ArgumentParser(prog="python -m experiments.serving.throughput")
    flags.add_argument("--shape", choices=("a", "b"), default="b")
    for name, plain in (("lanes", 8), ("requests", 24), ("tokens", 128), ("repeats", 3)):
        flags.add_argument(f"--{name}", type=int, default=plain)
    given = flags.parse_args()
    found = measured(given.shape, given.lanes, given.requests, given.tokens, given.repeats)
    alone = statistics.median(found["engine"])
    for name, seconds in found.items():
        runs = ", ".join(f"{value:.2f}" for value in seconds)
        middle = statistics.median(seconds)
        print(f"{name:<16} {runs} CPU s; {given.requests * given.tokens / middle:,.0f} tokens a CPU second", end="")
        print(f"; {alone / middle:.3f}x of the engine" if name != "engine" else "")


if __name__ == "__main__":
    main()
