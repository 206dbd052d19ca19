"""Rates of tokenizers on Markov sources, in closed form (Rajaraman et al. 2024, arXiv:2404.08335). Units: nats.

A source is a chain with transition matrix P `[S, S]`, P[x, y] = Pr(next = y | x), over symbols 0..S-1. A dictionary's
pieces are tuples of symbols. The rate of a model of tokens is nats a SYMBOL: entropy of a token / symbols of a token.
"""

from collections.abc import Sequence

import numpy as np


def stationary(P: np.ndarray) -> np.ndarray:
    """pi with pi P = pi and sum 1, `[S]`, of an irreducible chain."""
    S = len(P)
    equations = np.vstack([np.asarray(P, np.float64).T - np.eye(S), np.ones(S)])
    return np.linalg.lstsq(equations, np.r_[np.zeros(S), 1.0], rcond=None)[0]


def entropy(p: np.ndarray) -> float:
    """-sum p log p; zeros add nothing."""
    p = np.asarray(p, np.float64)
    p = p[p > 0]
    return float(-np.sum(p * np.log(p)))


def entropy_rate(P: np.ndarray) -> float:
    """H_inf = sum_x pi_x H(P[x])."""
    return float(sum(weight * entropy(row) for weight, row in zip(stationary(P), P, strict=True)))


def unigram_rate(P: np.ndarray) -> float:
    """H(pi): the loss of the best model of symbols that sees no context."""
    return entropy(stationary(P))


def block_rate(P: np.ndarray, m: int) -> float:
    """(H(pi) + (m - 1) H_inf) / m: the best unigram model over blocks of m symbols."""
    return (unigram_rate(P) + (m - 1) * entropy_rate(P)) / m


def switching(p: float, q: float) -> np.ndarray:
    """The binary source that leaves 0 with probability p and 1 with probability q, `[2, 2]`; rate: `switching_rate`."""
    return np.array([[1 - p, p], [q, 1 - q]])


def switching_rate(p: float, q: float) -> float:
    """(q h(p) + p h(q)) / (p + q), h(p) = -p log p - (1 - p) log(1 - p); h(p) where p = q."""
    return (q * entropy([p, 1 - p]) + p * entropy([q, 1 - q])) / (p + q)


def interleaved(P: np.ndarray, k: int) -> np.ndarray:
    """The order-k source x_t ~ P[x_{t-k}] as a chain over the last k symbols, `[S^k, S^k]`; the newest comes last.

    It is k independent copies of P in turn: its rate is that of P, and every context shorter than k tells nothing.
    """
    S = len(P)
    chain = np.zeros((S**k, S**k))
    for state in range(S**k):
        oldest = state // S ** (k - 1)
        for y in range(S):
            chain[state, (state * S) % S**k + y] += P[oldest, y]
    return chain


def dictionary_rates(P: np.ndarray, pieces: Sequence[tuple]) -> dict[str, float]:
    """Rates of a dictionary of which every prefix is a piece (as LZW's), read greedily, on an endless text.

    A token ends where the next symbol leads to no piece, so the next token begins with such a symbol: the first symbols
    of tokens are a chain, whose stationary law is found exactly.

    Returns:
      unigram: H(tokens) / E[symbols of a token], the best model without context;
      bigram: H(next token | token) / E[symbols];
      symbols: E[symbols of a token].

    Errors: ValueError where a prefix of a piece, or a symbol, is missing.
    """
    S, known = len(P), {tuple(piece) for piece in pieces}
    if any(piece[:-1] and piece[:-1] not in known for piece in known) or any((s,) not in known for s in range(S)):
        raise ValueError(
            "pieces lacks a prefix of a piece, or a symbol; give a dictionary with every prefix, as LZW's."
        )
    # joint[c, w, c']: a token that begins with c is w, and the next begins with c'.
    names = sorted(known)
    index = {piece: k for k, piece in enumerate(names)}
    joint = np.zeros((S, len(names), S))
    for c in range(S):
        paths = [((c,), 1.0)]
        while paths:
            piece, weight = paths.pop()
            for y in range(S):
                onward = weight * P[piece[-1], y]
                if (*piece, y) in known:
                    paths.append(((*piece, y), onward))
                else:
                    joint[c, index[piece], y] += onward
    mu = stationary(joint.sum(1))
    tokens = np.einsum("c,cwd->w", mu, joint)
    following = np.einsum("c,cwd->wd", mu, joint)  # token, first symbol of the next
    of_next = joint.sum(2)  # [c, w]: law of a token given its first symbol
    pairs = following @ of_next
    length = float(tokens @ np.array([len(piece) for piece in names]))
    return {
        "unigram": entropy(tokens) / length,
        "bigram": (entropy(pairs) - entropy(tokens)) / length,
        "symbols": length,
    }


def excess_factor(size: int, delta: float) -> float:
    """1 / (1 - eps), eps = log(1 / delta) / log(size): how far a dictionary of `size` may stay above H_inf.

    The leading term of the paper's bound for LZW; delta is the least entry of P.
    """
    eps = np.log(1 / delta) / np.log(size)
    return float(1 / (1 - eps)) if eps < 1 else float("inf")
