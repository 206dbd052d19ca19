"""How many tokens a layer keeps: shares of the prompt, bytes, pyramids, and PrefixKV's search. Listed in
docs/cache.md."""

import math

import numpy as np


def tokens(budget: float, length: int) -> int:
    """A budget in tokens: itself from 1 on, else floor(budget * length): a share of the text.

    Errors: ValueError for a negative budget.
    """
    if budget < 0:
        raise ValueError(f"budget={budget} is negative; use tokens such as 64, or a share such as 0.2.")
    return int(budget) if budget >= 1 else int(budget * length)


def from_bytes(size: int, *, layers: int, heads: int, width: int, itemsize: int, extra: int = 0) -> int:
    """floor(size / (layers heads (2 width itemsize + extra))): tokens whose keys and values fit into `size` bytes a
    row.

    Args:
      size: bytes a row.
      layers: L that keep a cache.
      heads: key heads K.
      width: H.
      itemsize: bytes of one number of a key.
      extra: bytes beside them per head and token: position, score, votes.
    """
    return size // (layers * heads * (2 * width * itemsize + extra))


def to_bytes(counts: list[int], *, heads: int, width: int, itemsize: int, extra: int = 0) -> int:
    """sum_l counts_l heads (2 width itemsize + extra): what the layers' slots take a row."""
    return sum(counts) * heads * (2 * width * itemsize + extra)


def h2o(prompt: int, heavy: float = 0.1, recent: float = 0.1) -> tuple[int, int]:
    """(heavy hitters, recent): floors of shares of the prompt (Zhang et al. 2023)."""
    return int(heavy * prompt), int(recent * prompt)


def keyformer(prompt: int, cache: float = 60.0, recent: float = 30.0) -> tuple[int, int]:
    """(key tokens, recent): total = floor(prompt cache/100), recent = floor(total recent/100) (Adnan et al. 2024)."""
    total = int(prompt * cache / 100)
    near = int(total * recent / 100)
    return total - near, near


def pyramid(capacity: int, window: int, length: int, layers: int, beta: int = 20) -> list[int]:
    """Tokens outside the window that layer l keeps, as released (Cai et al. 2024, arXiv:2406.02069).

    least = (capacity - window) // beta, most = 2 (capacity - window) - least; where most >= length - window, most is
    length - window and least = 2 (capacity - window) - most; layer l has most - l ((most - least) // (layers - 1)).
    The floored step lets the total exceed layers (capacity - window): `level` takes the excess back.
    """
    mean = capacity - window
    least = mean // beta
    most = 2 * mean - least
    if most >= length - window:
        most = length - window
        least = 2 * mean - most
    step = (most - least) // max(layers - 1, 1)
    return [most - layer * step for layer in range(layers)]


def level(counts: list[int], total: int) -> list[int]:
    """`counts` with their sum brought down to `total`: one token at a time from the largest, of equal ones the last."""
    counts = list(counts)
    while sum(counts) > total and max(counts) > 0:
        at = len(counts) - 1 - int(np.argmax(counts[::-1]))
        counts[at] -= 1
    return counts


def prefix_curve(scores: np.ndarray) -> np.ndarray:
    """`[L, n]`: mass of the m+1 highest of each layer's scores `[L, n]`, as a share of the layer's sum."""
    ordered = -np.sort(-np.asarray(scores), axis=-1)
    return np.cumsum(ordered / ordered.sum(-1, keepdims=True), axis=-1)


def prefix_counts(curve: np.ndarray, threshold: float) -> np.ndarray:
    """`[L]`: the shortest prefix of each layer whose mass reaches the threshold (n where none does)."""
    n = curve.shape[-1]
    return np.minimum([int(np.searchsorted(layer, threshold, side="left")) + 1 for layer in curve], n)


def prefix_forgotten(curve: np.ndarray, threshold: float, protected: int) -> np.ndarray:
    """`[L]`: tokens that each layer forgets: max(0, n - prefix - protected), protected = sinks + the last token."""
    return np.maximum(curve.shape[-1] - prefix_counts(curve, threshold) - protected, 0)


def prefix_search(scores: np.ndarray, ratio: float, sinks: int = 4, near: int = 5, rounds: int = 60) -> np.ndarray:
    """Tokens that each layer forgets, PrefixKV's bisection (Wang et al. 2024, arXiv:2412.03409), as released.

    One threshold in [0, 1] is bisected until the sum over layers is less than `near` tokens from ratio L n; the counts
    are then scaled to the target and floored.

    Args:
      scores: `[L, n]`, each layer's column sums of the mean over heads.
      ratio: the share of all tokens to forget, 0..1.
      sinks: the first tokens, which stay, as the last one does.
      near: how close is close enough.
      rounds: most halvings; the released loop has no end where the sum jumps by more than `near`.

    Returns:
      int `[L]`.
    """
    curve, protected = prefix_curve(scores), sinks + 1
    target, low, high = scores.size * ratio, 0.0, 1.0
    for _ in range(rounds):
        middle = (low + high) / 2
        forgotten = prefix_forgotten(curve, middle, protected)
        if abs(forgotten.sum() - target) < near:
            break
        low, high = (low, middle) if forgotten.sum() < target else (middle, high)
    return (forgotten * target / forgotten.sum()).astype(np.int32) if forgotten.sum() else forgotten.astype(np.int32)


def prefix_exact(scores: np.ndarray, total: int, least: int = 1) -> np.ndarray:
    """Tokens that each layer keeps, `[L]`, `total` in all: no other counts have a larger least kept mass.

    The threshold rule without bisection: every layer begins with `least`; the layer whose kept share is the lowest gets
    the next token (of equal ones the first), until `total` are dealt. Scores are `[L, n]`.

    Errors: ValueError where the total is below L least or above L n.
    """
    curve = prefix_curve(scores)
    L, n = curve.shape
    if not L * least <= total <= L * n or least < 1:
        raise ValueError(f"total={total} is not within {L} layers of {least} to {n} tokens; use {L * n // 2}.")
    counts = np.full(L, least)
    for _ in range(total - L * least):
        mass = np.where(counts < n, curve[np.arange(L), counts - 1], math.inf)
        counts[int(np.argmin(mass))] += 1
    return counts
