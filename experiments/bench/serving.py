"""The simulator of serving beside the engine: costs fitted to measured steps, then the same traces on both.

    python -m experiments.bench.serving --shape=a --scheduler=sarathi

The engine serves traces of calibration; its steps' seconds give `costs.fit` (with the error on held-out steps). Three
other traces, at a rate near what the engine can do and with a pool smaller than the load, run twice on the engine and
once in the simulator. The two kinds take turns. The table has the makespan, the median time to the first token and the
median gap. Runs in which something was compiled do not count.

Seconds are the process's CPU time at one speed of the machine (`timing.Steady`): others make it faster or slower by a
tenth from one second to the next, and at such rates a few per cent of a step are many of the time to the first token.

With the seconds that the engine's steps took, one after another, the simulator must make the engine's plans and times
exactly: what is left between the two is what a step is said to cost.
"""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.decoding import endless
from experiments.bench.timing import Steady, quiet
from experiments.generation.engine import BESIDE, Engine
from experiments.generation.pool import Pool
from experiments.generation.prefixes import pieces
from experiments.generation.serving import costs, traces
from experiments.generation.serving.costs import Fitted, Work
from experiments.generation.serving.driven import Prompt, serve
from experiments.generation.serving.jobs import Asked, Scheduler, Slots
from experiments.generation.serving.report import Report, report
from experiments.generation.serving.schedulers import SCHEDULERS
from experiments.generation.serving.simulator import Log, Machine, simulate
from experiments.workdir import disk

TRACES: dict[str, Callable[[float, int, int], list[float]]] = {
    "poisson": traces.poisson,
    "bursts": traces.bursts,
    "even": lambda rate, count, seed: [i / rate for i in range(count)],
}
FIGURES: dict[str, Callable[[Report], float]] = {
    "makespan": lambda r: r.makespan,
    "first token": lambda r: r.first[0],
    "gap": lambda r: r.gap[0],
}


def engine_terms(pool: Pool, chunk: int) -> Callable[[Work], np.ndarray]:
    """Terms of a step of the engine: what its static shapes make of the work.

    (1, a pass of decoding, its rows, rows x slots, passes for pieces of prompts alone, tokens of pieces with padding,
    these x slots of the row, prompts that end, slots of the rows that are moved) `[9]`. A row is moved where it takes a
    lane, and where more is read of its prompt than it has slots for.
    """

    def read(n: int, before: int) -> tuple[list[int], int]:
        """Sizes of the pieces, slots of the row."""
        sizes, end = [], 0
        for used, size in pieces(n, chunk):
            sizes.append(size)
            end, before = max(end, before + size), before + used
        return sizes, pool.room(end)

    def terms(work: Work) -> np.ndarray:
        needs = [context + 2 for context in (*work.decodes, *work.joins)]
        shape = pool.shape(len(needs), max(needs)) if needs else None
        rows, slots = (shape.rows, shape.slots) if shape else (0, 0)
        made = [read(n, before) for n, before in work.chunks]
        sizes = [size for some, _ in made for size in some]
        area = sum(sum(some) * room for some, room in made)
        beside = bool(work.decodes) and any(size <= BESIDE for size in sizes)
        grown = [room for (_, room), (_, before) in zip(made, work.chunks, strict=True) if pool.room(before) < room]
        moved = (len(work.joins) + work.moves) * slots + sum(grown)
        passes = float(bool(work.decodes))
        shares = [1, passes, rows, rows * slots, len(sizes) - beside, sum(sizes), area, len(work.joins), moved]
        return np.array(shares, np.float64)

    return terms


def made_engine(shape: str, *, lanes: int, capacity: int, pool: int, chunk: int) -> Engine:
    """An engine on a bench shape's Transformer, not trained: what a step costs does not depend on the numbers."""
    return Engine(endless(shape), lanes=lanes, capacity=capacity, pool=pool, chunk=chunk, rounds=1, temperature=0.0)


