"""LaCT over a sequence: the fixed chunk grid, rows with documents or kept tokens, and one token at a time."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.lact import reference as ref
from kernels.lact.chunk_scan import chunk_scan, run_if
from kernels.lact.schedule import (
    boundaries,
    end,
    join,
    mask_tail,
    open_chunk,
    plan,
    select_rows,
    striped,
    unwindowed,
    whole_row,
    windows_of,
)
from kernels.lengths import norm


class LactState(NamedTuple):
    """The state between two calls of `lact`. All shapes are static, so it can be carried by a scan.

    carry: weights, momentum buffer and number of updates of the running document (see `reference.Carry`).
    chunk: (k, v, lr, momentum or None) of the open chunk, `[B, C, ...]`; slots from `fill` on are undefined. C is 0 for
        order="update_then_apply", where no chunk stays open.
    fill: `[B]` int32, tokens in the open chunk, 1..C after a token, 0 before the first.
    segment: `[B]` int32, segment id of the last token.
    """

    carry: ref.Carry
    chunk: tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]
    fill: jax.Array
    segment: jax.Array


def _norms(weights: ref.Weights, dtype: jnp.dtype) -> ref.Weights:
    return tuple(norm(w.astype(dtype), (-1,)) for w in weights)


def on_grid(q, tokens, weights, carry, chunk_size, order, rule):
    """Every row is one document that starts here: chunk c is tokens [cC, (c+1)C).

    Returns (out, carry, open chunk, tokens in it). Full chunks are scanned, a short last one follows by itself.
    """
    length, norms = q.shape[1], _norms(weights, carry.main[0].dtype)
    whole, last = length // chunk_size, -(-length // chunk_size) - 1
    update_first = order == "update_then_apply"

    def one_chunk(by, norms, carry, learns, chunk):
        """learns: a traced bool, read only by apply_then_update: whether anything follows this chunk."""
        q, tokens = chunk

        def learn(_, args):
            norms, carry, tokens = args
            return ref.learn(carry, *tokens, norms, by)

        args = norms, carry, tokens
        carry = learn(None, args) if update_first else carry
        out = by.network.apply(q, ref.fast_weights(carry, norms, by))
        return carry if update_first else run_if(learn, lambda _, args: args[1], learns, None, args), out

    if whole:
        learns = jnp.arange(whole) < last
        sizes = (chunk_size, chunk_size)
        body = rule.bodies(lambda by: functools.partial(one_chunk, by))
        xs, scanned = (q, tokens), {"sizes": sizes, "steps": whole, "length": length}
        carry, out = chunk_scan(body, norms, carry, learns, xs, **scanned)
    else:
        out = jnp.zeros_like(q)
    if length % chunk_size:
        rest = jax.tree.map(lambda x: x[:, whole * chunk_size :], (q, tokens))
        if update_first:
            carry = ref.learn(carry, *rest[1], norms, rule)
        end = rule.network.apply(rest[0], ref.fast_weights(carry, norms, rule))
        out = jax.lax.dynamic_update_slice_in_dim(out, end, whole * chunk_size, axis=1)
    held = length - last * chunk_size
    chunk = open_chunk(tokens, last * chunk_size, chunk_size)
    return out, carry, chunk, held


def in_documents(q, tokens, weights, state, segment_ids, lengths, chunk_size, rule):
    """Rows that go on from `state`, hold several documents or end in padding (apply_then_update): (out, state).

    With `rule.axis` (no state or lengths) tokens and `chunk_size` are this device's share; the state is undefined.
    """
    batch, length = q.shape[:2]
    carry = initial = ref.start(weights, batch, jnp.promote_types(q.dtype, jnp.float32), tokens[3] is not None)
    norms = _norms(weights, carry.main[0].dtype)
    fill, last, kept, stream = jnp.zeros((batch,), jnp.int32), None, 0, tokens
    if state is not None:
        carry, fill, last, kept = state.carry, state.fill, state.segment, chunk_size
        stream = join(state.chunk, fill, tokens)
    if rule.axis is not None:
        begins = boundaries(whole_row(segment_ids, rule.axis), None)
        where = striped(plan(begins, fill, chunk_size * jax.lax.axis_size(rule.axis), 0, None), rule.axis)
    else:
        begins = jnp.zeros((batch, length), bool) if segment_ids is None else boundaries(segment_ids, last)
        where = plan(begins, fill, chunk_size, kept, lengths)
    span = min(chunk_size, length)

    # Tokens in the first chunk of a document meet the initial weights, those of the open chunk the state's.
    out = jnp.zeros_like(q)
    if state is None or segment_ids is not None:
        out = ref.apply_fast_weights(q, ref.fast_weights(initial, norms, rule))
    if state is not None:
        went_on = ref.apply_fast_weights(q[:, :span], ref.fast_weights(carry, norms, rule))
        went_on = jnp.pad(went_on, ((0, 0), (0, length - span), (0, 0), (0, 0)))
        out = jnp.where(where.fresh[..., None, None], out, went_on)

    if where.when.shape[1]:

        def one_update(by, params, carry, flags, chunk):
            def run(flags, args):
                (active, reset), ((norms, initial), carry, (q, tokens)) = flags, args
                begun = select_rows(reset, initial, carry)
                carry = select_rows(active, ref.learn(begun, *tokens, norms, by), carry)
                return carry, by.network.apply(q, ref.fast_weights(carry, norms, by))

            args = params, carry, chunk
            if rule.axis is not None:  # All devices of the mesh meet in its sums, whatever their rows hold.
                return run(flags, args)
            return run_if(run, lambda _, args: (args[1], jnp.zeros_like(args[2][0])), jnp.any(flags[0]), flags, args)

        learned = windows_of(stream, where.begins(kept - chunk_size), chunk_size)
        flags = (where.happens.T, where.reset.T)
        xs, steps = (windows_of(q, where.begins(), span), learned), where.when.shape[1]
        body = rule.bodies(lambda by: functools.partial(one_update, by))
        scanned = {"sizes": (span, chunk_size), "steps": steps, "length": steps * span}
        carry, later = chunk_scan(body, (norms, initial), carry, flags, xs, **scanned)
        later = unwindowed(later, where.begins(), span, length)
        out = jnp.where((where.read >= 0)[..., None, None], later, out)

    begun, fill, first, segment = end(where, fill, kept, lengths, segment_ids, last)
    carry = select_rows(begun, initial, carry)
    chunk = windows_of(stream, first, chunk_size)
    return out, LactState(carry, mask_tail(chunk, fill), fill, segment)


def one_token(q, tokens, weights, state, segment_ids, lengths, chunk_size, rule):
    """One new token per row: constant work, plus one update when a row's chunk was full. Returns (out, state)."""
    batch = q.shape[0]
    counts = jnp.ones((batch,), bool) if lengths is None else lengths > 0
    carry, fill, segment = state.carry, state.fill, state.segment
    norms = _norms(weights, carry.main[0].dtype)
    ready = counts & (fill == chunk_size)
    if segment_ids is not None:
        begins = counts & (segment_ids[:, 0] != segment)
        segment = jnp.where(counts, segment_ids[:, 0].astype(jnp.int32), segment)
        ready = ready & ~begins
    carry = jax.lax.cond(
        jnp.any(ready),
        lambda c: select_rows(ready, ref.learn(c, *state.chunk, norms, rule), c),
        lambda c: c,
        carry,
    )
    restart = ready
    if segment_ids is not None:
        initial = ref.start(weights, batch, carry.main[0].dtype, carry.momentum is not None)
        carry, restart = select_rows(begins, initial, carry), ready | begins
    fill = jnp.where(restart, 0, fill)
    place = (jnp.arange(batch), jnp.where(counts, fill, chunk_size))  # Padding has no slot: it is dropped.
    chunk = jax.tree.map(lambda x, y: x.at[place].set(y[:, 0].astype(x.dtype), mode="drop"), state.chunk, tokens)
    out = ref.apply_fast_weights(q, ref.fast_weights(carry, norms, rule))
    return out, LactState(carry, chunk, fill + counts, segment)
