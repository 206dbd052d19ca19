"""A simulator of serving by discrete events: machines whose steps a scheduler plans and a cost function times.

    machine = Machine(Sarathi(), StepCost((2e-3, 1e-5, 1e-8, 1e-9, 1e-5)), Blocks(4096, 16))
    log = simulate(traces.asked(traces.poisson(5, 100, 0), [200] * 100, [50] * 100), [machine])
    report(log, first=0.5, gap=0.05)

The same trace gives the same log. A plan that cannot be is an error, so that every run is a test of its policy: memory
is never exceeded, no token is read or written twice, each request ends once.
"""

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from experiments.generation.serving.costs import Work
from experiments.generation.serving.jobs import Asked, Job, Memory, Scheduler, Seen
from experiments.generation.serving.plan import StepPlan
from experiments.generation.serving.prefix_cache import PrefixCache


@dataclasses.dataclass
class Machine:
    """One engine.

    Attributes:
      scheduler: who plans its steps.
      cost: Work -> seconds of a step.
      memory: what its rows may hold together.
      lag: see `Job.lag`.
      keeps: whether preempted rows keep what was read and written, outside of the memory, as the engine's do.
      cache: beginnings of prompts that were read before; takes what rows leave of a memory of `Blocks`.
      pool: "" for all of a request, "prompt" where the first token ends its part, "token" where the rest is written.
    """

    scheduler: Scheduler
    cost: Callable[[Work], float]
    memory: Memory
    lag: int = 1
    keeps: bool = False
    cache: PrefixCache | None = None
    pool: str = ""
    waiting: list[Job] = dataclasses.field(default_factory=list)
    active: dict[int, Job] = dataclasses.field(default_factory=dict)
    leaving: dict[int, Job] = dataclasses.field(default_factory=dict)  # sent away, their memory not yet free
    busy: bool = False
    reading: dict[int, int] = dataclasses.field(default_factory=dict)  # chunks of the step under way

    @property
    def jobs(self) -> list[Job]:
        """All that are here."""
        return [*self.waiting, *self.active.values()]

    @property
    def pending(self) -> int:
        """Tokens that wait: of prompts, the step under way included, and one of each row that writes."""
        return sum(job.prompt - job.read + self.reading.get(job.id, 0) or 1 for job in self.jobs)


@dataclasses.dataclass
class Served:
    """What became of a request: times in seconds.

    Attributes:
      asked: as it came.
      admitted: when its prompt was begun.
      times: of its tokens.
      preempted: how often.
      again: tokens that were read a second time.
      hit: tokens of its prompt that were found in a cache.
    """

    asked: Asked
    admitted: float = -1.0
    times: list[float] = dataclasses.field(default_factory=list)
    preempted: int = 0
    again: int = 0
    hit: int = 0

    @property
    def first(self) -> float:
        """Time to the first token."""
        return self.times[0] - self.asked.arrival

    @property
    def queued(self) -> float:
        """Time until its prompt was begun."""
        return self.admitted - self.asked.arrival

    @property
    def gaps(self) -> list[float]:
        """Between its tokens."""
        return [b - a for a, b in itertools.pairwise(self.times)]


@dataclasses.dataclass(frozen=True)
class Step:
    """A step: its machine's number, start, seconds, plan, work, and the memory that was used when it ended."""

    machine: int
    start: float
    seconds: float
    plan: StepPlan
    work: Work
    used: int


@dataclasses.dataclass
class Log:
    """Every step in the order of their starts, and every request by its id; sent: seconds of transfers."""

    steps: list[Step] = dataclasses.field(default_factory=list)
    served: dict[int, Served] = dataclasses.field(default_factory=dict)
    sent: list[float] = dataclasses.field(default_factory=list)

    @property
    def makespan(self) -> float:
        """When the last token was written."""
        return max((s.times[-1] for s in self.served.values() if s.times), default=0.0)


def emptiest(machines: Sequence[Machine], request: Asked) -> int:
    """The machine with the fewest pending tokens, the first of equal ones."""
    return min(range(len(machines)), key=lambda i: machines[i].pending)


