"""Sarathi-Serve: decodes first, then chunks of prompts, up to a budget of tokens (Agrawal et al. 2024,
arXiv:2403.02310).

Rules are those of the released scheduler (microsoft/sarathi-serve), where a text lies in blocks of memory.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from experiments.generation.serving.plan import StepPlan


@dataclasses.dataclass(frozen=True)
class Row:
    """A request as the scheduler sees it; tokens, and blocks of memory.

    Attributes:
      id: of the request.
      arrival: time; the order among running rows.
      prompt: tokens to read; after a preemption those that were written before it, too.
      read: of these, tokens that were read.
      written: tokens that were drawn since the prompt was read.
      blocks: blocks that it holds.
    """

    id: int
    arrival: float
    prompt: int
    read: int = 0
    written: int = 0
    blocks: int = 0

    @property
    def left(self) -> int:
        """prompt - read."""
        return self.prompt - self.read


def blocks_of(tokens: int, block: int) -> int:
    """ceil(tokens / block)."""
    return -(-tokens // block)


def watermark_blocks(total: int, watermark: float = 0.01) -> int:
    """int(watermark total): blocks that an admission must leave free."""
    return int(watermark * total)


def next_chunk(left: int, budget: int, used: int) -> int:
    """max(0, min(left, budget - used)): tokens of a prompt that a step with `used` tokens still reads."""
    return max(0, released_next_chunk(left, budget, used))


def released_next_chunk(left: int, budget: int, used: int) -> int:
    """min(left, budget - used): as released, negative where the decodes alone are more than the budget."""
    return min(left, budget - used)


def chunk_sizes(low: int, high: int, stages: int) -> list[int]:
    """Dynamic chunks: int(linspace(high, low, stages)), each rounded (half to even) to a multiple of min(32, low).

    The first of the `stages` numbers is for the beginning of a prompt.
    """
    unit = min(32, low)
    even = np.linspace(low, high, stages, dtype=np.int32)[::-1]
    return [int(size) for size in np.round(even / unit) * unit]


def chunk_at(read: int, sizes: Sequence[int], longest: int) -> int:
    """sizes[read // ceil(longest / len(sizes))]: the budget for a prompt of which `read` tokens are read.

    Errors: ValueError for a prompt beyond `longest`.
    """
    stage = read // -(-longest // len(sizes))
    if stage >= len(sizes):
        raise ValueError(
            f"read={read} is beyond the {longest} tokens of the schedule of chunks; use longest={read + 1}."
        )
    return sizes[stage]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a step may use.

    Attributes:
      budget: tokens of a step; decodes may exceed it, chunks may not.
      block: tokens of a block.
      total: blocks in all.
      rows: running requests at most.
      watermark: of the blocks, the share that an admission leaves free.
      spare: a decode asks for one free block even where its last block has room, as released; False: where it needs it.
      sizes: budgets by progress of the prompt (`chunk_sizes`); none: `budget`.
      longest: tokens over which `sizes` are spread.
    """

    budget: int = 512
    block: int = 16
    total: int = 1 << 20
    rows: int = 128
    watermark: float = 0.01
    spare: bool = True
    sizes: tuple[int, ...] = ()
    longest: int = 4096

    def chunk(self, row: Row, used: int) -> int:
        """Tokens of the row's prompt in a step that has `used`; 0 where none is left."""
        if not row.left:
            return 0
        budget = chunk_at(row.read, self.sizes, self.longest) if self.sizes else self.budget
        return next_chunk(row.left, budget, used)


def step(running: Iterable[Row], waiting: Sequence[Row], limits: Limits, *, now: float = np.inf) -> StepPlan:
    """The plan of a step: (1) one token of each row whose prompt is read, (2) chunks of prompts begun, (3) admissions.

    1. In order of arrival. A row without a free block preempts the last of the rows not yet looked at, or itself; the
       preempted lose their blocks and stand in front of the queue, the last of them first.
    2. `Limits.chunk` of each, in order of arrival.
    3. From the front of the queue while the blocks of the whole text fit above the watermark, rows are left and the
       chunk is not empty; the first that does not fit ends it.

    Blocks of running rows are `Row.blocks`; what is left of `limits.total` is free. decodes <= tokens of the plan <=
    max(budget, decodes).
    """
    order, queue = sorted(running, key=lambda row: row.arrival), list(waiting)
    free = limits.total - sum(row.blocks for row in order)
    decodes, reading, preempted, chunks, admitted = [], [], [], {}, []

    def leave(row: Row) -> None:
        queue.insert(0, dataclasses.replace(row, blocks=0))
        preempted.append(row.id)

    while order:
        row = order.pop(0)
        if row.left:
            reading.append(row)
            continue
        needs = row.blocks < blocks_of(row.prompt + row.written, limits.block)
        while free < 1 and (needs or limits.spare):
            victim = order.pop() if order else row
            free += victim.blocks
            leave(victim)
            if victim is row:
                break
        else:
            free -= needs
            decodes.append(row.id)
    for row in reading:
        if tokens := limits.chunk(row, len(decodes) + sum(chunks.values())):
            chunks[row.id] = tokens
    for row in queue:
        needs = blocks_of(row.prompt + row.written, limits.block)
        fits = free - needs >= watermark_blocks(limits.total, limits.watermark)
        rows = len(decodes) + len(reading) + len(admitted)
        if row.arrival > now or not fits or rows >= limits.rows:
            break
        tokens = limits.chunk(row, len(decodes) + sum(chunks.values()))
        if not tokens:
            break
        free -= needs
        admitted.append(row.id)
        chunks[row.id] = tokens
    return StepPlan(tuple(preempted), tuple(admitted), chunks, tuple(decodes), rounds=1)
