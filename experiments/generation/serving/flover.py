"""Flover: all requests, however far they are, share one pass a token; a new one joins at any step, and rows of the tail
fill those of requests that ended (Yao et al. 2023, arXiv:2305.13484)."""

from collections.abc import Sequence

import numpy as np


def compaction(alive: Sequence[bool]) -> np.ndarray:
    """Old row of each new one `[n alive]`: rows below n stay, the k-th hole below n takes the k-th live row from n on.

    As few rows move as can, and none overwrites one that is still to be moved. alive: bool `[rows]`.
    """
    alive = np.asarray(alive, bool)
    n = int(alive.sum())
    source = np.arange(n)
    source[~alive[:n]] = n + np.flatnonzero(alive[n:])
    return source


def in_order(alive: Sequence[bool]) -> np.ndarray:
    """Old row of each new one `[n alive]`, order kept: the live rows as they stand."""
    return np.flatnonzero(np.asarray(alive, bool))


def moved(source: Sequence[int]) -> int:
    """Rows that an index map moves: those with source[i] != i."""
    return int(np.sum(np.asarray(source) != np.arange(len(source))))


def fused_passes(arrivals: Sequence[int], lengths: Sequence[int]) -> int:
    """Passes of the model with fusion: |union of [arrival, arrival + length)|, steps in which someone is there."""
    busy = {step for a, n in zip(arrivals, lengths, strict=True) for step in range(a, a + n)}
    return len(busy)


def separate_passes(lengths: Sequence[int]) -> int:
    """sum of lengths: passes where each request runs by itself."""
    return sum(lengths)


def batched_passes(arrivals: Sequence[int], lengths: Sequence[int], rows: int) -> tuple[int, int]:
    """(passes, last step) where batches of up to `rows` that have arrived run until their longest has ended."""
    order = sorted(range(len(arrivals)), key=lambda i: arrivals[i])
    now = passes = 0
    while order:
        now = max(now, arrivals[order[0]])
        batch = [i for i in order if arrivals[i] <= now][:rows]
        longest = max(lengths[i] for i in batch)
        passes, now = passes + longest, now + longest
        order = [i for i in order if i not in batch]
    return passes, now
