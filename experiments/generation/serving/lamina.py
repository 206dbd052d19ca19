"""Lamina: attention of decoding on devices with much memory, all else on devices with much compute (Chen et al. 2024,
arXiv:2405.01814).

Times are in one unit, for example seconds; of a pass over all layers.
"""

from collections.abc import Sequence

import numpy as np


def bytes_per_token(width: int, groups: int, layers: int, bytes_each: float = 2) -> float:
    """(2 + 2 / G) d e L: queries and outputs of width d, keys and values of d / G, between the two sides."""
    return (2 + 2 / groups) * width * bytes_each * layers


def memory_per_token(width: int, groups: int, layers: int, bytes_each: float = 2) -> float:
    """2 d e L / G: keys and values of a token, of which a step reads those of the whole context."""
    return 2 * width / groups * bytes_each * layers


def least_bandwidth(traffic: float, model: float, attention: float, slack: float = 0.2) -> float:
    """traffic / (slack (model + attention)): bytes a second at which the network adds at most `slack` of the time."""
    return traffic / (slack * (model + attention))


def roofline(flops: float, size: float, compute: float, bandwidth: float) -> float:
    """max(flops / compute, size / bandwidth): the time of a part that is bound by one of the two."""
    return max(flops / compute, size / bandwidth)


def interval(model: float, attention: float, exchange: float = 0.0, batches: int = 2) -> float:
    """Time between the steps of two batches that rotate: max((m + a) / n, a, m / max(1, n - 1)), a with the exchange.

    n batches share one group of attention workers and max(1, n - 1) replicas of the model. n = 1: m + a; n = 2:
    max(m, a), both sides busy where they are equal. A batch's own step takes n intervals.
    """
    a = attention + exchange
    return max((model + a) / batches, a, model / max(1, batches - 1))


def replica(batch: int, part: int, batches: int) -> int:
    """(batch + part) mod (n - 1): the replica that computes the part of the model (between two layers' attention) of a
    batch, so that each replica takes every batch in turn."""
    return (batch + part) % max(1, batches - 1)


def overlapped(old: float, send_query: float, new: float, send_rest: float, merge: float = 0.0) -> float:
    """max(send_query + old, new + send_rest) + merge: a layer's attention where the query is sent first.

    old: attention over what is held; new: computing this token's key and value, which are sent behind.
    """
    return max(send_query + old, new + send_rest) + merge


def merged(outputs: np.ndarray, log_sums: np.ndarray) -> np.ndarray:
    """sum_w softmax_w(log_sums) outputs: attention over a text in W parts, `[W, ..., d]`, `[W, ...]` -> `[..., d]`.

    outputs: of each worker, normalised over its own part; log_sums: log of the sum of exp of its scores.
    """
    top = log_sums.max(axis=0)
    weight = np.exp(log_sums - top)
    return (weight[..., None] * outputs).sum(axis=0) / weight.sum(axis=0)[..., None]


def per_price(tokens: float, seconds: float, prices: Sequence[float]) -> float:
    """tokens / (seconds sum prices): throughput for the price of all devices."""
    return tokens / (seconds * sum(prices))
