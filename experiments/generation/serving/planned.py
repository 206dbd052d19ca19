"""An engine whose steps a scheduler plans: what it is shown of the engine, and the plan that the engine can do."""

import dataclasses
from typing import Any

from experiments.generation.serving.jobs import Job, Scheduler, Seen, Slots
from experiments.generation.serving.plan import StepPlan
from experiments.generation.serving.schedulers import FirstCome
from experiments.settings.errors import ConfigError


class Planned:
    """See the module's docstring. `admit` and `free` as of the engine.

    Args:
      engine: of `experiments.generation.engine`, or a `CachedEngine`.
      scheduler: any of `schedulers`.

    Errors: ConfigError where it packs prompts and the model cannot keep them apart.
    """

    def __init__(self, engine: Any, scheduler: Scheduler):
        if getattr(scheduler, "packs", False) and engine.unpackable:
            raise ConfigError([engine.unpackable])
        self.engine, self.scheduler = engine, scheduler
        self.arrivals: dict[int, float] = {}
        self.there: dict[int, Job] = {}  # rows of the batch as they were last seen, those longest in it first
        self._ids: dict[int, tuple[int, ...]] = {}  # of prompts without their last tokens, and whole ones
        self._whole: dict[int, tuple[int, ...]] = {}

    def admit(self, prompt: Any, now: float = 0.0, **asked: Any) -> int:
        """`Engine.admit`; `now`: when it came, for policies that go by it."""
        id = self.engine.admit(prompt, **asked)
        self.arrivals[id] = now
        return id

    def free(self, id: int) -> None:
        """`Engine.free`; one that waited is forgotten, which a scheduler never hears of."""
        self.engine.free(id)
        if id not in self.there:
            self._forget(id)

    def seen(self, now: float = 0.0) -> Seen:
        """What a scheduler decides from. A prompt counts without its last token, which the first pass reads (lag 0)."""
        waiting = tuple(self._job(request, request.one is not None) for request in self.engine.waiting)
        here, back = self.here(), {job.id for job in waiting}
        for id in [id for id in self.there if id not in here]:
            gone = self.there.pop(id)
            if id not in back:  # Its text ended it, or it was freed; else the engine itself has put it out of its lane.
                self.over(gone)
        self.there = {id: self._job(here[id]) for id in (*self.there, *(id for id in here if id not in self.there))}
        return Seen(now, waiting, tuple(self.there.values()), Slots(self.engine.pool))

    def here(self) -> dict[int, Any]:
        """Requests of the batch."""
        return {**self.engine.reading, **self.engine.running}

    def _job(self, request: Any, kept: bool = False) -> Job:
        prompt, done = len(request.ids) - 1, len(request.tokens)
        read = prompt if kept or request.row >= 0 else min(request.read, prompt)
        if request.id not in self._ids:
            self._whole[request.id] = tuple(request.ids.tolist())
            self._ids[request.id] = self._whole[request.id][:-1]
        cache = getattr(self.engine, "cache", None)
        if cache is not None and request.one is None and request.row < 0:  # It begins with what is there.
            read = len(cache.offer(request.id, self._whole[request.id])) * cache.block
        most, arrival = request.options["max_tokens"], self.arrivals.get(request.id, 0.0)
        return Job(request.id, arrival, prompt, most, read, done, done, 0, kept, ids=self._ids[request.id])

    def over(self, job: Job) -> None:
        """A request has ended."""
        self._forget(job.id)
        self.scheduler.ended(job)

    def _forget(self, id: int) -> None:
        self.arrivals.pop(id, None)
        self._ids.pop(id, None)
        self._whole.pop(id, None)
        if (cache := getattr(self.engine, "cache", None)) is not None:
            cache.forget(id)

    def turn(self, now: float, rounds: int) -> StepPlan:
        """The plan of the next step of an engine that serves.

        A step in which no prompt is read and nobody joins or leaves is `rounds` of them, or as many as the pool holds;
        where others wait, until a row ends. Where a scheduler takes nobody at all, the first who waits goes alone: a
        prompt that is longer than it lets any be would wait for ever.
        """
        seen = self.seen(now)
        plan = self.scheduler.step(seen)
        if seen.waiting and not (seen.active or plan.admit):
            plan = FirstCome(rows=1).step(seen)
        self.there |= {job.id: job for job in seen.waiting if job.id in plan.admit}
        if plan.chunks or plan.admit or plan.preempt:
            return begun(plan, seen)
        return dataclasses.replace(plan, rounds=self._fitting(rounds), ends=1 if seen.waiting else plan.ends)

    def _fitting(self, rounds: int) -> int:
        """The most rounds, halved from these on, that put no row out of its lane."""
        engine = self.engine
        # Rows whose prompts are read take lanes first: with drafts a lane may hold more than a scheduler counts.
        rows = [*engine.running.values(), *(r for r in engine.reading.values() if r.ready)]
        while rounds > 1 and rows:
            if engine.pool.shape(len(rows), max(engine.need(r, rounds) for r in rows)) is not None:
                break
            rounds //= 2
        return rounds


def begun(plan: StepPlan, seen: Seen) -> StepPlan:
    """The plan as the engine does it: a row begins with a piece of its prompt, be it an empty one."""
    jobs = {job.id: job for job in seen.waiting}
    empty = {id: 0 for id in plan.admit if not jobs[id].kept and id not in plan.chunks}
    return dataclasses.replace(plan, chunks={**plan.chunks, **empty})
