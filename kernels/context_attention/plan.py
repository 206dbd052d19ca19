"""Which blocks each rank computes at each step: the list that a schedule walks, known when the program is traced."""

from typing import NamedTuple

import numpy as np

from kernels.context_attention.layouts import ZIGZAG, Exchange, Layout, check_length, exchange_of
from kernels.context_attention.placement import classes
from kernels.masks import EMPTY, FULL, Mask


class Slot(NamedTuple):
    """One call of attention at a step.

    q, k: for each rank, the chunk of those that it holds; None for all of them.
    full: whether every rank sees every entry of the block, so that no mask is needed.
    """

    q: tuple[int, ...] | None
    k: tuple[int, ...] | None
    full: bool


class Step(NamedTuple):
    """The work between two hops.

    wanted: bool [ranks, held], the chunks of queries that see anything at this step.
    blocks: int [ranks], how many (chunk of queries, chunk of keys) each rank computes.
    """

    slots: tuple[Slot, ...]
    wanted: np.ndarray
    blocks: np.ndarray


class RingPlan(NamedTuple):
    """The steps of a call.

    steps: a Step for t = 0 .. last; after `last` no rank has work.
    direction: at step t rank r has the queries or keys of rank r - direction * t.
    """

    steps: tuple[Step, ...]
    direction: int

    @property
    def last(self) -> int:
        """The last step with work."""
        return len(self.steps) - 1


def plan(exchange: Exchange, mask: Mask, T: int) -> RingPlan:
    """The steps of a schedule whose keys or queries move. mask: as `placement.whole` gives it, T: tokens in all."""
    layout = exchange.layout
    table = classes(mask, layout, T)
    # Zigzag queries travel downwards: the halves that causality stops needing are then the last of their way.
    direction = -1 if exchange.moves == "queries" and layout.kind == ZIGZAG else 1
    ranks = np.arange(layout.size)
    steps = []
    for t in range(layout.size):
        partner = (ranks - direction * t) % layout.size
        q_rank, k_rank = (ranks, partner) if exchange.moves == "keys" else (partner, ranks)
        steps.append(_step(table, _chunks(layout, q_rank), _chunks(layout, k_rank)))
    while len(steps) > 1 and not steps[-1].blocks.any():
        steps.pop()
    return RingPlan(tuple(steps), direction)


def score_entries(schedule: str, P: int, T: int, mask: Mask) -> np.ndarray:
    """Score entries that each rank computes at each step, int [steps, P], counted in whole blocks of the block list.

    A block is a chunk of queries against a chunk of keys; where its mask leaves part of it empty, a kernel skips tiles
    inside it, which is not counted here. The critical path is the sum over steps of the maximum over ranks.
    """
    check_length(T, P, schedule)
    exchange = exchange_of(schedule, P)
    c = T // exchange.layout.chunks
    if exchange.moves == "all":
        return (classes(mask, exchange.layout, T) != EMPTY).sum(1)[None] * c * c
    blocks = np.stack([step.blocks for step in plan(exchange, mask, T).steps])
    # Ranks of one group share the heads of the same blocks: each has its part of them.
    return np.repeat(blocks * c * c // exchange.ulysses, exchange.ulysses, 1)


def _chunks(layout: Layout, rank: np.ndarray) -> np.ndarray:
    """Chunk numbers in the hands of each rank: [ranks, held]."""
    return np.stack([layout.chunk(rank, place) for place in range(layout.held)], 1)


def _step(table: np.ndarray, q: np.ndarray, k: np.ndarray) -> Step:
    kinds = table[q[:, :, None], k[:, None, :]]  # [ranks, held, held]
    some = kinds != EMPTY
    most, held = int(some.sum((1, 2)).max()), q.shape[1]
    if most == 0:
        slots: tuple[Slot, ...] = ()
    elif 2 * most > held * held:  # one call on everything: the kernel skips the tiles of the few empty blocks
        slots = (Slot(None, None, bool((kinds == FULL).all())),)
    else:
        slots = _slots(kinds, most)
    return Step(slots, some.any(2), some.sum((1, 2)))


def _slots(kinds: np.ndarray, most: int) -> tuple[Slot, ...]:
    """`most` blocks for every rank: first those that are the same for all, then each rank's own."""
    ranks, held, _ = kinds.shape
    flat = kinds.reshape(ranks, -1)
    shared = [block for block in range(flat.shape[1]) if (flat[:, block] != EMPTY).all()]
    chosen = []
    for row in flat:
        own = [block for block in range(len(row)) if row[block] != EMPTY and block not in shared]
        idle = [block for block in range(len(row)) if row[block] == EMPTY]  # fills up; its mask says that it is empty
        chosen.append((shared + own + idle)[:most])
    slots = []
    for blocks in np.array(chosen).T:
        full = bool((flat[np.arange(ranks), blocks] == FULL).all())
        slots.append(Slot(*(tuple(int(x) for x in part) for part in np.divmod(blocks, held)), full))
    return tuple(slots)
