"""Sampling insertion models: one (slot, token) per call into a row of static shape, until the model says stop."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding import keys as key_scheme
from models.objectives.insertion import slot_log_probs, strings

Array = jax.Array
STOPS = ("sample", "threshold", "never")


def sample(
    insert: Callable[[Array, Array], tuple[Array, Array]],
    key: Array,
    *,
    batch: int,
    length: int,
    vocab_size: int,
    stop: str = "threshold",
    threshold: float = 0.9,
    temperature: float = 1.0,
    init: Array | None = None,
    prefix: int | Array = 0,
    suffix: int | Array = 0,
    given: Array | None = None,
    room: int | None = None,
    bos: int | None = None,
    pad: int | None = None,
    requests: Array | None = None,
) -> tuple[Array, Array]:
    """Grows rows by insertion; safe under jit; a row that has stopped or is full makes no more calls.

    Args:
      insert: (z [B, length+1] = [BOS, tokens, padding], count [B]) -> slot logits [B, length+1, V], stop logits [B, 2]
        (class 1 is stop).
      length: the most tokens a row may hold.
      stop: "threshold" when p_stop >= `threshold` (ILM, 0.9); "sample" a coin of p_stop, which the exact law needs;
        "never" up to `length` tokens.
      init: [m] or [B, m] tokens to begin with; the first `prefix` and the last `suffix` of them are kept together
        (infilling of free length: insertions happen only between).
      given: [B], how many tokens of each row of init count, all if None; prefix and suffix may then be [B], too.
      room: the most tokens to insert in a row.
      bos: V by default.
      pad: V + 1 by default.

    Returns:
      tokens [B, length], padded with `pad`; calls [B].
    """
    if stop not in STOPS:
        raise ValueError(f"stop={stop!r} is unknown; use one of {', '.join(STOPS)}")
    bos, pad = vocab_size if bos is None else bos, vocab_size + 1 if pad is None else pad
    init = jnp.zeros((0,), int) if init is None else jnp.asarray(init)
    start = init.shape[-1]
    if start > length or (given is None and prefix + suffix > start):
        raise ValueError(
            f"init has {start} tokens; they must fit length={length} and hold prefix={prefix} + suffix={suffix}"
        )
    z = jnp.full((batch, length + 1), pad).at[:, 0].set(bos).at[:, 1 : start + 1].set(init)
    begun = jnp.full(batch, start) if given is None else jnp.asarray(given)
    most = jnp.minimum(length, length if room is None else begun + room)
    first, last = (jnp.broadcast_to(edge, (batch,))[:, None] for edge in (prefix, suffix))
    keys, index = key_scheme.row_keys(key, batch, requests), jnp.arange(length + 1)

    def body(state):
        z, count, open_, calls = state
        logits, stop_logits = insert(z, count)
        calls = calls + open_
        p_stop = jax.nn.softmax(stop_logits.astype(jnp.promote_types(stop_logits.dtype, jnp.float32)), -1)[:, 1]
        coin = key_scheme.uniform(key_scheme.fold(keys, count, key_scheme.STOP), dtype=p_stop.dtype)
        halt = {"never": jnp.zeros_like(open_), "sample": coin < p_stop, "threshold": p_stop >= threshold}[stop]
        inside = (index >= first) & (index <= count[:, None] - last)
        log_p = jnp.where(inside[..., None], slot_log_probs(logits, count), -jnp.inf).reshape(batch, -1)
        drawn = key_scheme.sample(key_scheme.fold(keys, count, key_scheme.TOKEN), log_p, temperature)
        moved, grow = put(z, *jnp.divmod(drawn, logits.shape[-1])), open_ & ~halt
        return jnp.where(grow[:, None], moved, z), count + grow, grow & (count + grow < most), calls

    state = (z, begun, begun < most, jnp.zeros(batch, int))
    z, _, _, calls = jax.lax.while_loop(lambda s: s[2].any(), body, state)
    return z[:, 1:], calls


def put(z: Array, slot: Array, token: Array) -> Array:
    """Rows [B, S] with `token` [B] inserted after index `slot` [B].

    Entries after the slot move one to the right; the last one is dropped.
    """
    index = jnp.arange(z.shape[1])
    moved = jnp.where(index > slot[:, None] + 1, jnp.roll(z, 1, -1), z)
    return jnp.where(index == slot[:, None] + 1, token[:, None].astype(z.dtype), moved)


def exact_law(
    insert: Callable[[Array, Array], tuple[Array, Array]],
    *,
    length: int,
    vocab_size: int,
    stop: str = "sample",
    threshold: float = 0.9,
) -> dict[tuple[int, ...], float]:
    """Probability of every final string of up to `length` tokens, by recursion from the empty one (tiny alphabets)."""
    rows, counts = strings(vocab_size, length)
    logits, stop_logits = insert(jnp.asarray(rows), jnp.asarray(counts))
    moves = np.exp(np.asarray(slot_log_probs(logits, jnp.asarray(counts)), np.float64))
    halt = np.asarray(jax.nn.softmax(stop_logits, -1), np.float64)[:, 1]
    halt = {"sample": halt, "threshold": (halt >= threshold) * 1.0, "never": 0 * halt}[stop]
    names = [tuple(int(v) for v in row[1 : count + 1]) for row, count in zip(rows, counts, strict=True)]
    mass, law = dict.fromkeys(names, 0.0), {}
    mass[()] = 1.0
    for i, name in enumerate(names):  # shortest first: every string comes after those it is grown from
        here = mass[name]
        ends = 1.0 if counts[i] == length else halt[i]
        law[name] = here * ends
        if here == 0 or ends == 1:
            continue
        for slot in range(counts[i] + 1):
            for token in range(vocab_size):
                mass[(*name[:slot], token, *name[slot:])] += here * (1 - ends) * moves[i, slot, token]
    return law
