"""Who asks when, for how much: arrivals at random, in bursts, or from a file."""

import json
import math
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from experiments.generation.serving.jobs import Asked
from experiments.workdir import disk


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Arrivals `[count]`: independent exponential gaps of mean 1 / rate seconds."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count)).tolist()


def bursts(rate: float, count: int, seed: int, *, size: int = 8) -> list[float]:
    """Arrivals `[count]`: `size` at a time, bursts as `poisson` with rate / size, so that the mean rate is the same."""
    starts = poisson(rate / size, math.ceil(count / size), seed)
    return [start for start in starts for _ in range(size)][:count]


def lengths(mean: float, spread: float, count: int, seed: int, *, most: int) -> list[int]:
    """Numbers of tokens `[count]`: log-normal with this mean, `spread` the deviation of its logarithm, in 1..most."""
    drawn = np.random.default_rng(seed).lognormal(math.log(mean) - spread**2 / 2, spread, count)
    return np.clip(np.rint(drawn), 1, most).astype(int).tolist()


def asked(arrivals: Sequence[float], prompts: Sequence[int], outputs: Sequence[int], most: int = 0) -> list[Asked]:
    """Requests numbered in the order given; `most`: of each, 0: its output."""
    rows = zip(arrivals, prompts, outputs, strict=True)
    return [Asked(i, float(a), int(p), int(o), most) for i, (a, p, o) in enumerate(rows)]


def read(path: str | pathlib.Path) -> list[Asked]:
    """A trace of JSON lines {"arrival": seconds, "prompt": tokens, "output": tokens}, also "most" and "ids".

    Errors: ValueError that names the line.
    """
    found = []
    for number, line in enumerate(pathlib.Path(path).read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            made = Asked(
                len(found),
                float(row["arrival"]),
                int(row["prompt"]),
                int(row["output"]),
                int(row.get("most", 0)),
                tuple(row.get("ids", ())),
            )
        except (KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"{path}, line {number}: {problem}; write e.g. {EXAMPLE}") from None
        if not (made.arrival >= 0 and made.prompt >= 0 and made.output >= 1 and made.limit >= made.output):
            raise ValueError(f"{path}, line {number}: numbers are out of range; write e.g. {EXAMPLE}")
        found.append(made)
    return found


EXAMPLE = '{"arrival": 0.5, "prompt": 200, "output": 30}'


def write(path: str | pathlib.Path, requests: Iterable[Asked]) -> None:
    """A trace as `read` reads it."""
    rows = ({"arrival": r.arrival, "prompt": r.prompt, "output": r.output, "most": r.most} for r in requests)
    disk.write_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
