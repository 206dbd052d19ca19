"""Check: what a policy of serving is worth, setup against setup in the simulator, on the same random traces.

Keys of the claim:
  trace: {"arrivals", "rate", "count", "prompt", "output", "spread", "most", "heads", "head"}; see `requests`.
  setups: {name: changes of `Setup`}.
  limits: {"first", "gap", "stall"} in seconds, what good requests keep.
  rows: each with `statement`, `published`, `better` and `worse` (setups), `figure` (a name in `FIGURES`), and, if it
    needs one of its own, `trace` and `limits`, changes of those.
  seeds: of the traces.
Nothing is trained.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.claims.evidence import Evidence, above, interval
from experiments.generation.serving import costs, splitwise, traces
from experiments.generation.serving.costs import Offloaded, StepCost, Work
from experiments.generation.serving.jobs import Asked, Blocks, Job
from experiments.generation.serving.prefix_cache import PrefixCache
from experiments.generation.serving.report import Report, report
from experiments.generation.serving.schedulers import SCHEDULERS
from experiments.generation.serving.simulator import Log, Machine, simulate


@dataclasses.dataclass(frozen=True)
class Setup:
    """What serves a trace.

    Attributes:
      scheduler, options: a name in `SCHEDULERS`, and what it takes.
      past: so many answers of the trace's law ended before it, and the scheduler knows their lengths.
      cost: of a step, in the terms of `costs.NAMES`.
      blocks, block: memory of a machine; tokens of a block.
      cache: whether beginnings are shared among rows.
      read: "" (as the work says), "padded" or "packed": how the prompts of a step lie side by side.
      machines: how many serve all of a request.
      pools: (machines that read, machines that write) in their place.
      writes: cost of those that write; (): `cost`.
      transfer: (bytes of a token, bytes a second, layers) between the pools.
      offloaded: keywords of `costs.Offloaded` but for the model: attention is elsewhere; () of nothing.
      price: of all machines, for `per_price`.
    """

    scheduler: str = "first_come"
    past: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cost: tuple[float, ...] = (0.0,) * 5
    blocks: int = 1 << 20
    block: int = 16
    cache: bool = False
    read: str = ""
    machines: int = 1
    pools: tuple[int, int] = (0, 0)
    writes: tuple[float, ...] = ()
    transfer: tuple[float, float, int] = (0.0, 1.0, 1)
    offloaded: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    price: float = 1.0

    def machine(self, past: Sequence[int] = (), pool: str = "") -> Machine:
        """One of its machines."""
        cost: Callable[[Work], float] = StepCost(self.writes if pool == "token" and self.writes else self.cost)
        if self.offloaded:
            cost = Offloaded(cost, **self.offloaded)
        if self.read:
            shape, plain = getattr(costs, self.read), cost
            cost = lambda work: plain(shape(work))  # noqa: E731
        cache = PrefixCache(self.block) if self.cache else None
        scheduler = SCHEDULERS[self.scheduler](**self.options, **({"past": past} if self.past else {}))
        return Machine(scheduler, cost, Blocks(self.blocks, self.block), cache=cache, pool=pool)

    def serve(self, asked: list[Asked], past: Sequence[int] = ()) -> Log:
        """The log of a trace; past: lengths of answers before it."""
        reads, writes = self.pools
        if not reads:
            return simulate(asked, [self.machine(past) for _ in range(self.machines)])
        machines = [self.machine(past, pool) for pool in ["prompt"] * reads + ["token"] * writes]
        size, bandwidth, layers = self.transfer
        prefill = StepCost(self.cost)

        def seconds(job: Job) -> float:
            """What is left to send when the prompt's pass has ended."""
            alone = prefill(Work(chunks=((job.prompt, 0),)))
            return splitwise.transfer(job.prompt, alone, job.prompt * size, bandwidth, layers) - alone

        return simulate(
            asked, machines, transfer=seconds,
            route=lambda machines, request: splitwise.shortest([machine.pending for machine in machines[:reads]]),
        )  # fmt: skip


