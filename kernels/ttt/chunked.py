"""TTT over a sequence: the fixed grid of mini-batches, and rows with documents or kept tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.lact.chunk_scan import ByPlatform, chunk_scan
from kernels.lact.schedule import (
    UpdateSchedule,
    boundaries,
    end,
    join,
    mask_tail,
    open_chunk,
    plan,
    select_rows,
    unwindowed,
    windows_of,
)
from kernels.ttt import reference as ref


class TTTState(NamedTuple):
    """The state between two calls. All shapes are static.

    layers: weights at the start of the open mini-batch.
    chunk: (k, v, eta) of the open mini-batch, `[B, K, ...]`; slots from `fill` on are undefined.
    fill: `[B]` int32, tokens in the open mini-batch, 1..K after a token.
    segment: `[B]` int32, segment id of the last token.
    """

    layers: ref.Layers
    chunk: tuple[jax.Array, jax.Array, jax.Array]
    fill: jax.Array
    segment: jax.Array


def _mini_batch(layers, norm, rate, q, tokens):
    """(out, (x, G) per map) of tokens that share a mini-batch and start at its first place. rate: `[C]`."""
    k, v, eta = tokens
    steps = ref.gradients(layers, norm, k, v)
    pairs = jnp.tril(rate[:, None] * jnp.moveaxis(eta, 2, 1)[:, :, None].astype(rate.dtype))
    return ref.read(layers, norm, q, steps, pairs, q.dtype).astype(q.dtype), steps


def _learn(layers, norm, rate, tokens):
    """The weights after the whole mini-batch `tokens`."""
    k, v, eta = tokens
    return ref.update(layers, ref.gradients(layers, norm, k, v), rate[-1] * eta.astype(rate.dtype), k.dtype)


def on_grid(q, tokens, layers, norm, rate, kernels):
    """Every row is one document that starts here. Returns (out, state).

    kernels: (what `chunk_scan` takes in place of its body or None, the kernels of other platforms).
    """
    batch, length = q.shape[:2]
    size = rate.shape[0]
    whole, last = length // size, -(-length // size) - 1

    def body(params, layers, learns, chunk):
        (norm, rate), (q, tokens) = params, chunk
        out, steps = _mini_batch(layers, norm, rate, q, tokens)

        def move(layers):
            return ref.update(layers, steps, rate[-1] * tokens[2].astype(rate.dtype), q.dtype)

        return jax.lax.cond(learns, move, lambda w: w, layers), out

    out = jnp.zeros_like(q)
    if whole:
        flags, sizes = jnp.arange(whole) < last, (size, size)
        instead, elsewhere = kernels
        scanned = {"sizes": sizes, "steps": whole, "length": length}
        bodies = ByPlatform(instead or body, elsewhere)
        layers, out = chunk_scan(bodies, (norm, rate), layers, flags, (q, tokens), **scanned)
    held = length - last * size
    if length % size:
        rest, kept = jax.tree.map(lambda x: x[:, last * size :], (q, tokens))
        end, _ = _mini_batch(layers, norm, rate[:held], rest, kept)
        out = jax.lax.dynamic_update_slice_in_dim(out, end, last * size, axis=1)
    chunk = open_chunk(tokens, last * size, size)
    fill = jnp.full((batch,), held, jnp.int32)
    return out, TTTState(layers, chunk, fill, jnp.zeros_like(fill))


def first_mini_batches(q, tokens, layers, norm, rate, where: UpdateSchedule):
    """Every token as if in the first mini-batch of a document that begins here; right for those that are.

    All in parallel: the weights are the initial ones. A token's mini-batch began at most K - 1 tokens ago, so queries
    go in blocks of K against keys of their own and the previous block.
    """
    batch, length = q.shape[:2]
    size = rate.shape[0]
    blocks = -(-length // size)

    def pad(x):
        return jnp.pad(x, ((0, 0), (size, blocks * size - length), *[(0, 0)] * (x.ndim - 2)))

    def pairs(x):  # [B * blocks, 2K, ...]: the previous and the own block
        x = pad(x).reshape(batch, blocks + 1, size, *x.shape[2:])
        return jnp.concatenate([x[:, :-1], x[:, 1:]], axis=2).reshape(batch * blocks, 2 * size, *x.shape[3:])

    k, v, eta = tokens
    steps = jax.tree.map(pairs, ref.gradients(layers, norm, k, v))
    position = pairs(jnp.broadcast_to(jnp.arange(length), (batch, length)))
    offset = pairs(where.offset)
    query, query_offset = position[:, size:, None], offset[:, size:, None]
    seen = (position[:, None] <= query) & (position[:, None] >= query - query_offset)
    # Padding before the row has position 0 as well: only real places may be seen.
    seen &= pairs(jnp.ones((batch, length), bool))[:, None]
    weight = jnp.where(seen, rate[query_offset], 0)[:, None] * jnp.moveaxis(pairs(eta), 2, 1)[:, :, None]
    spread = jax.tree.map(lambda w: jnp.repeat(w, blocks, axis=0), layers)
    queries = pad(q)[:, size:].reshape(batch * blocks, size, *q.shape[2:])
    out = ref.read(spread, norm, queries, steps, weight.astype(rate.dtype), q.dtype)
    return out.reshape(batch, blocks * size, *q.shape[2:])[:, :length].astype(q.dtype)


def in_documents(q, tokens, initial, norm, rate, state, segment_ids, lengths):
    """Rows that go on from `state`, hold several documents or end in padding. Returns (out, state)."""
    batch, length = q.shape[:2]
    size = rate.shape[0]
    layers, fill, last, kept, stream = initial, jnp.zeros((batch,), jnp.int32), None, 0, tokens
    if state is not None:
        layers, fill, last, kept = state.layers, state.fill, state.segment, size
        stream = join(state.chunk, fill, tokens)
    begins = jnp.zeros((batch, length), bool) if segment_ids is None else boundaries(segment_ids, last)
    where = plan(begins, fill, size, kept, lengths)

    def window(begin):
        """(q, tokens) of the mini-batches at these positions; tokens beyond the end of a document are never read."""
        return windows_of(q, begin, size), windows_of(stream, begin + kept, size)

    rows = jnp.arange(batch)[:, None]
    opened, _ = _mini_batch(layers, norm, rate, *window(-fill[:, None]))
    out = opened[rows, where.offset]
    if segment_ids is not None:
        fresh = first_mini_batches(q, tokens, initial, norm, rate, where)
        out = jnp.where(where.fresh[..., None, None], fresh, out)

    if where.when.shape[1]:

        def body(params, layers, flags, chunk):
            (norm, rate, initial), (active, reset), (q, tokens, before) = params, flags, chunk

            def run(layers):
                moved = _learn(select_rows(reset, initial, layers), norm, rate, before)
                layers = select_rows(active, moved, layers)
                return layers, _mini_batch(layers, norm, rate, q, tokens)[0]

            return jax.lax.cond(jnp.any(active), run, lambda w: (w, jnp.zeros_like(q)), layers)

        flags, steps = ((where.when < length).T, where.reset.T), where.when.shape[1]
        xs = (*window(where.begins()), window(where.begins(-size))[1])
        layers, later = chunk_scan(
            body, (norm, rate, initial), layers, flags, xs, sizes=(size,) * 3, steps=steps, length=steps * size
        )
        later = unwindowed(later, where.begins(), size, length)
        out = jnp.where((where.read >= 0)[..., None, None], later, out)

    begun, fill, first, segment = end(where, fill, kept, lengths, segment_ids, last)
    layers = select_rows(begun, initial, layers)
    chunk = windows_of(stream, first, size)
    return out, TTTState(layers, mask_tail(chunk, fill), fill, segment)
