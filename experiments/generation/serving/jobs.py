"""Requests as schedulers and the simulator see them: numbers of tokens, no text."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from experiments.generation.pool import Pool
from experiments.generation.serving import sarathi
from experiments.generation.serving.plan import StepPlan


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request of a trace.

    Attributes:
      id: its number; of equal arrivals the smaller came first.
      arrival: seconds.
      prompt: tokens that are read before it writes.
      output: tokens that it will write; no scheduler sees it.
      most: tokens that it may write; 0: `output`.
      ids: the prompt's tokens, where beginnings are to be shared.
    """

    id: int
    arrival: float
    prompt: int
    output: int
    most: int = 0
    ids: tuple[int, ...] = ()

    @property
    def limit(self) -> int:
        """`most`, or `output` where that is 0."""
        return self.most or self.output


@dataclasses.dataclass(frozen=True)
class Job:
    """A request under way, in tokens.

    Attributes:
      id, arrival, most, ids: as of `Asked`.
      prompt: to be read before it writes; after a preemption without its memory, what it had written, too.
      read: of the prompt.
      since: written since the prompt was read.
      done: written in all.
      lag: 1 where the pass that ends the prompt draws the first token, so that the newest token is not in memory; 0
        where the first pass of decoding reads the prompt's last token, which is not counted in `prompt`.
      kept: whether it was preempted or moved with its memory.
      shared: of the prompt, tokens in blocks that another one holds, too.
    """

    id: int
    arrival: float
    prompt: int
    most: int
    read: int = 0
    since: int = 0
    done: int = 0
    lag: int = 1
    kept: bool = False
    shared: int = 0
    ids: tuple[int, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether its prompt is read."""
        return self.read >= self.prompt

    @property
    def context(self) -> int:
        """read + max(0, since - lag): tokens that its next pass sees before what it reads."""
        return self.read + max(0, self.since - self.lag)

    @property
    def held(self) -> int:
        """Tokens for which it has memory of its own, all of its prompt from the start.

        lag 1: prompt - shared + max(0, since - 1). lag 0: prompt - shared + 1 + since, the text, as the engine counts.
        """
        return self.prompt - self.shared + (max(0, self.since - 1) if self.lag else self.since + 1)

    @property
    def grown(self) -> int:
        """Tokens for which it needs memory of its own when the next step has drawn for it: one more than `held`, but
        with lag 1 no more for the first."""
        return self.prompt - self.shared + (self.since if self.lag else self.since + 2)

    @property
    def first_prompt(self) -> int:
        """Tokens of the prompt as it was asked."""
        return self.prompt - (self.done - self.since)

    def preempted(self, keeps: bool) -> "Job":
        """Out of the batch: with its memory, or to be read anew, all it has written included."""
        if keeps and self.ready:
            return dataclasses.replace(self, kept=True)
        return dataclasses.replace(self, prompt=self.prompt + self.since, read=0, since=0, shared=0)


class Memory(Protocol):
    """What the rows of a batch may hold together."""

    total: int

    def used(self, needs: Sequence[int]) -> int | None:
        """What rows that hold so many tokens each take of `total`; None where they do not fit."""
        ...


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Blocks that any row may have: sum ceil(tokens / block) <= total."""

    total: int
    block: int = 1

    def used(self, needs: Sequence[int]) -> int | None:
        """sum ceil(needs / block), None above the total."""
        taken = sum(sarathi.blocks_of(tokens, self.block) for tokens in needs)
        return taken if taken <= self.total else None


@dataclasses.dataclass(frozen=True)
class Slots:
    """The engine's state, rows x slots: as wide as its longest row needs (`experiments.generation.pool`)."""

    pool: Pool

    @property
    def total(self) -> int:
        """Slots in all."""
        return self.pool.size

    def used(self, needs: Sequence[int]) -> int | None:
        """rows x slots of the state that has room, None where there is none."""
        if not needs:
            return 0
        shape = self.pool.shape(len(needs), max(needs))
        return None if shape is None else shape.size


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a scheduler decides from: the queue, front first; rows of the batch, those longest in it first; memory."""

    now: float
    waiting: tuple[Job, ...]
    active: tuple[Job, ...]
    memory: Memory


class Scheduler(Protocol):
    """A policy: pure but for what it remembers of requests that have ended."""

    def step(self, seen: Seen) -> StepPlan:
        """The plan of the next step."""
        ...

    def ended(self, job: Job) -> None:
        """Told of each request that has ended."""
        ...
