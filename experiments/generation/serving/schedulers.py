"""Policies: each makes the `StepPlan` of the next step. They drive the simulator and the engine alike."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.generation.serving import batchllm, past_future, sarathi
from experiments.generation.serving.jobs import Blocks, Job, Scheduler, Seen
from experiments.generation.serving.plan import StepPlan


def within(plan: StepPlan, seen: Seen) -> StepPlan:
    """The plan, cut until its rows fit the memory: the last admitted wait, then the rows last in the batch leave it.

    Every policy ends with it, so that memory holds whatever was foreseen. Of a row that is alone nothing is cut.
    """
    gone = (job.preempted(keeps=False) for job in seen.active if job.id in plan.preempt)
    waiting = {job.id: job for job in (*seen.waiting, *gone)}
    stay = [job for job in seen.active if job.id not in plan.preempt]
    preempt, admit, chunks, decodes = list(plan.preempt), list(plan.admit), dict(plan.chunks), list(plan.decodes or ())

    def fits() -> bool:
        there = [*stay, *(waiting[id] for id in admit)]
        ready = lambda job: job.read + chunks.get(job.id, 0) >= job.prompt  # noqa: E731
        return seen.memory.used([job.grown if ready(job) else job.held for job in there]) is not None

    while not fits() and len(stay) + len(admit) > 1:
        last = admit.pop() if admit else stay.pop().id
        if last not in waiting:
            preempt.append(last)
        chunks.pop(last, None)
        if last in decodes:
            decodes.remove(last)
    return dataclasses.replace(
        plan, preempt=tuple(preempt), admit=tuple(admit), chunks=chunks, decodes=tuple(decodes), rounds=1
    )


def whole(seen: Seen, admit: Sequence[Job]) -> StepPlan:
    """The plan of a step that reads the prompts of those admitted whole, and draws for all others.

    Who is admitted with a prompt that is read (it was preempted or moved with its memory) draws at once.
    """
    chunks = {job.id: job.prompt - job.read for job in (*seen.active, *admit) if not job.ready}
    decodes = tuple(job.id for job in (*seen.active, *admit) if job.ready)
    return within(StepPlan(admit=tuple(job.id for job in admit), chunks=chunks, decodes=decodes), seen)


@dataclasses.dataclass
class FirstCome:
    """First come first served, joining at any step (Flover's fusion): whoever fits is admitted and read whole.

    rows: at most. While a row is preempted nobody is admitted.
    """

    rows: int = 1 << 30

    def step(self, seen: Seen) -> StepPlan:
        """See the class."""
        held = [job.grown for job in seen.active]
        admit: list[Job] = []
        for job in seen.waiting:
            held.append(job.grown)
            if len(held) > self.rows or seen.memory.used(held) is None:
                break
            admit.append(job)
        return whole(seen, admit)

    def ended(self, job: Job) -> None:
        """Nothing is remembered."""


@dataclasses.dataclass
class Batches(FirstCome):
    """Batches that run until their longest has ended: nobody joins while someone is there."""

    def step(self, seen: Seen) -> StepPlan:
        """See the class."""
        return whole(seen, ()) if seen.active else super().step(seen)


@dataclasses.dataclass
class Prepacking(FirstCome):
    """First come first served; prompts that are read in one step lie side by side in rows (`prepacking`)."""

    packs = True

    def step(self, seen: Seen) -> StepPlan:
        """See the class."""
        return dataclasses.replace(super().step(seen), packed=True)


@dataclasses.dataclass
class Sarathi:
    """`sarathi.step`: decodes first, prompts in chunks under a budget of tokens.

    limits: its memory is replaced by what there is; blocks of one token where memory has none.
    """

    limits: sarathi.Limits = dataclasses.field(default_factory=sarathi.Limits)

    def step(self, seen: Seen) -> StepPlan:
        """See the class."""
        return within(self._plan(seen, seen.waiting), seen)

    def _plan(self, seen: Seen, waiting: Sequence[Job]) -> StepPlan:
        block = seen.memory.block if isinstance(seen.memory, Blocks) else 1
        limits = dataclasses.replace(self.limits, block=block, total=seen.memory.total)

        def row(job: Job, held: int) -> sarathi.Row:
            written = job.since + 2 * (1 - job.lag) if job.ready else 0
            own = {"prompt": job.prompt - job.shared, "read": job.read - job.shared}
            return sarathi.Row(job.id, job.arrival, **own, written=written, blocks=sarathi.blocks_of(held, block))

        # A row that comes back with its memory has no prompt to read: the released queue has none such.
        kept = [job for job in waiting if job.ready]
        fresh = [row(job, 0) for job in waiting if not job.ready]
        running = [row(job, job.held) for job in seen.active]
        plan = sarathi.step(running, () if kept else fresh, limits)
        if not kept or plan.preempt:
            return plan
        back, rows = [], len(running)
        free = limits.total - sum(r.blocks for r in running) - len(plan.decodes)
        for job in kept:
            free -= sarathi.blocks_of(job.grown, block)
            full = free < sarathi.watermark_blocks(limits.total, limits.watermark) and (rows or back)
            if full or rows + len(back) >= limits.rows:
                break
            back.append(job.id)
        return dataclasses.replace(plan, admit=tuple(back), decodes=(*plan.decodes, *back))

    def ended(self, job: Job) -> None:
        """Nothing is remembered."""


@dataclasses.dataclass
class PastFuture:
    """Admits by the memory of sampled futures (`past_future.admitted`), or by a baseline; prompts are read whole.

    Attributes:
      kind: "past_future", "aggressive" or "conservative".
      longest: what every request is taken to write before anything has ended.
      past: lengths of answers that ended before the first request came.
      rows: at most.
      seed: of the samples.
    """

    kind: str = "past_future"
    longest: int = 1024
    past: Sequence[int] = ()
    rows: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        self.history = past_future.recorded(past_future.first_history(self.longest), self.past)
        self._random = np.random.default_rng(self.seed)

    def step(self, seen: Seen) -> StepPlan:
        """See the class."""
        capacity = seen.memory.total * getattr(seen.memory, "block", 1)
        running = [_foreseen(job, "running") for job in seen.active]
        waiting = [
            _foreseen(job, "kept" if job.kept else "offloaded" if job.done else "waiting") for job in seen.waiting
        ]
        if self.kind == "past_future":
            n = past_future.admitted(running, waiting, self.history, capacity, self._random.random, rows=self.rows)
        else:
            rule: Callable[..., int] = getattr(past_future, self.kind)
            n = rule(running, waiting, capacity, rows=self.rows)
        if not seen.active and seen.waiting:
            n = max(n, 1)  # Alone it goes, whatever was sampled: else it would wait for ever.
        return whole(seen, seen.waiting[:n])

    def ended(self, job: Job) -> None:
        """Its length becomes part of the past."""
        self.history = past_future.recorded(self.history, [job.done])


def _foreseen(job: Job, state: str) -> past_future.Row:
    return past_future.Row(job.first_prompt, job.most, job.done, state)


@dataclasses.dataclass
class BatchLLM(Sarathi):
    """Groups that share a beginning run together, those with long answers first; memory alone limits the batch.

    The groups are made of all that waits when something new does (`batchllm.one_level`); answers are taken to be as
    long as they may. `limits.budget` bounds a step's tokens.
    """

    def __post_init__(self) -> None:
        self._rank: dict[int, int] = {}

    def step(self, seen: Seen) -> StepPlan:
        """See the class."""
        fresh = [job for job in seen.waiting if not job.kept]
        if any(job.id not in self._rank for job in fresh):
            there = {job.id for job in (*seen.waiting, *seen.active)}
            self._rank = {id: rank for id, rank in (self._rank | ranks(fresh)).items() if id in there}
        order = sorted(seen.waiting, key=lambda job: (not (job.kept or job.done), self._rank.get(job.id, -1)))
        return within(self._plan(seen, order), seen)


def ranks(jobs: Sequence[Job]) -> dict[int, int]:
    """Place of each job, by id, in BatchLLM's order: groups by ratio, in a group as they came."""
    prompts, answers = [job.prompt for job in jobs], [job.most for job in jobs]
    groups = batchllm.one_level([job.ids or (-1 - i,) for i, job in enumerate(jobs)])
    # A group without a beginning is no group: each of its prompts has its own ratio.
    groups = [part for g in groups for part in ([g] if g.prefix else [batchllm.Group(0, (i,)) for i in g.prompts])]
    order = batchllm.group_order(prompts, answers, groups)
    placed = [i for g in order for i in sorted(groups[g].prompts)]
    return {jobs[i].id: place for place, i in enumerate(placed)}


# By the name that a user gives: a function of options that makes the policy.
SCHEDULERS: Mapping[str, Callable[..., Scheduler]] = {
    "first_come": FirstCome,
    "batches": Batches,
    "prepacking": Prepacking,
    "sarathi": lambda **limits: Sarathi(sarathi.Limits(**limits)),
    "past_future": PastFuture,
    "aggressive": lambda **options: PastFuture("aggressive", **options),
    "conservative": lambda **options: PastFuture("conservative", **options),
    "batchllm": lambda **limits: BatchLLM(sarathi.Limits(**{"rows": 1 << 30, **limits})),
}
