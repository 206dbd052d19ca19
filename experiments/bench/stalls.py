"""What rows that write wait for while a long prompt is read: in chunks beside them, or at once.

    python main.py --mode=bench --bench_filter=serve/

A step of the engine reads a chunk in a pass of its own, so that beside rows with short texts, whose own pass is cheap,
it weighs more.
Seconds are the process's CPU time. Runs in which something was compiled do not count.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping

import numpy as np

from experiments.bench.decoding import endless
from experiments.bench.timing import quiet
from experiments.generation.engine import Engine
from experiments.generation.serving.driven import Prompt, serve
from experiments.generation.serving.jobs import Job, Scheduler, Seen
from experiments.generation.serving.plan import StepPlan
from experiments.generation.serving.sarathi import Limits
from experiments.generation.serving.schedulers import FirstCome, Sarathi
from experiments.generation.serving.simulator import Log

BEFORE = 32  # tokens that the rows write, about, before the long prompt comes


@dataclasses.dataclass
class Late:
    """First come first served until a prompt of `long` tokens is there: then `policy`."""

    policy: Scheduler
    long: int

    def step(self, seen: Seen) -> StepPlan:
        """See the class."""
        late = any(job.prompt >= self.long for job in (*seen.waiting, *seen.active))
        return (self.policy if late else FirstCome()).step(seen)

    def ended(self, job: Job) -> None:
        """The policy is told."""
        self.policy.ended(job)


def prompts(count: int, held: int, long: int, tokens: int, seconds: float) -> list[Prompt]:
    """`count` prompts of `held` tokens at once, each with `tokens` to write; one of `long` comes after `seconds`."""
    rng = np.random.default_rng(0)
    text = lambda n: "".join(map(chr, rng.integers(97, 123, n)))  # noqa: E731
    made = [Prompt(text(held), 0.0, {"max_tokens": tokens}, number=i) for i in range(count)]
    return [*made, Prompt(text(long), seconds, {"max_tokens": 2}, number=count)]


def stalls(log: Log) -> tuple[list[float], list[float], float]:
    """Gaps of the rows that write: before the last request was begun, and from then to its first token; the time to
    that, in seconds. A gap counts where its end lies in the time."""
    *writing, long = log.served.values()
    ends = [(end, end - begin) for row in writing for begin, end in zip(row.times, row.times[1:], strict=False)]
    before = [gap for end, gap in ends if end <= long.admitted]
    return before, [gap for end, gap in ends if long.admitted < end <= long.times[0]], long.first


def figures(logs: Mapping[str, Log]) -> dict[str, float]:
    """By the name of a policy: the median gap before, and in units of it the 99th percentile and the largest while the
    long prompt is read; the time to its first token."""
    found: dict[str, float] = {}
    for name, log in logs.items():
        before, during, first = stalls(log)
        step = statistics.median(before)
        found |= {
            f"{name}_step_ms": 1e3 * step,
            f"{name}_p99_steps": float(np.quantile(during, 0.99)) / step,
            f"{name}_largest_steps": max(during) / step,
            f"{name}_first_token_s": first,
        }
    return found


def long_prompt(held: int, shape: str = "b", *, long: int = 4096, lanes: int = 8, chunk: int = 16) -> dict[str, float]:
    """See the module: `lanes` - 1 rows, whose prompts had `held` tokens, write while one of `long` tokens is read:
    under Sarathi in chunks of `chunk` tokens ("chunked"), and first come first served ("whole")."""
    steps, budget = -(-long // chunk), lanes - 1 + chunk
    engine = Engine(endless(shape), lanes=lanes, capacity=long + 64, rounds=1, temperature=0.0)
    policies: dict[str, Callable[[], Scheduler]] = {
        "chunked": lambda: Late(Sarathi(Limits(budget=budget)), long),
        "whole": FirstCome,
    }
    probe = prompts(lanes - 1, held, 1, BEFORE, 0.0)[:-1]
    make = policies["whole"]
    before = quiet(lambda: serve(engine, make(), probe)[0], 1)[0].makespan
    asked = prompts(lanes - 1, held, long, steps + 2 * BEFORE, before)
    run = lambda make: quiet(lambda: serve(engine, make(), asked)[0], 1)[0]  # noqa: E731
    return figures({name: run(make) for name, make in policies.items()})
