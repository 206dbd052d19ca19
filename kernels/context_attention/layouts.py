"""Which rank holds which tokens: contiguous pieces, zigzag pairs or stripes, and what each schedule asks for."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LAYOUTS = CONTIGUOUS, ZIGZAG, STRIPED = "contiguous", "zigzag", "striped"


class Layout(NamedTuple):
    """A sequence cut into `chunks` equal chunks; rank r of `size` holds `held` of them.

    contiguous: chunk r. zigzag: chunks r and 2 size - 1 - r. striped: chunk r, whose tokens are r, r + size, ...
    """

    kind: str
    size: int

    @property
    def held(self) -> int:
        """Chunks on each rank."""
        return 2 if self.kind == ZIGZAG else 1

    @property
    def chunks(self) -> int:
        """Chunks of the whole sequence."""
        return self.size * self.held

    def chunk(self, rank, place):
        """The chunk at `place` (0 .. held - 1) of `rank`; numbers or arrays, traced or not."""
        return rank + place * (self.chunks - 1 - 2 * rank) if self.kind == ZIGZAG else rank


class Exchange(NamedTuple):
    """The parts of a schedule: the arrays that move, the layout of tokens, and the ranks that exchange heads first.

    moves: "all" (keys gathered), "keys" (around the ring), "queries" (and their results back, directly), or "pairs"
    (queries together with their results, between neighbours only).
    ulysses: ranks of a group that cut heads instead of tokens between them; the ring then has P / ulysses places.
    """

    moves: str
    layout: Layout
    ulysses: int = 1


SCHEDULES = {
    "all_gather": ("all", CONTIGUOUS),
    "ring": ("keys", CONTIGUOUS),
    "zigzag": ("keys", ZIGZAG),
    "striped": ("keys", STRIPED),
    "ulysses": ("keys", CONTIGUOUS),
    "usp": ("keys", ZIGZAG),
    "token_ring": ("queries", CONTIGUOUS),
    "token_ring_neighbour": ("pairs", CONTIGUOUS),
    "token_ring_zigzag": ("queries", ZIGZAG),
}


def exchange_of(schedule: str, P: int) -> Exchange:
    """The parts of a schedule on P ranks.

    "usp" cuts heads between u ranks, u being the largest divisor of P with u * u <= P; "usp:4" says another u.
    Raises ValueError for a name that is not in SCHEDULES or a u that does not divide P.
    """
    name, _, given = schedule.partition(":")
    if name not in SCHEDULES or (given and name != "usp"):
        raise ValueError(f"schedule={schedule!r} is not known; use 'auto' or one of {', '.join(SCHEDULES)}.")
    moves, kind = SCHEDULES[name]
    divisors = [u for u in range(1, P + 1) if P % u == 0]
    u = 1
    if name == "ulysses":
        u = P
    elif name == "usp":
        u = max(d for d in divisors if d * d <= P)
        if given:
            if not given.isdigit() or int(given) not in divisors:
                choices = " or ".join(f"'usp:{d}'" for d in divisors)
                raise ValueError(f"schedule={schedule!r} does not cut {P} ranks into equal groups; use {choices}.")
            u = int(given)
    return Exchange(moves, Layout(kind, P // u), u)


def multiple(schedule: str, P: int) -> int:
    """The sequence length must be a multiple of this."""
    return math.lcm(exchange_of(schedule, P).layout.chunks, P)


def check_length(T: int, P: int, schedule: str) -> None:
    """Refuses a T that the schedule cannot cut into equal pieces, naming the next one that it can."""
    step = multiple(schedule, P)
    if T < 1 or T % step:
        raise ValueError(
            f"T={T} cannot be cut for schedule={schedule!r} on {P} ranks, which needs a multiple of {step}; "
            f"use T={max(1, -(-T // step)) * step}."
        )


def positions(T: int, P: int, schedule: str) -> np.ndarray:
    """Where each token of the schedule's order stands in the sequence: int32 [T]; rank r holds the r-th P-th of it."""
    check_length(T, P, schedule)
    return np.asarray(_to(np.arange(T, dtype=np.int32), exchange_of(schedule, P).layout, 0, np))


def to_layout(x: jax.Array, P: int, schedule: str, axis: int = 1) -> jax.Array:
    """Puts `axis` (T tokens in sequence order) of x [B, T, ...] into the order in which `schedule` wants it on P ranks.

    Tokens, positions and segment ids follow the same order. Raises ValueError for a T that cannot be cut.
    """
    check_length(x.shape[axis], P, schedule)
    return _to(x, exchange_of(schedule, P).layout, axis, jnp)


def from_layout(x: jax.Array, P: int, schedule: str, axis: int = 1) -> jax.Array:
    """The inverse of `to_layout`."""
    check_length(x.shape[axis], P, schedule)
    return restore(x, exchange_of(schedule, P).layout, axis)


def restore(x: jax.Array, layout: Layout, axis: int) -> jax.Array:
    """Puts `axis` of x from the order of `layout` back into sequence order."""
    if layout.kind == CONTIGUOUS or layout.size == 1:
        return x
    before, after, R = x.shape[:axis], x.shape[axis + 1 :], layout.size
    if layout.kind == STRIPED:
        return jnp.swapaxes(x.reshape(*before, R, -1, *after), axis, axis + 1).reshape(x.shape)
    pairs = x.reshape(*before, R, 2, -1, *after)
    first, second = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    return jnp.concatenate([first, jnp.flip(second, axis)], axis).reshape(x.shape)


def _to(x, layout: Layout, axis: int, xp):
    if layout.kind == CONTIGUOUS or layout.size == 1:
        return x
    before, after, R = x.shape[:axis], x.shape[axis + 1 :], layout.size
    if layout.kind == STRIPED:
        return xp.swapaxes(x.reshape(*before, -1, R, *after), axis, axis + 1).reshape(x.shape)
    first, second = xp.split(x.reshape(*before, 2 * R, -1, *after), 2, axis)
    return xp.stack([first, xp.flip(second, axis)], axis + 1).reshape(x.shape)
