"""Which row comes next: pure arithmetic on the global row index, so that any step can be computed by itself.

Nothing here keeps state. The order of an epoch is a keyed permutation of the row indices and the parts of a mixture
take turns by a fixed schedule, so resuming, or continuing with another number of processes, is a matter of arithmetic.
"""

import functools
import math
from fractions import Fraction

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WORD = (1 << 64) - 1
_ROUNDS = 8
# Below 8 bits the halves are so small that some orders come more often than others (chi-square over all 24 orders of
# four rows sees it at 4 bits with any number of rounds; at 8 bits, with 120,000 epochs, nothing is seen).
_FEWEST_BITS = 8
_LONGEST_SCHEDULE = 1 << 16


def mix(x: np.ndarray) -> np.ndarray:
    """A bijective scrambler of 64-bit words (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: np.ndarray, count: int, seed: int, epoch: np.ndarray | int) -> np.ndarray:
    """The place of each `index` in a pseudo-random permutation of 0..count-1 chosen by (seed, epoch).

    Vectorised, with O(1) memory whatever `count` is: an unbalanced Feistel network on the smallest power of two that
    holds `count` (but at least 256), walked until the value falls below `count` (Black and Rogaway 2002, section 3).

    Args:
      index: `[n]` integers in 0..count-1.
      count: size of the permuted set.
      seed: any integer.
      epoch: `[n]` or one integer; every epoch has its own permutation.

    Returns: `[n]` int64.
    """
    index = np.atleast_1d(np.asarray(index, np.uint64))
    epoch = np.broadcast_to(np.asarray(epoch, np.uint64), index.shape)
    key = mix(mix(np.full(index.shape, seed & _WORD, np.uint64) + _GOLDEN) + epoch * _GOLDEN)
    keys = mix(key + (np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GOLDEN)[:, None])
    bits = max(_FEWEST_BITS, (count - 1).bit_length())
    low_bits = bits // 2
    place = _feistel(index, keys, low_bits, bits - low_bits)
    outside = np.flatnonzero(place >= count)
    while outside.size:  # a cycle always comes back to the set; beyond 256 rows, about half or more each time
        place[outside] = _feistel(place[outside], keys[:, outside], low_bits, bits - low_bits)
        outside = outside[place[outside] >= count]
    return place.astype(np.int64)


def _feistel(x: np.ndarray, keys: np.ndarray, low_bits: int, high_bits: int) -> np.ndarray:
    """One pass of the network: each half in turn is XORed with a keyed hash of the other half, hence a bijection."""
    shift = np.uint64(low_bits)
    low, high = x & np.uint64((1 << low_bits) - 1), x >> shift
    for r in range(0, _ROUNDS, 2):
        low = low ^ (mix(high + keys[r]) >> np.uint64(64 - low_bits))
        high = high ^ (mix(low + keys[r + 1]) >> np.uint64(64 - high_bits))
    return (high << shift) | low


def whole_weights(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Weights as coprime integers: exact as written (0.7 is 7/10) when their sum then is at most 65536, else rounded.

    Errors: ValueError when a weight is not a finite positive number, or too small a share to be given a turn.
    """
    for k, weight in enumerate(weights):
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"components[{k}].weight={weight!r} is not a positive number; use one such as 1.0.")
    fractions = [Fraction(repr(w)) for w in weights]
    denominator = math.lcm(*(f.denominator for f in fractions))
    whole = [int(f * denominator) for f in fractions]
    divisor = math.gcd(*whole)
    whole = [w // divisor for w in whole]
    if sum(whole) > _LONGEST_SCHEDULE:
        shares = [Fraction(w, sum(whole)) * _LONGEST_SCHEDULE for w in whole]
        whole = [int(s) for s in shares]
        by_remainder = sorted(range(len(whole)), key=lambda k: (whole[k] - shares[k], k))
        for k in by_remainder[: _LONGEST_SCHEDULE - sum(whole)]:
            whole[k] += 1
        if min(whole) == 0:
            k = whole.index(0)
            raise ValueError(
                f"components[{k}].weight={weights[k]!r} is too small a share of the sum {sum(weights)!r}; "
                f"use at least {sum(weights) / _LONGEST_SCHEDULE:.3g}."
            )
    return tuple(whole)


@functools.lru_cache(maxsize=16)
def _schedule(weights: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The part that takes each turn of one period (sum of weights turns), and its earlier turns in this period.

    The quota method (Balinski and Young 1975): among those whose next turn would not exceed their quota rounded up,
    the one whose quota rounded down demands it first. Every prefix n gives each part weight*n rounded up or down.
    """
    period = sum(weights)
    had = [0] * len(weights)
    due = [-(-period // w) for w in weights]
    component = np.empty(period, np.int32)
    rank = np.empty(period, np.int64)
    for turn in range(1, period + 1):
        k = min((d, k) for k, d in enumerate(due) if had[k] * period < weights[k] * turn)[1]
        component[turn - 1], rank[turn - 1] = k, had[k]
        had[k] += 1
        due[k] = -(-(had[k] + 1) * period // weights[k])
    return component, rank


def interleave(index: np.ndarray, weights: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Which part of a mixture the global row `index` comes from, and which of that part's rows it is.

    After any number n of rows each part has been given `weight / sum * n` rows, rounded up or down.

    Args:
      index: `[n]` integers >= 0.
      weights: whole numbers, as `whole_weights` gives.

    Returns: (component `[n]` int32, number of that component's earlier rows `[n]` int64).
    """
    component, rank = _schedule(weights)
    period, turn = np.divmod(np.asarray(index, np.int64), len(component))
    chosen = component[turn]
    return chosen, period * np.asarray(weights, np.int64)[chosen] + rank[turn]
