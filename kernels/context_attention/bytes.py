"""How many bytes each rank sends, by formula, and which schedule that makes the best.

b bytes per element of q, k, v; a bytes per element of lse and of what is accumulated (4, or 8 for float64); C = T / P.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from kernels import masks
from kernels.context_attention.layouts import ZIGZAG, exchange_of
from kernels.masks import EMPTY, Mask


class Sent(NamedTuple):
    """Bytes that each rank sends, int [P] each.

    forth: one way around the ring.
    back: the other way around.
    across: exchanged with several ranks at once (gathered, scattered or dealt out), counted where it leaves the rank.
    """

    forth: np.ndarray
    back: np.ndarray
    across: np.ndarray

    @property
    def busiest(self) -> int:
        """Bytes that the busiest rank sends in the busier direction."""
        return int(max(self.forth.max(), self.back.max()) + self.across.max())


class Sizes(NamedTuple):
    """Bytes of one rank's part. q: queries (or out) in their type. rows: one accumulated number per query and head."""

    q: int
    kv: int
    q_sum: int
    kv_sum: int
    rows: int


def sent(
    schedule: str,
    P: int,
    q_shape: tuple[int, ...],
    k_shape: tuple[int, ...],
    *,
    dtype: jnp.dtype = jnp.float32,
    causal: bool = True,
    backward: bool = False,
    return_lse: bool = False,
) -> Sent:
    """Bytes that each of P ranks sends in one forward pass, or in one backward pass.

    q_shape [B, T, N, H], k_shape [B, T, K, H]: whole arrays. causal: the causal mask, else every key is seen; a mask
    that leaves whole steps empty sends less. Not counted: arrays of the mask, [B, T] int32, which every rank knows.
    """
    (B, T, N, H), K = q_shape, k_shape[2]
    exchange = exchange_of(schedule, P)
    u, R, zigzag = exchange.ulysses, exchange.layout.size, exchange.layout.kind == ZIGZAG
    K = K if u == 1 else math.lcm(K, u)  # too few key/value heads are repeated before they are dealt out
    b = jnp.dtype(dtype).itemsize
    a = max(b, 4)
    q, kv, rows = (B * (T // P) * n for n in (N * H, K * H, N))
    size = Sizes(q * b, kv * b, q * a, kv * a, rows * a)
    if exchange.moves == "all":
        across = (P - 1) * 2 * (size.kv + (size.kv_sum if backward else 0))
        return _sent(P, across=across)
    if exchange.moves == "keys":
        across = (u - 1) * (2 * size.q + 2 * size.kv + (size.rows if return_lse else 0)) // u
        forth = (R - 1) * 2 * size.kv + (2 * R * size.kv_sum if backward and R > 1 else 0)
        return _sent(P, forth=forth, across=across)
    if exchange.moves == "pairs":
        forth = (2 * size.q + 2 * size.rows) + size.q_sum if backward else size.q + size.q_sum + size.rows
        return _sent(P, forth=(P - 1) * forth)
    onward, homeward = _hops(P, causal, zigzag)
    if backward:
        return _sent(P, forth=onward * (2 * size.q + 2 * size.rows), back=homeward * size.q_sum)
    return _sent(P, forth=onward * size.q, back=homeward * (size.q + size.rows))


def _hops(P: int, causal: bool, zigzag: bool) -> tuple[np.ndarray, np.ndarray]:
    """How many times each rank sends queries onward, and how many times results home: [P] each, halves for zigzag."""
    r = np.arange(P)
    if not causal:
        return np.full(P, P - 1), np.full(P, P - 1)
    if zigzag:  # whole queries until they have passed rank 0, then their later half
        return np.where(r > 0, (P - r) + (r - 1) / 2, (P - 1) / 2), (P - 1 - r) + r / 2
    # Rank 0's queries see no other rank's keys and stay; rank r's results are wanted by the ranks above it.
    return np.where(r < P - 1, P - 2, P - 1) if P > 1 else np.zeros(1), P - 1 - r


def _sent(P: int, forth=0, back=0, across=0) -> Sent:
    return Sent(*(np.broadcast_to(np.asarray(x, np.int64), (P,)) for x in (forth, back, across)))


def choose(q_shape: tuple, k_shape: tuple, mask: Mask | str, P: int, dtype: jnp.dtype = jnp.float32) -> str:
    """The name of the schedule that "auto" takes; see `explain`."""
    return _decide(q_shape, k_shape, mask, P, dtype)[0]


def explain(q_shape: tuple, k_shape: tuple, mask: Mask | str, P: int, dtype: jnp.dtype = jnp.float32) -> str:
    """Which schedule "auto" takes for q [B, T, N, H] and k [B, T, K, H] on P ranks, and why.

    The candidates are the schedules that share the work of this mask equally and whose traffic can hide behind
    attention (exchanges of heads and gathers cannot). The one that sends fewest bytes in its busier direction, over a
    forward and a backward pass, is taken.
    """
    return ": ".join(_decide(q_shape, k_shape, mask, P, dtype))


def _decide(q_shape, k_shape, mask, P, dtype) -> tuple[str, str]:
    mask = masks.parse(mask) if isinstance(mask, str) else mask
    T, N, K = q_shape[1], q_shape[2], k_shape[2]
    causal = _is_causal(mask, T)
    names = ("zigzag", "token_ring_zigzag") if causal else ("ring", "token_ring")
    if P == 1:
        return names[0], "one rank has nothing to send"
    if causal and T % (2 * P) and T % P == 0:
        return "striped", f"the mask is causal, and T={T} cuts into {P} equal parts but not into {2 * P}"

    def busiest(name: str) -> int:
        passes = [sent(name, P, q_shape, k_shape, dtype=dtype, causal=causal, backward=x) for x in (False, True)]
        return sum(p.busiest for p in passes)

    cost = {name: busiest(name) for name in names}
    best = min(names, key=cost.get)
    other = names[best == names[0]]
    moved = "keys and values move" if best == names[0] else "queries move and results return the other way"
    why = (
        f"{moved}: {cost[best]:,} bytes in the busier direction, both passes, against {cost[other]:,} of {other} "
        f"(N={N} query heads, K={K} key/value heads); the mask is {'' if causal else 'not '}causal"
    )
    if N % P == 0:
        across = sum(sent("ulysses", P, q_shape, k_shape, dtype=dtype, backward=x).busiest for x in (False, True))
        why += f"; ulysses would send {across:,}, none of it behind attention"
    return best, why


def _is_causal(mask: Mask, T: int) -> bool:
    """Whether no query sees a later key, as far as the mask says without its arrays."""
    if mask.is_static:
        step = max(1, -(-T // 64))  # 64 x 64 tiles above the diagonal tell
        return not (np.triu(np.asarray(mask.tiles(T, T, step, step)), 1) != EMPTY).any()
    if isinstance(mask, masks.And):
        return _is_causal(mask.left, T) or _is_causal(mask.right, T)
    if isinstance(mask, masks.Or):
        return _is_causal(mask.left, T) and _is_causal(mask.right, T)
    return False