FIGURES: dict[str, tuple[str, Callable[[Report, Setup], float]]] = {  # name: (unit, larger is better)
    "goodput": ("requests a second within the limits", lambda r, setup: r.goodput),
    "throughput": ("tokens a second", lambda r, setup: r.tokens),
    "per_price": ("tokens a second for the price", lambda r, setup: r.tokens / setup.price),
    "gap": ("seconds, the 99th percentile of gaps", lambda r, setup: -r.gap[1]),
    "read": ("tokens of prompts that are read", lambda r, setup: -r.read),
    "first": ("seconds to the first token, the median", lambda r, setup: -r.first[0]),
    "preempted": ("preemptions", lambda r, setup: -r.preempted),
}


def requests(trace: Mapping[str, Any], seed: int) -> list[Asked]:
    """A random trace.

    arrivals: "poisson", "bursts" (both at `rate` a second) or "at_once"; prompt, output: mean tokens, log-normal with
    `spread`, at most `most` each. With `heads` prompts begin with one of so many heads of `head` tokens, at random.
    """
    count, most = trace["count"], trace["most"]
    if trace["arrivals"] == "at_once":
        arrivals = [0.0] * count
    else:
        arrivals = {"poisson": traces.poisson, "bursts": traces.bursts}[trace["arrivals"]](trace["rate"], count, seed)
    prompts = traces.lengths(trace["prompt"], trace["spread"], count, 1000 + seed, most=most)
    outputs = traces.lengths(trace["output"], trace["spread"], count, 2000 + seed, most=most)
    asked = traces.asked(arrivals, prompts, outputs, most)
    if not trace.get("heads"):
        return asked
    which = np.random.default_rng(3000 + seed).integers(0, trace["heads"], count)
    ids = [(-1 - int(h),) * trace["head"] + (i,) * r.prompt for i, (h, r) in enumerate(zip(which, asked, strict=True))]
    return [dataclasses.replace(r, prompt=len(tokens), ids=tokens) for r, tokens in zip(asked, ids, strict=True)]


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Serves every row's traces with both setups; writes nothing."""
    served: dict[str, Log] = {}

    def serve(name: str, trace: Mapping[str, Any], seed: int) -> tuple[Log, Setup]:
        setup = Setup(**{**claim["common"], **claim["setups"][name]})
        key = f"{name} {seed} {sorted(trace.items())}"  # Rows with the same traces share their logs.
        if key not in served:
            lengths = traces.lengths(trace["output"], trace["spread"], setup.past, 4000 + seed, most=trace["most"])
            served[key] = setup.serve(requests(trace, seed), lengths)
        return served[key], setup

    return [_row(claim, row, serve) for row in claim["rows"]]


def _row(claim: Mapping[str, Any], row: Mapping[str, Any], serve: Callable[..., tuple[Log, Setup]]) -> Evidence:
    trace = {**claim["trace"], **row.get("trace", {})}
    limits = {**claim["limits"], **row.get("limits", {})}
    unit, of = FIGURES[row["figure"]]
    seeds, values = claim["seeds"], {}
    for name in (row["better"], row["worse"]):
        logs = [serve(name, trace, seed) for seed in seeds]
        values[name] = [of(report(log, **limits), setup) for log, setup in logs]
    better, worse = values[row["better"]], values[row["worse"]]
    mean, low, high = interval([a - b for a, b in zip(better, worse, strict=True)])
    means = {name: abs(sum(v) / len(seeds)) for name, v in values.items()}
    shown = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
    times = means[row["better"]] / means[row["worse"]] if means[row["worse"]] else float("inf")
    return Evidence(
        statement=row["statement"],
        published=row["published"],
        measured=f"{unit}: {shown} ({times:.2f} times); better by {mean:.3g} [{low:.3g}, {high:.3g}]",
        scale=f"simulated, {trace['count']} requests, {len(seeds)} traces",
        verdict=above(low, high),
        numbers={
            "seeds": list(seeds), "better": better, "worse": worse, "mean": mean, "low": low, "high": high,
            "trace": trace, "limits": limits,
        },
    )  # fmt: skip
