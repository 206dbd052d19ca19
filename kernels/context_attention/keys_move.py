"""Schedules in which keys come to the queries: gathered at once, or one rank's after another around a ring.

Ring: Liu, Zaharia and Abbeel 2023, "Ring Attention with Blockwise Transformers", algorithm 1. Zigzag and striped orders
of the tokens: Brandon et al. 2023, "Striped Attention", section 3. What differs between the three is only the plan.
"""

import jax

from kernels.context_attention import blocks
from kernels.context_attention.placement import piece
from kernels.context_attention.plan import Step, plan
from kernels.context_attention.task import Partial, Task, attend, gradients, hop
from kernels.masks import Mask

barrier = jax.lax.optimization_barrier


def ring_forward(task: Task, q: jax.Array, k: jax.Array, v: jax.Array) -> Partial:
    """Local parts in, local (out, lse) out. While a rank works on one pair of keys and values the next is under way."""
    made = plan(task.exchange, task.mask, task.T)
    here, keys, have = task.place(), (k, v), None
    for t, step in enumerate(made.steps):
        coming = hop(task, keys, 1) if t < made.last else None
        have = attend(task, step, have, q, *keys, (here, (here - t) % task.size))
        if t < made.last:
            # Without it the compiler computes the scores of all steps first and keeps them: the memory of no ring.
            keys, have = barrier((coming, have))
    return have


def ring_backward(task: Task, rows: tuple, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dq, dk, dv in the accumulator's type; rows as in `gradients`. dk and dv follow their keys and then come home."""
    made = plan(task.exchange, task.mask, task.T)
    here, keys, dq, d_keys = task.place(), (k, v), None, None
    for t, step in enumerate(made.steps):
        coming = hop(task, keys, 1) if t < made.last else None
        so_far = None if d_keys is None else hop(task, d_keys, 1)
        new = gradients(task, step, rows, *keys, (here, (here - t) % task.size))
        if t < made.last:
            # Nothing but the kernels stands before the barrier: next to the sums, or to making the kernels' results
            # wide, the compiler lets the keys travel beside those.
            new, wide = _as_kernels_give(step, new, rows[0], k, v), [x.dtype for x in new]
            keys, so_far, dq, new = barrier((coming, so_far, dq, new))
            new = [x.astype(dtype) for x, dtype in zip(new, wide, strict=True)]
        d, *d_keys = new
        dq = d if dq is None else dq + d
        d_keys = d_keys if so_far is None else [x + y for x, y in zip(so_far, d_keys, strict=True)]
    return dq, *(hop(task, d_keys, -made.last) if made.last else d_keys)


def _as_kernels_give(step: Step, d: tuple, *inputs: jax.Array) -> list[jax.Array]:
    """dq, dk, dv in the types of q, k, v, to which the one kernel of a whole step has rounded them; else unchanged."""
    if step.slots and step.slots[0].q is None:
        return [x.astype(given.dtype) for x, given in zip(d, inputs, strict=True)]
    return list(d)


def gather_forward(task: Task, q: jax.Array, k: jax.Array, v: jax.Array) -> Partial:
    """All keys and values come to every rank at once."""
    k, v = (jax.lax.all_gather(x, task.axis, axis=1, tiled=True) for x in (k, v))
    out, lse = blocks.forward(q, k, v, _all_keys(task), task.scale)
    return out.astype(lse.dtype), lse


def gather_backward(task: Task, rows: tuple, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dq, dk, dv in the accumulator's type: keys are gathered again, their gradients summed where they belong."""
    q, d_out, (lse, delta) = rows
    k, v = (jax.lax.all_gather(x, task.axis, axis=1, tiled=True) for x in (k, v))
    dq, *d_keys = blocks.backward(q, k, v, d_out, lse, delta, _all_keys(task), task.scale)
    return dq, *(jax.lax.psum_scatter(x, task.axis, scatter_dimension=1, tiled=True) for x in d_keys)


def _all_keys(task: Task) -> Mask:
    return piece(task.mask, task.exchange.layout, task.T, [task.place()], None)
