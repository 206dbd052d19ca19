"""The engine under a scheduler's plans, as a log like the simulator's.

    asked = [Prompt("def main(", seconds=0.0, settings={"max_tokens": 20})]
    log, texts = serve(Engine(trained, lanes=8, rounds=1), Sarathi(Limits(budget=64)), asked)

Time is the sum of what steps took, not the clock on the wall: a request comes when that sum has reached its seconds.
`rounds=1`: a step of a plan draws one token a row.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.generation.serving.costs import Work
from experiments.generation.serving.jobs import Asked, Scheduler, Slots
from experiments.generation.serving.plan import StepPlan
from experiments.generation.serving.planned import Planned, begun
from experiments.generation.serving.simulator import Log, Served, Step


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A request of a trace with its text; settings: of `config.generate`; seed, number: as of `Engine.admit`."""

    text: str
    seconds: float = 0.0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    number: int | None = None


class Driven(Planned):
    """A planned engine that says what each of its steps did.

    Args:
      engine: of `experiments.generation.engine`; its `rounds` is 1.
      scheduler: any of `schedulers`.
    """

    def __init__(self, engine: Any, scheduler: Scheduler):
        if engine.rounds != 1:
            raise ValueError(f"rounds={engine.rounds}: a plan's step draws one token a row; use rounds=1.")
        super().__init__(engine, scheduler)

    def step(self, now: float = 0.0) -> tuple[StepPlan, Work, int]:
        """One step: its plan, what was done, and the slots in use behind it."""
        seen = self.seen(now)
        plan = self.scheduler.step(seen)
        jobs = {job.id: job for job in (*seen.waiting, *seen.active)}
        self.engine.step(begun(plan, seen))
        order = (*(id for id in self.there if id not in plan.preempt), *plan.admit)
        ends = {id: jobs[id].read + plan.chunks.get(id, 0) for id in order}
        fresh = [id for id in order if not jobs[id].ready or (id in plan.admit and not jobs[id].since)]
        left = sum(jobs[id].ready for id in plan.preempt)
        work = Work(
            decodes=tuple(jobs[id].context for id in plan.decodes or ()),
            chunks=tuple((n, jobs[id].read) for id, n in plan.chunks.items() if n),
            joins=tuple(ends[id] for id in fresh if ends[id] >= jobs[id].prompt),
            moves=left + sum(jobs[id].since > 0 for id in plan.admit),
        )
        for id in plan.decodes or ():
            jobs[id] = dataclasses.replace(jobs[id], since=jobs[id].since + 1, done=jobs[id].done + 1)
        here, waiting = self.here(), {request.id for request in self.engine.waiting}
        for id in [id for id in order if id not in here and id not in waiting]:
            self.over(jobs[id])
        self.there = {id: jobs[id] for id in order if id in here}
        return plan, work, Slots(self.engine.pool).used([jobs[id].held for id in order]) or 0


def serve(
    engine: Any, scheduler: Scheduler, prompts: Sequence[Prompt], *, clock: Callable[[], float] = time.process_time
) -> tuple[Log, list[str]]:
    """Serves prompts as they come: the log of the engine's steps, by `clock`, and the texts in the prompts' order.

    Of a request the log has the tokens that it wrote; `Asked.output` is their number.

    Errors: RuntimeError where a request failed, or none of what waits is ever planned.
    """
    driven, now, log = Driven(engine, scheduler), 0.0, Log()
    todo = sorted(range(len(prompts)), key=lambda i: (prompts[i].seconds, i))
    number: dict[int, int] = {}
    texts = [""] * len(prompts)
    while todo or engine.waiting or driven.there:
        if not (engine.waiting or driven.there):
            now = max(now, prompts[todo[0]].seconds)
        while todo and prompts[todo[0]].seconds <= now:
            p = prompts[todo[0]]
            id = driven.admit(p.text, p.seconds, seed=p.seed, number=p.number, **p.settings)
            number[id] = todo.pop(0)
            ids, most = engine.waiting[-1].ids, engine.waiting[-1].options["max_tokens"]
            log.served[id] = Served(Asked(id, p.seconds, len(ids) - 1, most, most))
        begin = clock()
        before = {request.id: len(request.tokens) for request in _all(engine)}
        requests = {request.id: request for request in _all(engine)}
        plan, work, used = driven.step(now)
        results = engine.ended()
        seconds = clock() - begin
        if not (work.tokens or plan.admit or plan.preempt or results):
            if not todo:
                raise RuntimeError("no plan takes what waits; give more memory or rows.")
            now = max(now, prompts[todo[0]].seconds)
            continue
        log.steps.append(Step(0, now, seconds, plan, work, used))
        for id in plan.admit:
            if log.served[id].admitted < 0:
                log.served[id].admitted = now
        for id in plan.preempt:
            log.served[id].preempted += 1
        now += seconds
        for id, request in requests.items():
            log.served[id].times += [now] * (len(request.tokens) - before[id])
        for result in results:
            if result.failed:
                raise RuntimeError(result.reason)
            texts[number[result.id]] = result.text
            served = log.served[result.id]
            served.asked = dataclasses.replace(served.asked, output=len(served.times))
    return log, texts


def _all(engine: Any) -> Iterable[Any]:
    """Requests under way."""
    return [*engine.waiting, *engine.reading.values(), *engine.running.values()]
