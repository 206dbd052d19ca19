"""Random numbers by address: every draw is a hash of (seed, row, purpose, index), so any row can be made by itself.

B below is rows. All functions are vectorised over rows and need no state; rows of any batch come out the same.
"""

import zlib

import numpy as np

from data import order

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WORD = (1 << 64) - 1


def derive(seed: int, purpose: str) -> int:
    """Another seed, for a part that must not move in step with the rest."""
    word = (seed + (zlib.crc32(purpose.encode()) << 32) + 1) & _WORD
    return int(order.mix(np.array([word], np.uint64))[0])


def words(seed: int, row: np.ndarray, purpose: str, count: int) -> np.ndarray:
    """`[B, count]` uniform 64-bit words: SplitMix64 streams (Steele et al. 2014) keyed by (seed, purpose, row)."""
    key = order.mix(np.asarray(row).astype(np.uint64) * _GOLDEN + np.uint64(derive(seed, purpose)))
    return order.mix(key[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)


def uniforms(seed: int, row: np.ndarray, purpose: str, count: int) -> np.ndarray:
    """`[B, count]` float64 in [0, 1)."""
    return (words(seed, row, purpose, count) >> np.uint64(11)) * 2.0**-53


def integers(seed: int, row: np.ndarray, purpose: str, count: int, high: int) -> np.ndarray:
    """`[B, count]` int64 in 0..high-1; no value is favoured by more than high / 2^53."""
    return (uniforms(seed, row, purpose, count) * high).astype(np.int64)


def permutation(seed: int, row: np.ndarray, purpose: str, count: int) -> np.ndarray:
    """`[B, count]` int64: 0..count-1 in random order."""
    return np.argsort(words(seed, row, purpose, count), axis=1, kind="stable")


def distinct(seed: int, row: np.ndarray, purpose: str, count: int, high: int) -> np.ndarray:
    """`[B, count]` int64: `count` different numbers of 0..high-1 in random order, in O(count) whatever `high` is."""
    row = np.asarray(row, np.int64)
    index = np.broadcast_to(np.arange(count), (len(row), count))
    placed = order.permute(index.ravel(), high, derive(seed, purpose), np.repeat(row, count))
    return placed.reshape(index.shape)


def weighted(seed: int, row: np.ndarray, purpose: str, count: int, weights: np.ndarray) -> np.ndarray:
    """`[B, count]` int64: different places of `weights` `[n]`, drawn one after another by weight among those left.

    The `count` smallest of -log(u_i) / w_i, in their order (Efraimidis & Spirakis 2006).
    """
    u = 1 - uniforms(seed, row, purpose, len(weights))
    return np.argsort(-np.log(u) / weights, axis=1, kind="stable")[:, :count]


def spread(seed: int, row: np.ndarray, purpose: str, sizes: np.ndarray, room: int) -> np.ndarray:
    """`[B, n]` starts of blocks of `sizes` `[n]`, in their order; the rest of `room` makes random gaps between them."""
    sizes = np.asarray(sizes, np.int64)
    gaps = np.sort(integers(seed, row, purpose, len(sizes), room - int(sizes.sum()) + 1), axis=1)
    return gaps + np.cumsum(sizes) - sizes
