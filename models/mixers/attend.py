"""Attention as mixers use it: over the row itself in training, over what a memory shows while a text is decoded."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels import masks
from kernels.attention import attention
from kernels.attention.cached import attend_cache, attend_looked, attend_products, attend_turned
from kernels.attention.sparse import Heads, sparse_attention
from kernels.column_sums import Noise, column_sums, row_lse
from kernels.context_attention import context_attention
from models.mixers.context import Context
from models.mixers.memory import Looks, Memory, Sums, View
from models.mixers.slots import own_path
from models.partition import Partition

HEADS = ("batch", None, "heads", None)
ROWS = ("batch", "heads", None)
SHARED = 4  # Queries of up to so many heads a key head meet keys that are rotated for them number by number.
LONG = 1024  # From so many first tokens on, memories that look are given sums: all weights take T x S numbers.


def attend(
    partition: Partition,
    op: Callable,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: masks.Mask,
    *,
    sinks: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """`op(q, k, v, mask=mask)` on every device's own rows and heads; array masks are cut with the rows they belong to.

    Where devices share a sequence, `kernels.context_attention` takes the place of `op`. The mask then reads places in
    the sequence, whatever the order of the tokens. q is `[B, T, N, H]`, k and v are `[B, S, K, H]`, the result is
    `[B, T, N, H]`. `sinks [N]`: scores of virtual keys, `bias [B, S]`: added to the scores of each key; both are for an
    `op` that takes them.
    """
    if partition.schedule:
        (axis,) = partition.mesh_axes("sequence")
        where = {"mesh": partition.mesh, "axis": axis, "schedule": partition.schedule, "layout": "schedule"}
        return context_attention(q, k, v, mask=mask, **where)
    rows = lambda leaf: ("batch" if leaf.shape[0] == q.shape[0] else None, *(None,) * (leaf.ndim - 1))  # noqa: E731
    given, axes = {}, {}
    if sinks is not None:
        given["sinks"], axes["sinks"] = sinks, ("heads",)
    if bias is not None:
        given["bias"], axes["bias"] = bias[:, None, None], ("batch", None, None, None)
    run = lambda q, k, v, mask, given: op(q, k, v, mask=mask, **given)  # noqa: E731
    return partition.run(run, (q, k, v, mask, given), (HEADS, HEADS, HEADS, jax.tree.map(rows, mask), axes), HEADS)


def attend_row(
    partition: Partition,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    context: Context,
    mask: masks.Mask,
    *,
    sinks: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """Attention of a row's tokens to one another, within their documents: `[B, T, N, H]`; `options` of `attention`."""
    if context.segment_ids is not None:
        mask = mask & masks.Segments(context.segment_ids, context.segment_ids)
    op = functools.partial(attention, **options)
    return attend(partition, op, q, k, v, mask, sinks=sinks, bias=context.key_bias)


