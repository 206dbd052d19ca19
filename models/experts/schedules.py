"""Schedules of a stack of top-1 expert layers over devices: where a token's vector stands from layer to layer.

    returning    a token goes to its expert's device and comes back: two exchanges a layer
    coherent     it stays where its expert is (ExFlow): one exchange a layer, and all tokens gathered at the end
    speculative  the reduction of a mixer that is cut over heads hands each token to the device that it will probably
                 need; only wrong guesses are exchanged, there and back (speculative shuffling)

All give the same tokens, whatever the placement of the experts and whatever the guesses. Each runs on the devices of
`jax.shard_map` over one mesh axis. Buffers are static: a device has room for `places` vectors to each other device, and
`seats` for those that stand on it. What found no room is counted as `lost`, and its layer's expert is not applied.

Letters: W devices, N tokens of a step, t = N / W, D width, L layers, S seats.

Sources: ExFlow (Yao et al. 2024, arXiv:2401.08383); Speculative MoE (Li et al. 2025, arXiv:2503.04398).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

TOKEN, EXPERT = 0, 1  # columns of the numbers that travel with a vector


@dataclasses.dataclass(frozen=True)
class Stack:
    """The layers, as functions of the rows at hand; `layer` is a Python number.

    mix: `(layer, x [S, D], token [S]) -> (x [S, D], context)`: attention with all that a token's sequence said before,
      which every device holds, and its residual; `context` is a pytree of `[S, ...]`, what later steps need of it.
    route: `(layer, x [S, D]) -> (expert [S] int32, gate [S])`.
    expert: `(layer, x [S, D], expert [S]) -> [S, D]`: of experts that this device holds; -1 asks for nothing, and what
      it gives there is not read.
    """

    layers: int
    mix: Callable[..., Any]
    route: Callable[..., Any]
    expert: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Over:
    """The devices and their buffers. axis: of the mesh; devices: W; places: of a pair of devices; seats: S of
    `coherent` (0 = N, which always suffices, as `places` = t does for the other two and N for `coherent`)."""

    axis: str
    devices: int
    places: int
    seats: int = 0


class Given(NamedTuple):
    """What a schedule gives, the same on every device.

    x `[N, D]` after the last layer; context: pytree of `[L, N, ...]`, of `speculative` that of this device's heads;
    expert `[N, L]`, the trace; lost: choices that found no room, and tokens that found no seat.
    """

    x: jax.Array
    context: Any
    expert: jax.Array
    lost: jax.Array


def returning(stack: Stack, over: Over, placement: jax.Array, x: jax.Array) -> Given:
    """Tokens `x [t, D]` of this device go to their experts and come back; `placement [L, E]` names devices."""
    me = jax.lax.axis_index(over.axis)
    token = me * len(x) + jnp.arange(len(x))
    contexts, trace, lost = [], [], 0
    for layer in range(stack.layers):
        x, context = stack.mix(layer, x, token)
        expert, gate = stack.route(layer, x)
        y, missed = _there_and_back(stack, over, layer, placement[layer], x, expert)
        x, lost = x + gate[:, None] * y, lost + missed
        contexts.append(context)
        trace.append(expert)
    made = x, _stacked(contexts, 1), jnp.stack(trace, axis=1)
    x, context, trace = jax.lax.all_gather(made, over.axis, tiled=True)
    return Given(x, jax.tree.map(lambda c: jnp.moveaxis(c, 1, 0), context), trace, jax.lax.psum(lost, over.axis))


def coherent(stack: Stack, over: Over, placement: jax.Array, x: jax.Array) -> Given:
    """The same with one exchange a layer: a token stays on the device of its expert, with its residual.

    Every device ends with all vectors and all that mixers keep of them, by one gather of S seats of each.
    """
    t, W = len(x), over.devices
    S, N = over.seats or t * W, t * W
    me = jax.lax.axis_index(over.axis)
    token = jnp.where(jnp.arange(S) < t, me * t + jnp.arange(S), -1)
    x = jnp.zeros((S, x.shape[1]), x.dtype).at[:t].set(x)
    kept, lost = [], jnp.zeros((), jnp.int32)
    for layer in range(stack.layers):
        x, context = stack.mix(layer, x, jnp.maximum(token, 0))
        expert, gate = stack.route(layer, x)
        kept.append((context, expert, token))
        to = jnp.where(token >= 0, placement[layer][expert], -1)
        x, labels, gate, missed = _moved(over, to, x, jnp.stack([token, expert], axis=1), gate)
        token, there = labels[:, TOKEN], labels[:, TOKEN] >= 0
        # A vector without room stays where it is, where its expert is not.
        mine = there & (placement[layer][jnp.maximum(labels[:, EXPERT], 0)] == me)
        y = stack.expert(layer, x, jnp.where(mine, labels[:, EXPERT], -1))
        x, lost = x + jnp.where(mine, gate, 0)[:, None] * y, lost + missed
    last, whole = jax.lax.all_gather(((x, token), _stacked(kept, 0)), over.axis)
    x = _by_token(last[0].reshape(W * S, -1), last[1].reshape(-1), N)
    made = []
    for layer in range(stack.layers):
        context, expert, token = jax.tree.map(lambda a, i=layer: a[:, i].reshape(W * S, *a.shape[3:]), whole)
        made.append(jax.tree.map(functools.partial(_by_token, token=token, count=N), (context, expert)))
    context, trace = _stacked(made, 0)
    return Given(x, context, trace.T, jax.lax.psum(lost, over.axis))


def speculative(stack: Stack, over: Over, placement: jax.Array, order: jax.Array, x: jax.Array) -> Given:
    """Tokens are handed out by guesses: `order [L, N]` has the token of each place, t of them a device.

    Every device has all of `x [N, D]`, and `stack.mix` gives its own heads' share of what attention adds, without the
    residual. The reduce-scatter that adds the shares up hands each token to the device that was guessed, and the
    gather at the layer's end puts all back in order: both move what they move without a guess.
    """
    N, W = len(x), over.devices
    t, me = N // W, jax.lax.axis_index(over.axis)
    contexts, trace, lost = [], [], jnp.zeros((), jnp.int32)
    for layer in range(stack.layers):
        share, context = stack.mix(layer, x, jnp.arange(N))
        mine = jax.lax.dynamic_slice_in_dim(order[layer], me * t, t)
        here = x[mine] + jax.lax.psum_scatter(share[order[layer]], over.axis, scatter_dimension=0, tiled=True)
        expert, gate = stack.route(layer, here)
        y, missed = _there_and_back(stack, over, layer, placement[layer], here, expert)
        back = jax.lax.all_gather((here + gate[:, None] * y, expert), over.axis, tiled=True)
        x, expert = (jnp.zeros_like(a).at[order[layer]].set(a) for a in back)
        contexts.append(context)
        trace.append(expert)
        lost = lost + missed
    return Given(x, _stacked(contexts, 0), jnp.stack(trace, axis=1), jax.lax.psum(lost, over.axis))


def _there_and_back(stack: Stack, over: Over, layer: int, placement: Any, x: Any, expert: Any) -> tuple:
    """(what its expert gives each row, wherever that is; how many found no room)."""
    W, C, me = over.devices, over.places, jax.lax.axis_index(over.axis)
    to = placement[expert]
    slot, kept = _slots(to, me, W, C)
    own = stack.expert(layer, x, jnp.where(to == me, expert, -1))
    y = jnp.where((to == me)[:, None], own, 0)
    if C:
        swap = functools.partial(jax.lax.all_to_all, axis_name=over.axis, split_axis=0, concat_axis=0, tiled=True)
        sent, whose = (_put(a, slot, W * C).reshape(W, C, *a.shape[1:]) for a in (x, expert + 1))
        got, which = swap(sent).reshape(W * C, -1), swap(whose).reshape(-1) - 1
        back = swap(stack.expert(layer, got, which).reshape(W, C, -1)).reshape(W * C, -1)
        y = jnp.where((kept & (to != me))[:, None], back[jnp.minimum(slot, W * C - 1)], y)
    return y, jnp.sum(~kept, dtype=jnp.int32)


def _moved(over: Over, to: Any, x: Any, labels: Any, gate: Any) -> tuple:
    """(x, labels, gate, lost) of the rows that stand here after each went to its device `to [S]`, -1 = no row."""
    W, C, me = over.devices, over.places, jax.lax.axis_index(over.axis)
    slot, kept = _slots(to, me, W, C)
    stays = (to >= 0) & ((to == me) | ~kept)
    labels = jnp.where(stays[:, None], labels, -1), jnp.where((kept & ~stays)[:, None], labels, -1)
    rows = jnp.concatenate([x, gate[:, None]], axis=1)
    if not C:
        return x, labels[0], gate, jnp.sum(~kept, dtype=jnp.int32)
    swap = functools.partial(jax.lax.all_to_all, axis_name=over.axis, split_axis=0, concat_axis=0, tiled=True)
    sent = _put(rows, slot, W * C), _put(labels[1] + 1, slot, W * C) - 1
    got = [swap(a.reshape(W, C, -1)).reshape(W * C, -1) for a in sent]
    rows, labels = jnp.concatenate([rows, got[0]]), jnp.concatenate([labels[0], got[1]])
    # Those that are here in front; what has no seat is lost for good, and its token with it.
    seated = jnp.argsort(labels[:, TOKEN] < 0, stable=True)[: len(to)]
    standing = jnp.sum(labels[:, TOKEN] >= 0, dtype=jnp.int32)
    missed = jnp.sum(~kept, dtype=jnp.int32) + jnp.maximum(standing - len(to), 0)
    return rows[seated, :-1], labels[seated], rows[seated, -1], missed


def _slots(to: Any, me: Any, devices: int, places: int) -> tuple[jax.Array, jax.Array]:
    """(the slot of each row in the buffers, W C where it has none; whether it needs none or found one)."""
    leaves = (to >= 0) & (to != me)
    hot = leaves[:, None] & (to[:, None] == jnp.arange(devices))
    place = jnp.sum(jnp.where(hot, jnp.cumsum(hot, axis=0) - 1, 0), axis=1)
    kept = ~leaves | (place < places)
    return jnp.where(leaves & kept, to * places + place, devices * places), kept


def _put(rows: Any, slot: Any, count: int) -> jax.Array:
    """Rows at their slots of `count`, 0 elsewhere; those at `count` are left out."""
    return jnp.zeros((count, *rows.shape[1:]), rows.dtype).at[slot].set(rows, mode="drop")


def _by_token(rows: Any, token: Any, count: int) -> jax.Array:
    """Rows in the order of their tokens; -1 is no token."""
    return _put(rows, jnp.where(token >= 0, token, count), count)


def _stacked(trees: list, axis: int) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=axis), *trees)
