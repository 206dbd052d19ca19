"""TokenRing: keys and values stay; queries travel one way and their results go back the other way.

Source: "TokenRing: An Efficient Parallelism Framework for Infinite-Context LLMs via Bidirectional Communication", 2024,
sections 3.2 (full mesh) and 3.3 (causal, zigzag order). It has no backward pass: here d_out, lse and delta travel with
the queries and partial dq return, while dk and dv stay where their keys are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention import merge
from kernels.context_attention.plan import RingPlan, Slot, Step, plan
from kernels.context_attention.task import Partial, Task, attend, gradients, hop

barrier = jax.lax.optimization_barrier
Pairs = tuple[tuple[tuple[int, int], ...], ...]  # for each chunk in a rank's hands: who sends it to whom


def direct_forward(task: Task, q: jax.Array, k: jax.Array, v: jax.Array) -> Partial:
    """Local parts in, local (out, lse) out. Results return in q's type, straight to their owner, one step later."""
    made, here = plan(task.exchange, task.mask, task.T), task.place()
    moving, have, waiting = q, None, None
    for t, step in enumerate(made.steps):
        coming = send(task, moving, onward(made, t), "forth") if t < made.last else None
        returned = None if waiting is None else send(task, waiting, homeward(made, t - 1), "back")
        block = attend(task, step, None, moving, k, v, ((here - made.direction * t) % task.size, here))
        have = block if t == 0 else have
        if returned is not None:
            if t == made.last:
                # Else their small part, lse, is sent beside the last results, with no attention left to hide it.
                returned, block = barrier((returned, block))
            have = merge(*have, *_by_heads(task, made, returned, t - 1))
        waiting = (block[0].astype(q.dtype), block[1].swapaxes(1, 2)) if t and step.slots else None
        if t < made.last:
            # One step at a time: else the scores of all steps would be computed first and kept.
            moving, have, waiting = barrier((coming, have, waiting))
    if waiting is not None:
        returned = send(task, waiting, homeward(made, made.last), "back")
        have = merge(*have, *_by_heads(task, made, returned, made.last))
    return have


