"""What rows that write wait for while a long prompt is read: in chunks beside them, or at once.

    python main.py --mode=bench --bench_filter=serve/

A chunk is read in one pass with the rows' next tokens. Attention to what was read before makes a chunk dearer towards
the end of the prompt, so that chunks become shorter, as `sarathi.Limits.sizes` has it.

Rows that write grow meanwhile, and so does a step of theirs. A control run of the same rows, without the long prompt,
says what the same token takes there ("own"); the other unit is a step of the time before.
Seconds are the process's CPU time. Runs in which something was compiled do not count.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence

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


def against(log: Log, control: Log, near: int = 8) -> list[float]:
    """Gaps while the long prompt is read, over what the same tokens take in `control`, where there is none: the median
    over the rows and over tokens up to `near` places away. A row's rests beyond the control's do not count."""
    *writing, long = log.served.values()
    plain = [np.diff(row.times) for row in control.served.values()]
    shortest = min(map(len, plain))
    whole = np.stack([gaps[:shortest] for gaps in plain])
    unit = [float(np.median(whole[:, max(0, j - near) : j + near + 1])) for j in range(shortest)]
    return [
        (end - begin) / unit[j]
        for row in writing
        for j, (begin, end) in enumerate(zip(row.times, row.times[1:], strict=False))
        if long.admitted < end <= long.times[0] and j < shortest
    ]


def figures(logs: Mapping[str, Log], control: Log | None = None) -> dict[str, float]:
    """By the name of a policy: the median gap before, and in units of it the 99th percentile and the largest while the
    long prompt is read; the time to its first token. With `control` also the percentile of `against`."""
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
        if control is not None:
            found[f"{name}_p99_own_steps"] = float(np.quantile(against(log, control), 0.99))
    return found


def long_prompt(
    held: int, shape: str = "b", *, long: int = 4096, lanes: int = 8, chunks: Sequence[int] = (16, 8)
) -> dict[str, float]:
    """See the module: `lanes` - 1 rows, whose prompts had `held` tokens, write while one of `long` tokens is read:
    under Sarathi in chunks of `chunks` tokens, as far as its parts are read ("chunked"), and first come first served
    ("whole")."""
    steps = sum(-(-long // (len(chunks) * chunk)) for chunk in chunks)
    limits = Limits(sizes=tuple(lanes - 1 + chunk for chunk in chunks), longest=long + 1)
    engine = Engine(endless(shape), lanes=lanes, capacity=long + 64, rounds=1, temperature=0.0)
    policies: dict[str, Callable[[], Scheduler]] = {"chunked": lambda: Late(Sarathi(limits), long), "whole": FirstCome}
    run = lambda make, asked: quiet(lambda: serve(engine, make(), asked)[0], 1)[0]  # noqa: E731
    before = run(FirstCome, prompts(lanes - 1, held, 1, BEFORE, 0.0)[:-1]).makespan
    asked = prompts(lanes - 1, held, long, steps + 2 * BEFORE, before)
    control = run(FirstCome, asked[:-1])
    return figures({name: run(make, asked) for name, make in policies.items()}, control)
