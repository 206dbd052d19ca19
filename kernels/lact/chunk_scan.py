"""A scan over the chunks of `[B, T, ...]` arrays that copies none of them, forwards or backwards.

`lax.scan` takes chunks and returns results stacked along a new first axis: copies as large as the inputs. Here each
step slices its chunk out of the array and writes its result, or its gradient, in place. The backward pass recomputes
each step from the carry before it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels.lowering import by_platform

# body(params, carry, flag, chunk) -> (carry, y); it must not close over traced values.
Body = Callable[[Any, Any, Any, tuple], tuple[Any, jax.Array]]


class Kernels(NamedTuple):
    """The whole scan in kernels, in place of a body.

    forward: (walk, group, params, carry, flags, xs) -> (last carry, ys, the carry before every `group`-th step as
        `lax.scan` would stack them, None where group is 0).
    backward: (walk, group, residuals, cotangents) as `scan_backward` -> gradients of (params, carry, xs).
    """

    forward: Callable
    backward: Callable


class ByPlatform(NamedTuple):
    """Bodies or kernels that compute the same, one for each platform that a program may be lowered for.

    default: of all platforms that are not named; or a sentence, that of the NotImplementedError there.
    elsewhere: (platform, what is taken there).
    """

    default: Body | Kernels | str
    elsewhere: tuple[tuple[str, Body | Kernels], ...] = ()


class Walk(NamedTuple):
    """The static arguments of `chunk_scan`; a body may be a sentence: why it does not run on other platforms."""

    body: Body | Kernels | str
    sizes: tuple[int, ...]
    steps: int
    length: int


def chunk_scan(
    body: Body | ByPlatform,
    params: Any,
    carry: Any,
    flags: Any,
    xs: tuple,
    *,
    sizes: tuple[int, ...],
    steps: int,
    length: int,
) -> tuple[Any, jax.Array]:
    """Runs `body` over `steps` chunks: chunk i of xs[j] is `[:, i * sizes[j] : (i + 1) * sizes[j]]` of every leaf.

    params, carry, xs: pytrees of floating arrays, all differentiable in reverse mode.
    flags: arrays `[steps, ...]` without gradient.

    y of each step is as long as its chunk of xs[0]. Returns the last carry and the ys side by side, `[B, length, ...]`,
    zero after the last chunk.

    Memory of the backward pass: the carry before each step where all of them are no larger than xs, or fewer than 16;
    otherwise before every sqrt(steps)-th step at the price of one more forward pass.
    """
    chosen = body if isinstance(body, ByPlatform) else ByPlatform(body)
    walk = Walk(chosen.default, sizes, steps, length)
    if not chosen.elsewhere and callable(chosen.default):
        return _scan(walk, params, carry, flags, xs)
    others = tuple((name, walk._replace(body=other)) for name, other in chosen.elsewhere)
    return _scan_by(walk, others, params, carry, flags, xs)


def _nbytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _take(xs: tuple, index: jax.Array, sizes: tuple[int, ...]) -> tuple:
    cut = jax.lax.dynamic_slice_in_dim
    return tuple(jax.tree.map(lambda x: cut(x, index * n, n, axis=1), x) for x, n in zip(xs, sizes, strict=True))  # noqa: B023


def _put(buffers: tuple, index: jax.Array, chunks: tuple, sizes: tuple[int, ...]) -> tuple:
    put = jax.lax.dynamic_update_slice_in_dim
    return tuple(
        jax.tree.map(lambda b, c: put(b, c.astype(b.dtype), index * n, axis=1), b, c)  # noqa: B023
        for b, c, n in zip(buffers, chunks, sizes, strict=True)
    )


def _at(flags: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False), flags)


def _forward(walk, params, carry, flags, xs, group):
    """(carry, out, the carry before every `group`-th step or None when group is 0)."""
    body, sizes, steps, length = walk
    shape = jax.eval_shape(body, params, carry, _at(flags, 0), _take(xs, 0, sizes))[1]
    out = jnp.zeros((shape.shape[0], length, *shape.shape[2:]), shape.dtype)

    def one(state, index):
        carry, out = state
        carry, y = body(params, carry, _at(flags, index), _take(xs, index, sizes))
        (out,) = _put((out,), index, (y,), sizes[:1])
        return carry, out

    if not group:
        carry, out = jax.lax.scan(lambda s, i: (one(s, i), None), (carry, out), jnp.arange(steps))[0]
        return carry, out, None

    def several(state, base):
        inner = lambda s, j: (_when(base + j < steps, lambda s: one(s, base + j), s, steps % group), None)  # noqa: E731
        return jax.lax.scan(inner, state, jnp.arange(group))[0], state[0]

    (carry, out), kept = jax.lax.scan(several, (carry, out), jnp.arange(0, steps, group))
    return carry, out, kept


def _when(condition: jax.Array, run: Callable, state: Any, uneven: int) -> Any:
    """run(state) where the condition holds, else the state; no branch where the groups come out even."""
    return jax.lax.cond(condition, run, lambda s: s, state) if uneven else run(state)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run_if(run: Callable, skip: Callable, condition: jax.Array, flags: Any, args: Any) -> Any:
    """run(flags, args) where the condition holds, else skip(flags, args); its gradient is one branch of the two again.

    flags have no gradient. The gradient of `lax.cond` itself keeps what either branch computed, as zeros for the other.
    """
    return jax.lax.cond(condition, run, skip, flags, args)


def _run_if_backward(run, skip, given, cotangents):
    condition, flags, args = given

    def pulled(branch):
        return lambda args, cotangents: jax.vjp(functools.partial(branch, flags), args)[1](cotangents)[0]

    return None, None, jax.lax.cond(condition, pulled(run), pulled(skip), args, cotangents)


run_if.defvjp(lambda run, skip, *given: (run_if(run, skip, *given), given), _run_if_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(walk, params, carry, flags, xs):
    carry, out, _ = _forward(walk, params, carry, flags, xs, 0)
    return carry, out


def kept_every(walk: Walk, carry: Any, xs: tuple) -> int:
    """How many steps lie between two carries that are kept for the backward pass; more than one if that halves them."""
    few = walk.steps * _nbytes(carry) <= _nbytes(xs)
    root = max(1, math.isqrt(walk.steps))
    return 1 if few or 2 * (-(-walk.steps // root) + root) > walk.steps else root


def scan_forward(walk: Walk, params: Any, carry: Any, flags: Any, xs: tuple) -> tuple[tuple, tuple]:
    """((last carry, ys), what `scan_backward` reads: (params, the carries that are kept, flags, xs))."""
    carry, out, kept = _forward(walk, params, carry, flags, xs, kept_every(walk, carry, xs))
    return (carry, out), (params, kept, flags, xs)


def scan_backward(walk: Walk, residuals: tuple, cotangents: tuple) -> tuple:
    """Gradients of (params, carry, None, xs) from those of (last carry, ys)."""
    (body, sizes, steps, _), (params, kept, flags, xs) = walk, residuals
    d_carry, d_out = cotangents
    group = -(-steps // jax.tree.leaves(kept)[0].shape[0])
    uneven = steps % group

    def one(state, index, carry):
        d_params, d_carry, d_xs = state

        def again(params, carry, chunk):
            return body(params, carry, _at(flags, index), chunk)

        (d_y,) = _take((d_out,), index, sizes[:1])
        _, pull = jax.vjp(again, params, carry, _take(xs, index, sizes))
        d_p, d_carry, d_chunk = pull((d_carry, d_y))
        return jax.tree.map(jnp.add, d_params, d_p), d_carry, _put(d_xs, index, d_chunk, sizes)

    def several(state, group_index):
        base = group_index * group
        carry = _at(kept, group_index)
        if group == 1:
            return one(state, base, carry), None

        def recompute(carry, j):
            step = lambda c: body(params, c, _at(flags, base + j), _take(xs, base + j, sizes))[0]  # noqa: E731
            return _when(base + j < steps, step, carry, uneven), carry

        _, carries = jax.lax.scan(recompute, carry, jnp.arange(group))

        def back(state, x):
            j, carry = x
            return _when(base + j < steps, lambda s: one(s, base + j, carry), state, uneven), None

        return jax.lax.scan(back, state, (jnp.arange(group), carries), reverse=True)[0], None

    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    groups = jnp.arange(-(-steps // group))
    state, _ = jax.lax.scan(several, (zeros(params), d_carry, zeros(xs)), groups, reverse=True)
    d_params, d_carry, d_xs = state
    return d_params, d_carry, None, d_xs


_scan.defvjp(scan_forward, scan_backward)


def _choose(run: Callable, walk: Walk, others: tuple, *args: Any) -> Any:
    """run(the walk of the platform in the making, *args)."""
    rest = {name: functools.partial(run, other) for name, other in others}
    plain = walk.body if isinstance(walk.body, str) else functools.partial(run, walk)
    return by_platform(*args, default=plain, **rest) if rest else plain(*args)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan_by(walk, others, params, carry, flags, xs):
    def run(walk, *args):
        return (walk.body.forward(walk, 0, *args) if isinstance(walk.body, Kernels) else _forward(walk, *args, 0))[:2]

    return _choose(run, walk, others, params, carry, flags, xs)


def _scan_by_forward(walk, others, params, carry, flags, xs):
    def run(walk, *args):
        if isinstance(walk.body, Kernels):
            return walk.body.forward(walk, kept_every(walk, carry, xs), *args)
        results, (_, kept, *_) = scan_forward(walk, *args)
        return *results, kept

    *results, kept = _choose(run, walk, others, params, carry, flags, xs)
    return tuple(results), (params, kept, flags, xs)


def _scan_by_backward(walk, others, residuals, cotangents):
    group = kept_every(walk, cotangents[0], residuals[3])

    def run(walk, residuals, cotangents):
        if isinstance(walk.body, Kernels):
            return walk.body.backward(walk, group, residuals, cotangents)
        d_params, d_carry, _, d_xs = scan_backward(walk, residuals, cotangents)
        return d_params, d_carry, d_xs

    d_params, d_carry, d_xs = _choose(run, walk, others, residuals, cotangents)
    return d_params, d_carry, None, d_xs


_scan_by.defvjp(_scan_by_forward, _scan_by_backward)
