"""Ring and TokenRing on TPUs with remote copies: a chip sends its arrays while its attention kernel walks its tiles.

Forward only; gradients move by `jax.lax.ppermute`, as in `keys_move` and `queries_move`. The kernel is that of
`kernels.attention.tpu` with copies beside it. They start before the first tile and are waited for after the last, and
go from the arrays of this step to those of the next (double buffering). TokenRing's queries go one way while its
results go the other.

No copy may arrive before its receiver has allocated the array, so a kernel begins with a barrier. Around the ring a
rank only gets the signal of the next rank, so one barrier serves every step. Where results go to another rank at each
step, signals of different ranks could be taken for each other. There all ranks wait for all, and barriers take turns:
a fast rank may signal the next barrier already, but not the one after it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.attention import merge, tpu
from kernels.attention.scoring import Scoring
from kernels.attention.tpu_common import Beside
from kernels.context_attention.plan import Step, plan
from kernels.context_attention.queries_move import arrived, homeward, onward, send
from kernels.context_attention.task import Partial, Task, mask_of, nothing

# Numbers of barriers; no other kernel of the house has one.
NEXT, FIRST, TURNS = 3, 2, (0, 1)
Pairs = tuple[tuple[int, int], ...]  # who sends to whom


class Sends(NamedTuple):
    """Arrays that leave together: `arrays` from each rank of `pairs` to its partner; `scope` names them."""

    arrays: tuple[jax.Array, ...]
    pairs: Pairs
    scope: str


class Copies(NamedTuple):
    """How the copies of one call are made.

    barriers: their numbers in turn.
    everyone: whether all ranks wait for all.
    simulator: its parameters (`pltpu.InterpretParams`), or False on a chip.
    """

    task: Task
    barriers: Any
    everyone: bool
    simulator: Any

    @classmethod
    def of(cls, task: Task, everyone: bool, simulator: Any) -> "Copies":
        return cls(task, _turns() if everyone else iter(lambda: NEXT, None), everyone, simulator)


def _turns():
    yield FIRST
    while True:
        yield from reversed(TURNS)


def ring_forward(task: Task, q: jax.Array, k: jax.Array, v: jax.Array, simulator: Any = False) -> Partial:
    """As `keys_move.ring_forward`."""
    made, here = plan(task.exchange, task.mask, task.T), task.place()
    copies, keys, have = Copies.of(task, False, simulator), (k, v), None
    onto_next = tuple((r, (r + 1) % task.size) for r in range(task.size))
    for t, step in enumerate(made.steps):
        sends = [Sends(keys, onto_next, "forth")] if t < made.last else []
        block, came = _attend(copies, step, (q, *keys), (here, (here - t) % task.size), sends)
        have = block if have is None else merge(*have, *block)
        keys = came[0] if came else keys
    return have


def token_ring_forward(task: Task, q: jax.Array, k: jax.Array, v: jax.Array, simulator: Any = False) -> Partial:
    """As `queries_move.direct_forward`; the results of the last step go home with nothing left to compute beside."""
    made, here = plan(task.exchange, task.mask, task.T), task.place()
    copies, moving, have, waiting = Copies.of(task, made.last > 1, simulator), (q,), None, None
    for t, step in enumerate(made.steps):
        sends = [Sends(moving, onward(made, t)[0], "forth")] if t < made.last else []
        sends += [] if waiting is None else [Sends(waiting, homeward(made, t - 1)[0], "back")]
        block, came = _attend(copies, step, (*moving, k, v), ((here - t) % task.size, here), sends)
        have = block if t == 0 else have
        if waiting is not None:
            have = merge(*have, *arrived(task, made, came[-1], t - 1))
        waiting = (block[0].astype(q.dtype), block[1]) if t and step.slots else None
        moving = came[0] if t < made.last else None
    if waiting is not None:
        returned = send(task, waiting, (homeward(made, made.last)[0],), "back")
        have = merge(*have, *arrived(task, made, returned, made.last))
    return have


FORWARD = {"keys": ring_forward, "queries": token_ring_forward}


def _attend(copies: Copies, step: Step, qkv: tuple, at: Any, sends: list[Sends]) -> tuple[Partial, list]:
    """The one block of a step and, for each of `sends`, the arrays that came; zeros where none did."""
    task = copies.task
    if not step.slots:  # A mask with a gap: nothing to attend, and nothing beside which to send.
        return nothing(*qkv[:2]), [send(task, s.arrays, (s.pairs,), s.scope) for s in sends]
    mask = mask_of(task, step.slots[0], at)
    leaving = [s for s in sends if s.pairs]
    beside = _beside(copies, leaving) if leaving else None
    out, lse, *flat = tpu.forward(*qkv, Scoring(mask, task.scale), interpret=copies.simulator, beside=beside)
    came = []
    for s in sends:
        if not s.pairs:
            came.append(tuple(jnp.zeros_like(x) for x in s.arrays))
            continue
        matrices, flat = flat[: len(s.arrays)], flat[len(s.arrays) :]
        got = tuple(m.reshape(x.shape) for m, x in zip(matrices, s.arrays, strict=True))
        if len(s.pairs) < task.size:
            arrives = jnp.asarray(_table(s.pairs, task.size)[1])[task.place()] > 0
            got = tuple(jnp.where(arrives, x, 0) for x in got)
        came.append(got)
    return (out.astype(lse.dtype), lse), came


def _table(pairs: Pairs, size: int) -> np.ndarray:
    """int32 [2, size]: for each rank the rank that it sends to (-1: none), and whether anything comes to it."""
    table = np.array([[-1], [0]], np.int32).repeat(size, 1)
    for source, target in pairs:
        table[0, source], table[1, target] = target, 1
    return table


def _beside(copies: Copies, sends: list[Sends]) -> Beside:
    """The copies of `sends` beside an attention kernel, as matrices [.., last axis], or [.., heads x width]."""
    task = copies.task
    tables = np.stack([_table(s.pairs, task.size) for s in sends])
    mine = jnp.asarray(tables)[:, :, task.place()].reshape(-1)
    arrays = [x.reshape(-1, x.shape[-1] * (x.shape[-2] if x.ndim == 4 else 1)) for s in sends for x in s.arrays]
    of = [i for i, s in enumerate(sends) for _ in s.arrays]
    count = len(arrays)

    def each(refs: tuple, act: Callable) -> None:
        """act(copy, whether this rank sends it, whether one comes to this rank)."""
        mine, *refs = refs
        out, into, (sent, received) = refs[:count], refs[count : 2 * count], refs[2 * count :]
        for i, group in enumerate(of):
            target = mine[2 * group]
            there = {task.axis: jnp.maximum(target, 0)}
            copy = pltpu.make_async_remote_copy(out[i], into[i], sent.at[i], received.at[i], device_id=there)
            act(copy, target >= 0, mine[2 * group + 1] > 0)

    def start(*refs: Any) -> None:
        _meet(copies, refs[0], len(sends))
        each(refs, lambda copy, sends, _: pl.when(sends)(copy.start))

    def finish(*refs: Any) -> None:
        def wait(copy, sends, comes):
            pl.when(sends)(copy.wait_send)
            pl.when(comes)(copy.wait_recv)

        each(refs, wait)

    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return Beside(
        operands=(mine, *arrays),
        specs=(pl.BlockSpec(memory_space=pltpu.SMEM), *(anywhere for _ in arrays)),
        results=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays),
        scratch=(pltpu.SemaphoreType.DMA((count,)), pltpu.SemaphoreType.DMA((count,))),
        start=start,
        finish=finish,
        collective=next(copies.barriers),
    )


def _meet(copies: Copies, mine: Any, groups: int) -> None:
    """Returns when every rank that this rank sends to is in this kernel, too."""
    task, barrier = copies.task, pltpu.get_barrier_semaphore()
    here = jax.lax.axis_index(task.axis)
    if copies.everyone:
        for other in range(1, task.size):
            pl.semaphore_signal(barrier, 1, device_id={task.axis: jax.lax.rem(here + other, task.size)})
        pl.semaphore_wait(barrier, task.size - 1)
        return
    assert groups == 1
    before = jax.lax.rem(here + task.size - 1, task.size)
    pl.when(mine[1] > 0)(lambda: pl.semaphore_signal(barrier, 1, device_id={task.axis: before}))
    pl.when(mine[0] >= 0)(lambda: pl.semaphore_wait(barrier, 1))