def recall(
    partition: Partition,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    context: Context,
    mask: masks.Mask,
    memory: Memory,
    *,
    rotate: Callable[[jax.Array, jax.Array], jax.Array],
    steady: bool = False,
    implementation: str | None = None,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
) -> tuple[jax.Array, Memory]:
    """Attention of T new tokens to what the memory keeps and to one another; the memory with them.

    Args:
      partition: how rows and heads lie on the mesh.
      q, k, v: `[B, T, N, H]`, `[B, T, K, H]` twice, not rotated.
      context: of the pass; padding has negative positions.
      mask: what a token may see, by positions.
      memory: of this layer; its class says what becomes of the tokens.
      rotate: `(x [B, T, N|K, H], positions [B, T], within=0, along=None) -> x`, the layer's rotary positions
        (`rope.rotate`).
      steady: whether turns by `rotate` add up, whatever the text.
      implementation: of the attention kernel.
      softcap: cap * tanh(score / cap), for memories that keep everything in sight; others do not look through it.
      sinks: `[N]` scores of virtual keys; likewise.
    """
    stored = memory.rotary == "stored"
    if stored:
        q, k = rotate(q, context.positions), rotate(k, context.positions)
    turning = {"rotate": rotate, "steady": steady and implementation is None}
    memory, view = memory.read(q, k, v, context if stored else dataclasses.replace(context, **turning))
    keys = view.k
    if view.turns is not None:
        rule = masks.Positions(context.positions, view.position, rule=mask)
        return _turned(partition, q, view, rule, rotate, softcap=softcap, sinks=sinks), memory
    plain = not memory.looks and view.bias is None and view.keep is None and view.position.ndim == 2
    products = False
    if not stored:
        q = rotate(q, view.query_place)
        ranks = {"within": keys.shape[1]} if q.shape[1] == 1 else {}  # Places of keys are among so many.
        few = q.shape[1] == 1 and q.shape[2] <= SHARED * keys.shape[2]
        products = plain and implementation is None and few
        keys = rotate(keys, view.key_place, **ranks, **({"along": q} if products else {}))
    if view.window:
        mask = mask & masks.Window(view.window - 1, view.window - 1)
    if plain:
        rule = masks.Positions(context.positions, view.position, rule=mask)
        if context.paths is not None:
            rule = rule & masks.Dense(own_path(context.paths, view.start, keys.shape[1]))
        if context.segment_ids is not None:  # Texts that are read side by side, fresh: the keys are their own.
            rule = rule & masks.Segments(context.segment_ids, context.segment_ids)
        if context.among is not None:
            rule = rule & masks.Dense(context.among)
        if context.prefill and mask.is_static and not all(each.covers(q.shape[1]) for each in context.prefill[0]):
            return attend_patterns(partition, q, keys, view.v, context, mask, softcap, sinks), memory
        made = not stored and q.shape[1] == 1  # Keys were rotated for this pass.
        op = functools.partial(attend_cache, implementation=implementation, softcap=softcap, made=made)
        op = functools.partial(attend_products, softcap=softcap) if products else op
        return attend(partition, op, q, keys, view.v, rule, sinks=sinks), memory
    if softcap is not None or sinks is not None:
        raise ValueError(
            "a memory that chooses tokens by their scores does not see model.attention.softcap and sink_scores; use a "
            "memory that keeps everything."
        )
    if memory.sums and context.fresh and q.shape[1] >= LONG:
        return _summed(partition, q, keys, view, context, mask, memory, implementation)
    out, looks = _looked(partition, q, keys, view, context, mask)
    return out, memory.looked(looks, context) if memory.looks else memory


def attend_patterns(
    partition: Partition,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    context: Context,
    mask: masks.Mask,
    softcap: float | None,
    sinks: jax.Array | None,
) -> jax.Array:
    """Attention of the first tokens of rows to one another within the patterns of this layer's heads, `[B, T, N, H]`.

    Patterns that see everything whatever is read do not come here: attention's own kernel gives their bits.
    """
    length = jnp.sum(context.positions >= 0, axis=1, dtype=jnp.int32)
    heads = Heads.of(context.prefill[0], q.shape[1])

    def run(q, k, v, length, heads, sinks):
        return sparse_attention(q, k, v, heads, length=length, mask=mask, softcap=softcap, sinks=sinks)

    cut = jax.tree.map(lambda _: ("heads",), heads)
    axes = (HEADS, HEADS, HEADS, ("batch",), cut, None if sinks is None else ("heads",))
    return partition.run(run, (q, k, v, length, heads, sinks), axes, HEADS)


def _turned(
    partition: Partition,
    q: jax.Array,
    view: View,
    rule: masks.Mask,
    rotate: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    softcap: float | None,
    sinks: jax.Array | None,
) -> jax.Array:
    """Attention to keys that are rotated already, each of which reads one of the turns of a query."""
    turned = jnp.concatenate([rotate(q, place) for place in jnp.unstack(view.turns, axis=2)], axis=-1)
    B = len(turned)
    cut = jax.tree.map(lambda x: ("batch" if x.shape[0] == B else None, *(None,) * (x.ndim - 1)), rule)

    def run(q, k, v, turn, rule, sinks):
        return attend_turned(q, k, v, turn, mask=rule, first=view.first, softcap=softcap, sinks=sinks)

    axes = (HEADS, HEADS, HEADS, ("batch", None), cut, None if sinks is None else ("heads",))
    return partition.run(run, (turned, view.k, view.v, view.turn, rule, sinks), axes, HEADS)


