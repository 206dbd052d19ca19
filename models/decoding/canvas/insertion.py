"""Sampling insertion models: one (slot, token) per call into a row of static shape, until the model says stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding import keys as key_scheme
from models.objectives.insertion import slot_log_probs, strings

Array = jax.Array
STOPS = ("sample", "threshold", "never")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How rows grow.

    Args:
      stop: "threshold" when p_stop >= `threshold` (ILM, 0.9); "sample" a coin of p_stop, which the exact law needs;
        "never" up to `length` tokens.
      threshold: of "threshold".
      temperature: of the drawn slots and tokens, 0 is argmax.
      room: the most tokens to insert in a row; None: as many as fit.
    """

    stop: str = "threshold"
    threshold: float = 0.9
    temperature: float = 1.0
    room: int | None = None

    def __post_init__(self):
        if self.stop not in STOPS:
            raise ValueError(f"stop={self.stop!r} is unknown; use one of {', '.join(STOPS)}")


class Start(NamedTuple):
    """What rows begin with.

    Args:
      tokens: [m] or [B, m]; the first `prefix` and the last `suffix` of them are kept together (infilling of free
        length: insertions happen only between). None: nothing.
      prefix: a number or [B].
      suffix: a number or [B].
      given: [B], how many of the tokens count in each row; None: all.
    """

    tokens: Array | None = None
    prefix: int | Array = 0
    suffix: int | Array = 0
    given: Array | None = None

    def row(self, batch: int, length: int, vocab_size: int) -> tuple[Array, Array]:
        """[BOS, tokens, padding] `[B, length + 1]` and how many tokens each holds [B]; BOS is V, padding V + 1."""
        tokens = jnp.zeros((0,), int) if self.tokens is None else jnp.asarray(self.tokens)
        count = tokens.shape[-1]
        if count > length or (self.given is None and self.prefix + self.suffix > count):
            raise ValueError(
                f"start has {count} tokens; they must fit length={length} and hold prefix={self.prefix} + "
                f"suffix={self.suffix}"
            )
        z = jnp.full((batch, length + 1), vocab_size + 1).at[:, 0].set(vocab_size).at[:, 1 : count + 1].set(tokens)
        return z, jnp.full(batch, count) if self.given is None else jnp.asarray(self.given)


def sample(
    insert: Callable[[Array, Array], tuple[Array, Array]],
    key: Array,
    *,
    batch: int,
    length: int,
    vocab_size: int,
    settings: Settings = Settings(),
    start: Start = Start(),  # noqa: B008 (immutable)
    requests: Array | None = None,
) -> tuple[Array, Array]:
    """Grows rows by insertion; safe under jit; a row that has stopped or is full makes no more calls.

    Args:
      insert: (z [B, length+1] = [BOS, tokens, padding], count [B]) -> slot logits [B, length+1, V], stop logits [B, 2]
        (class 1 is stop). BOS is V, padding V + 1.
      key: of the whole batch; each row folds its request number into it.
      batch: B.
      length: the most tokens a row may hold.
      vocab_size: V.
      settings: how rows grow.
      start: what they begin with.
      requests: [B] request numbers; by default the row's index.

    Returns:
      tokens [B, length], padded with V + 1; calls [B].
    """
    z, begun = start.row(batch, length, vocab_size)
    most = jnp.minimum(length, length if settings.room is None else begun + settings.room)
    first, last = (jnp.broadcast_to(edge, (batch,))[:, None] for edge in (start.prefix, start.suffix))
    keys, index = key_scheme.row_keys(key, batch, requests), jnp.arange(length + 1)

    def body(state):
        z, count, open_, calls = state
        logits, stop_logits = insert(z, count)
        calls = calls + open_
        p_stop = jax.nn.softmax(stop_logits.astype(jnp.promote_types(stop_logits.dtype, jnp.float32)), -1)[:, 1]
        coin = key_scheme.uniform(key_scheme.fold(keys, count, key_scheme.STOP), dtype=p_stop.dtype)
        halt = {"never": jnp.zeros_like(open_), "sample": coin < p_stop, "threshold": p_stop >= settings.threshold}
        halt = halt[settings.stop]
        inside = (index >= first) & (index <= count[:, None] - last)
        log_p = jnp.where(inside[..., None], slot_log_probs(logits, count), -jnp.inf).reshape(batch, -1)
        drawn = key_scheme.sample(key_scheme.fold(keys, count, key_scheme.TOKEN), log_p, settings.temperature)
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