def simulate(
    requests: Sequence[Asked],
    machines: Sequence[Machine],
    *,
    route: Callable[[Sequence[Machine], Asked], int] = emptiest,
    onward: Callable[[Sequence[Machine], Job], int] | None = None,
    transfer: Callable[[Job], float] = lambda job: 0.0,
) -> Log:
    """Serves all requests and says how.

    Args:
      requests: of a trace, with ids of their own.
      machines: fresh ones; they are used up.
      route: which machine a request goes to.
      onward: which machine continues a request that a machine of pool "prompt" has begun; None: the token pool's one
        with the fewest pending tokens.
      transfer: seconds until its memory is there, from the end of its prompt.

    Errors: ValueError for a plan that cannot be, RuntimeError where a request can never be served.
    """
    return _Run(requests, machines, route, onward or _token_pool, transfer).all()


def _token_pool(machines: Sequence[Machine], job: Job) -> int:
    there = [i for i, machine in enumerate(machines) if machine.pool == "token"]
    return min(there, key=lambda i: machines[i].pending)


class _Run:
    """A simulation under way: the heap of events, and what is known of requests."""

    def __init__(
        self,
        requests: Sequence[Asked],
        machines: Sequence[Machine],
        route: Callable[[Sequence[Machine], Asked], int],
        onward: Callable[[Sequence[Machine], Job], int],
        transfer: Callable[[Job], float],
    ):
        self.machines, self.route, self.onward, self.transfer = machines, route, onward, transfer
        self.log = Log(served={r.id: Served(r) for r in requests})
        if len(self.log.served) != len(requests):
            raise ValueError("requests of a trace need ids of their own; number them 0, 1, 2.")
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = itertools.count()
        for request in sorted(requests, key=lambda r: (r.arrival, r.id)):
            self._at(request.arrival, self._arrive, request)

    def _at(self, time: float, what: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self.events, (time, next(self._count), what, args))

    def all(self) -> Log:
        """Runs until nothing happens any more."""
        while self.events:
            now = self.events[0][0]
            while self.events and self.events[0][0] == now:  # All of a moment, then who is free begins a step.
                _, _, what, args = heapq.heappop(self.events)
                what(now, *args)
            for number, machine in enumerate(self.machines):
                if not machine.busy and machine.jobs:
                    self._begin(now, number, machine)
        left = [id for id, served in self.log.served.items() if len(served.times) < served.asked.output]
        if left:
            raise RuntimeError(f"request {left[0]} is never served: no plan takes it; give more memory or rows.")
        return self.log

    def _arrive(self, now: float, request: Asked) -> None:
        machine = self.machines[self.route(self.machines, request)]
        made = Job(request.id, request.arrival, request.prompt, request.limit, lag=machine.lag, ids=request.ids)
        machine.waiting.append(made)

    def _seen(self, now: float, machine: Machine) -> Seen:
        memory, waiting = machine.memory, machine.waiting
        away = [job.held for job in machine.leaving.values()]
        if away:
            memory = dataclasses.replace(memory, total=memory.total - memory.used(away))
        if machine.cache is not None:
            memory = dataclasses.replace(memory, total=memory.total - machine.cache.referenced)
            waiting = [machine.cache.offered(job) for job in waiting]
        return Seen(now, tuple(waiting), tuple(machine.active.values()), memory)

    def _begin(self, now: float, number: int, machine: Machine) -> None:
        plan = machine.scheduler.step(self._seen(now, machine))
        for id in plan.preempt:
            self._preempt(machine, id)
        for id in plan.admit:
            self._admit(now, machine, id)
        work = self._work(machine, plan)
        if not work.tokens and not plan.admit:
            if plan.preempt:
                raise ValueError(f"plan={plan} preempts and does nothing else; it must make progress.")
            return  # Nothing to do until something arrives.
        draws = self._apply(machine, plan)
        used = self._used(machine)
        seconds = machine.cost(work)
        self.log.steps.append(Step(number, now, seconds, plan, work, used))
        machine.busy, machine.reading = True, dict(plan.chunks)
        self._at(now + seconds, self._end, number, draws)

    def _preempt(self, machine: Machine, id: int) -> None:
        job = machine.active.pop(id)
        gone = job.preempted(machine.keeps)
        served = self.log.served[id]
        served.preempted += 1
        if not gone.kept:
            served.again += job.context
        if machine.cache is not None:
            machine.cache.release(id)
        machine.waiting.insert(0, gone)

    def _admit(self, now: float, machine: Machine, id: int) -> None:
        job = next((job for job in machine.waiting if job.id == id), None)
        if job is None:
            raise ValueError(f"request {id} is admitted and does not wait.")
        machine.waiting.remove(job)
        served = self.log.served[id]
        if machine.cache is not None and not job.kept:
            job = machine.cache.taken(job)
            served.hit += job.shared
        if served.admitted < 0:
            served.admitted = now
        machine.active[id] = dataclasses.replace(job, kept=False)

    def _work(self, machine: Machine, plan: StepPlan) -> Work:
        chunks = []
        for id, tokens in plan.chunks.items():
            job = machine.active[id]
            if not 0 <= tokens <= job.prompt - job.read:
                raise ValueError(f"request {id} reads {tokens} of {job.prompt - job.read} tokens.")
            if tokens:
                chunks.append((tokens, job.context))
        decodes = [machine.active[id] for id in plan.decodes or ()]
        if any(not job.ready for job in decodes) or len({job.id for job in decodes}) < len(decodes):
            raise ValueError(f"decodes={plan.decodes}: a row draws once, when its prompt is read.")
        ends = {id: job.read + plan.chunks.get(id, 0) for id, job in machine.active.items()}
        fresh = [job for job in machine.active.values() if not job.ready or (job.id in plan.admit and not job.since)]
        joins = tuple(ends[job.id] for job in fresh if ends[job.id] >= job.prompt)
        moves = sum(machine.active[id].since > 0 for id in plan.admit)
        moves += sum(job.id in plan.preempt and job.kept for job in machine.waiting)
        return Work(tuple(job.context for job in decodes), tuple(chunks), joins, moves)

    def _apply(self, machine: Machine, plan: StepPlan) -> list[int]:
        """What the step leaves in memory; who gets a token at its end."""
        draws = list(plan.decodes or ())
        for id in draws:
            job = machine.active[id]
            machine.active[id] = dataclasses.replace(job, since=job.since + 1, done=job.done + 1)
        for id, tokens in plan.chunks.items():
            job = dataclasses.replace(machine.active[id], read=machine.active[id].read + tokens)
            if job.ready and job.lag and tokens:
                job = dataclasses.replace(job, since=job.since + 1, done=job.done + 1)
                draws.append(id)
            machine.active[id] = job
        return draws

    def _used(self, machine: Machine) -> int:
        needs = [job.held for job in (*machine.active.values(), *machine.leaving.values())]
        shared = machine.cache.referenced if machine.cache is not None else 0
        used = machine.memory.used(needs)
        if used is None or used + shared > machine.memory.total:
            raise ValueError(f"rows that hold {needs} tokens do not fit the memory of {machine.memory.total}.")
        if machine.cache is not None:
            machine.cache.shrink(machine.memory.total - used)
        return used + shared

    def _end(self, now: float, number: int, draws: Sequence[int]) -> None:
        machine = self.machines[number]
        machine.busy, machine.reading = False, {}
        for id in draws:
            served = self.log.served[id]
            served.times.append(now)
            if len(served.times) == served.asked.output:
                self._over(machine, machine.active.pop(id))
        if machine.cache is not None:
            for id, job in machine.active.items():
                machine.active[id] = machine.cache.kept(job)
        if machine.pool == "prompt":
            for id in [id for id, job in machine.active.items() if job.ready]:
                self._send(now, machine, machine.active.pop(id))

    def _over(self, machine: Machine, job: Job) -> None:
        machine.scheduler.ended(job)
        if machine.cache is not None:
            machine.cache.kept(job)
            machine.cache.release(job.id)

    def _send(self, now: float, machine: Machine, job: Job) -> None:
        machine.leaving[job.id] = job
        seconds = self.transfer(job)
        self.log.sent.append(seconds)
        self._at(now + seconds, self._sent, machine, job)

    def _sent(self, now: float, machine: Machine, job: Job) -> None:
        del machine.leaving[job.id]
        there = self.machines[self.onward(self.machines, job)]
        there.waiting.append(dataclasses.replace(job, kept=True, lag=there.lag))