def direct_backward(task: Task, rows: tuple, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dq, dk, dv in the accumulator's type; rows as in `task.gradients`. Only dq has to return."""
    made, here = plan(task.exchange, task.mask, task.T), task.place()
    q, d_out, terms = rows
    moving, dq, d_keys, waiting = (q, d_out, terms.transpose(1, 3, 0, 2)), None, None, None
    for t, step in enumerate(made.steps):
        coming = send(task, moving, onward(made, t), "forth") if t < made.last else None
        returned = None if waiting is None else send(task, waiting, homeward(made, t - 1), "back")
        q, d_out, terms = moving
        at = (here - made.direction * t) % task.size, here
        d, *d_more = gradients(task, step, (q, d_out, terms.transpose(2, 0, 3, 1)), k, v, at)
        d_keys = d_more if d_keys is None else [x + y for x, y in zip(d_keys, d_more, strict=True)]
        dq = d if t == 0 else dq
        dq = dq if returned is None else dq + returned
        waiting = d if t and step.slots else None
        if t < made.last:
            moving, dq, d_keys, waiting = barrier((coming, dq, d_keys, waiting))
    if waiting is not None:
        dq = dq + send(task, waiting, homeward(made, made.last), "back")
    return dq, *d_keys


def neighbour_forward(task: Task, q: jax.Array, k: jax.Array, v: jax.Array) -> Partial:
    """As `direct_forward` by hops between neighbours only, in a loop: results travel along with their queries.

    One body for any number of ranks. Results are merged on their way, so they travel in the accumulator's type.
    """
    step, here = _every_step(task), task.place()

    def compute(t, q):
        return attend(task, step, None, q, k, v, ((here - t) % task.size, here)), ()

    return _circulate(task, q, compute, lambda have, more: merge(*have, *more))[0]


def neighbour_backward(task: Task, rows: tuple, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `direct_backward` by hops between neighbours only, in a loop: dq travels along with its query."""
    step, here = _every_step(task), task.place()

    def compute(t, rows):
        dq, *d_keys = gradients(task, step, rows, k, v, ((here - t) % task.size, here))
        return dq, d_keys

    dq, d_keys = _circulate(task, rows, compute, jnp.add)
    return dq, *d_keys


def _circulate(task: Task, moving: Any, compute: Callable, join: Callable) -> tuple[Any, Any]:
    """Takes `moving` around the ring. compute(t, moving) -> (arrays that travel along and home, arrays that add up).

    Each rank's own part waits at home. No hop carries an array that no later rank needs.
    """
    R = task.size

    def go(t, moving, have, stay, more=True):
        coming = hop(task, moving, 1) if more else None
        arrived = None if have is None else hop(task, have, 1, "along")
        part, d = compute(t, moving)
        stay = d if stay is None else jax.tree.map(jnp.add, stay, d)
        return coming, part if arrived is None else join(arrived, part), stay

    moving, own, stay = go(0, moving, None, None, R > 1)
    if R == 1:
        return own, stay
    moving, own, stay = barrier((moving, own, stay))
    moving, have, stay = go(1, moving, None, stay, R > 2)
    if R > 3:
        start = barrier((moving, have, stay))
        (moving, have, stay), _ = jax.lax.scan(lambda carry, t: (go(t, *carry), None), start, jnp.arange(2, R - 1))
    if R > 2:
        _, have, stay = go(R - 1, moving, have, stay, False)
    return join(own, hop(task, have, 1, "along")), stay


def _every_step(task: Task) -> Step:
    """One call on all chunks that a rank holds; a mask is needed unless every block of every step is full."""
    steps = plan(task.exchange, task.mask, task.T).steps
    full = len(steps) == task.size and all(step.slots and step.slots[0].full for step in steps)
    return Step((Slot(None, None, full),), steps[0].wanted, steps[0].blocks)


def onward(made: RingPlan, t: int) -> Pairs:
    """(from, to) of the hop after step t: a rank sends the queries that it holds if a later rank has keys for them."""
    R, held = made.steps[0].wanted.shape
    later = [made.steps[s].wanted[(np.arange(R) + made.direction * (s - t)) % R] for s in range(t + 1, len(made.steps))]
    needed = np.any(later, 0)
    return tuple(tuple((r, (r + made.direction) % R) for r in range(R) if needed[r, i]) for i in range(held))


def homeward(made: RingPlan, t: int) -> Pairs:
    """(from, to) of the results of step t: a rank that computed something sends it to the owner of the queries."""
    R, held = made.steps[0].wanted.shape
    wanted = made.steps[t].wanted
    return tuple(tuple((r, (r - made.direction * t) % R) for r in range(R) if wanted[r, i]) for i in range(held))


def send(task: Task, tree: Any, pairs: Pairs, scope: str) -> Any:
    """Sends arrays [B, C, ...] chunk by chunk; chunks that do not arrive are zero."""

    def one(x: jax.Array, pairs: Any) -> jax.Array:
        return jax.lax.ppermute(x, task.axis, pairs) if pairs else jnp.zeros_like(x)

    def each(x: jax.Array) -> jax.Array:
        if len(set(pairs)) == 1:
            return one(x, pairs[0])
        parts = jnp.split(x, len(pairs), 1)
        return jnp.concatenate([one(part, p) for part, p in zip(parts, pairs, strict=True)], 1)

    with jax.named_scope(scope):
        return jax.tree.map(each, tree)


def _by_heads(task: Task, made: RingPlan, returned: tuple, t: int) -> Partial:
    return arrived(task, made, (returned[0], returned[1].swapaxes(1, 2)), t)


def arrived(task: Task, made: RingPlan, returned: tuple, t: int) -> Partial:
    """(out, lse [B, N, C]) that came back from step t, as a partial result: where nothing came, no key was seen."""
    out, lse = returned
    out = out.astype(lse.dtype)
    pairs = homeward(made, t)
    came = np.array([[any(to == r for _, to in p) for p in pairs] for r in range(task.size)])
    if not came.all():
        here = jnp.repeat(jnp.asarray(came)[task.place()], lse.shape[2] // len(pairs))
        lse = jnp.where(here, lse, -jnp.inf)
    return out, lse