def drawn(count: int, seed: int, capacity: int) -> tuple[list[str], list[int]]:
    """Prompts and lengths of answers for a trace, together within `capacity`."""
    rng = np.random.default_rng(seed)
    prompts = traces.lengths(capacity / 5, 0.7, count, seed, most=capacity // 2)
    outputs = traces.lengths(capacity / 8, 0.7, count, seed + 1, most=capacity // 2 - 2)
    return ["".join(map(chr, rng.integers(97, 123, n))) for n in prompts], outputs


@dataclasses.dataclass(frozen=True)
class Pair:
    """An engine and the scheduler that both it and the simulator have; seconds of the engine's steps go by `clock`."""

    engine: Engine
    make: Callable[[], Scheduler]
    clock: Callable[[], float]

    def on_engine(self, arrivals: Sequence[float], seed: int) -> Log:
        """A trace of `drawn` requests on the engine, in a run in which nothing was compiled."""
        prompts, outputs = drawn(len(arrivals), seed, self.engine.pool.capacity)
        asked = zip(prompts, arrivals, outputs, strict=True)
        made = [Prompt(p, a, {"max_tokens": n}, number=0) for p, a, n in asked]
        return quiet(lambda: serve(self.engine, self.make(), made, clock=self.clock)[0], 1)[0]

    def in_simulator(self, requests: Sequence[Asked], cost: Callable[[Work], float]) -> Log:
        """Requests in the simulator."""
        return simulate(requests, [Machine(self.make(), cost, Slots(self.engine.pool), lag=0, keeps=True)])

    def same(self, log: Log) -> bool:
        """Whether the simulator, given the seconds of the engine's steps, makes its plans, work and times."""
        seconds = iter([step.seconds for step in log.steps])
        made = self.in_simulator([each.asked for each in log.served.values()], lambda work: next(seconds))
        plans = [[(s.start, s.plan, s.work, s.used) for s in each.steps] for each in (made, log)]
        times = [{id: served.times for id, served in each.served.items()} for each in (made, log)]
        return plans[0] == plans[1] and times[0] == times[1]


def fixed_work(width: int = 256, layers: int = 6) -> Callable[[], object]:
    """What the clock's machine does between steps: products as those of a small model's pass over 8 tokens."""
    kernels = [jax.random.normal(jax.random.key(i), (width, 4 * width)) for i in range(layers)]

    @jax.jit
    def run(x: jax.Array) -> jax.Array:
        for kernel in kernels:
            x = jnp.tanh(x @ kernel) @ kernel.T / width
        return x

    return lambda: jax.block_until_ready(run(jnp.ones((8, width))))


def within(engine: float, again: float, simulated: float) -> bool:
    """Whether the simulator is within 10 % of the mean of two runs, or as near to it as these are to each other."""
    mean = (engine + again) / 2
    return abs(simulated - mean) <= max(0.1 * mean, abs(engine - again))


def run(shape: str, scheduler: str, count: int, *, lanes: int = 8, capacity: int = 320, load: float = 0.9) -> dict:
    """Fits, compares, prints; see the module."""
    engine = made_engine(shape, lanes=lanes, capacity=capacity, pool=lanes * capacity // 2, chunk=128)
    pair = Pair(engine, SCHEDULERS[scheduler], Steady(fixed_work()))
    rate = load * count / pair.on_engine([0.0] * count, 0).makespan
    measured, served = [], {name: [] for name in TRACES}
    for turn in (10, 20, 30):  # Before, between and behind the two runs.
        for number, (name, arrive) in enumerate(TRACES.items()):
            measured.append(pair.on_engine(arrive(rate, count, turn + number), turn + number))
            if turn < 30:
                served[name].append(pair.on_engine(arrive(rate, count, 100 + number), 100 + number))
    logs = [*measured, *(log for each in served.values() for log in each)]
    same = sum(pair.same(log) for log in logs)
    print(
        f"with the engine's own seconds the simulator's plans, work and times are the engine's in {same} of {len(logs)}"
    )
    steps = [step for log in measured for step in log.steps]
    fitted = costs.fit([s.work for s in steps], [s.seconds for s in steps], engine_terms(engine.pool, engine.chunk))
    mean = statistics.mean(step.seconds for step in steps)
    print(f"{len(steps)} steps of {mean:.4f} seconds; error on held-out steps {fitted.error:.1%}")
    found = {"shape": shape, "scheduler": scheduler, "steps": len(steps), "error": fitted.error, "same": same}
    return found | {"traces": {name: _compared(pair, name, logs, fitted) for name, logs in served.items()}}


def _compared(pair: Pair, name: str, logs: Sequence[Log], fitted: Fitted) -> dict:
    """Prints the figures of two runs and of the simulator."""
    made = pair.in_simulator([each.asked for each in logs[0].served.values()], fitted.cost)
    reports = [report(log) for log in (*logs, made)]
    found: dict = {figure: [of(each) for each in reports] for figure, of in FIGURES.items()}
    for figure, (one, two, ours) in found.items():
        off, mark = 2 * ours / (one + two) - 1, "" if within(one, two, ours) else "  beyond 10 % and the spread"
        print(f"{name:8} {figure:12} engine {one:.4f} {two:.4f}  simulator {ours:.4f} {off:+.1%}{mark}")
    return found | {"preempted": [each.preempted for each in reports]}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="a", choices=("a", "b"))
    parser.add_argument("--scheduler", default="sarathi", choices=sorted(SCHEDULERS))
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--json", default="", help="a file for the figures")
    given = parser.parse_args()
    found = run(given.shape, given.scheduler, given.count)
    if given.json:
        disk.write_file(given.json, json.dumps(found, indent=1).encode())


if __name__ == "__main__":
    main()