def _looked(
    partition: Partition, q: jax.Array, keys: jax.Array, view: View, context: Context, mask: masks.Mask
) -> tuple[jax.Array, Looks]:
    """Attention of the queries, and what each of them made of each key."""
    seen = visible(view, context, mask)
    bias = view.bias if view.bias is None else view.bias[:, :, None]
    rows = lambda x: None if x is None else ("batch", "heads" if x.shape[1] > 1 else None, None, None, None)  # noqa: E731
    out, weights, logits = partition.run(
        attend_looked, (q, keys, view.v, seen, bias), (HEADS, HEADS, HEADS, rows(seen), rows(bias)),
        (HEADS, *[("batch", "heads", None, None, None)] * 2),
    )  # fmt: skip
    return out, Looks(weights, logits, jnp.sum(out * 0, axis=(1, 2, 3)) > 1)


def _summed(
    partition: Partition,
    q: jax.Array,
    keys: jax.Array,
    view: View,
    context: Context,
    mask: masks.Mask,
    memory: Memory,
    implementation: str | None,
) -> tuple[jax.Array, Memory]:
    """Attention of a first piece of many tokens by the kernel, and the memory after sums over its queries.

    In a first pass all heads see the same keys, those of the pass.
    """
    at = context.positions
    rule = masks.Positions(at, at, rule=mask)
    cut = jax.tree.map(lambda x: ("batch" if x.shape[0] == q.shape[0] else None, *(None,) * (x.ndim - 1)), rule)

    def attended(q, k, v, rule):
        return attention(q, k, v, mask=rule, return_lse=True, implementation=implementation)

    out, lse = partition.run(attended, (q, keys, view.v, rule), (HEADS, HEADS, HEADS, cut), (HEADS, ROWS))

    def columns(weights: jax.Array, noise: Noise | None = None) -> jax.Array:
        def added(q, k, lse, rule, weights):
            lse = lse if noise is None else row_lse(q, k, mask=rule, noise=noise)
            return column_sums(q, k, lse, mask=rule, weights=weights, noise=noise)

        if noise is not None and partition.ways("heads") > 1:  # A device would count its heads from 0.
            whole = partition.without("heads")
            return whole.run(added, (q, keys, lse, rule, weights), (HEADS, HEADS, ROWS, cut, ("batch", None)), ROWS)
        return partition.run(added, (q, keys, lse, rule, weights), (HEADS, HEADS, ROWS, cut, ("batch", None)), ROWS)

    def rows(which: jax.Array) -> Looks:
        index = jnp.maximum(which, 0)
        some = jnp.take_along_axis(q, index[..., None, None], axis=1)
        place = jnp.where(which >= 0, jnp.take_along_axis(at, index, axis=1), -1)
        return _looked(partition, some, keys, view, dataclasses.replace(context, positions=place), mask)[1]

    return out, memory.summed(Sums(columns, rows), context)


def visible(view: View, context: Context, mask: masks.Mask) -> jax.Array:
    """Which keys of a view each query sees, `[B, 1|K, 1|G, T, S]` bool; see `View`."""
    held = view.position if view.position.ndim == 3 else view.position[:, None]  # [B, 1|K, S]
    (B, T), S = context.positions.shape, held.shape[-1]
    by_head = lambda held: masks.Positions(context.positions, held, rule=mask).traced(T, S)[:, 0]  # noqa: E731
    seen = jax.vmap(by_head, in_axes=1, out_axes=1)(held)
    if context.paths is not None:
        seen = seen & own_path(context.paths, view.start, S)[:, None]
    seen = jnp.broadcast_to(seen, (B, *seen.shape[1:]))[:, :, None]
    if view.keep is None:
        return seen
    J, K = view.keep.shape[1], view.k.shape[2]
    return seen & view.keep.reshape(len(view.keep), min(J, K), -(-J // K), *view.keep.shape[2:])
