"""A unigram model of pieces, by expectation and maximisation (Kudo 2018, arXiv:1804.10959), in one fixed order.

P(word) = sum over its cuts of the product of P(piece). Every sum runs over words in their order, so that the same words
give the same bits; the tokenizers library sums in the order of a hash table that differs each time.
"""

import math
from collections import Counter
from collections.abc import Mapping

LONGEST = 16  # bytes of a piece
_KEPT = 0.75  # of the pieces, at each round
_SEEDS = 4  # candidates for each piece that is wanted


def seeds(words: Mapping[bytes, int], count: int) -> dict[bytes, float]:
    """The single bytes of `words`, and the `count` longer substrings with the most bytes covered; piece -> uses."""
    single: Counter = Counter()
    longer: Counter = Counter()
    for word, uses in words.items():
        for begin in range(len(word)):
            single[word[begin : begin + 1]] += uses
            for end in range(begin + 2, min(len(word), begin + LONGEST) + 1):
                longer[word[begin:end]] += uses
    best = sorted((p for p, n in longer.items() if n > 1), key=lambda p: (-longer[p] * len(p), p))[:count]
    return {piece: float(single[piece] or longer[piece]) for piece in [*sorted(single), *best]}


def log_probabilities(uses: Mapping[bytes, float]) -> dict[bytes, float]:
    """log(uses / sum)."""
    total = math.log(sum(uses.values()))
    return {piece: math.log(n) - total for piece, n in uses.items()}


def expected(words: Mapping[bytes, int], log_p: Mapping[bytes, float]) -> tuple[dict[bytes, float], float]:
    """(expected uses of each piece over all cuts, log-likelihood of the words), by forward and backward sums."""
    uses, total = dict.fromkeys(log_p, 0.0), 0.0
    p = {piece: math.exp(value) for piece, value in log_p.items()}
    for word, count in words.items():
        size = len(word)
        arcs = [
            (a, b, word[a:b]) for a in range(size) for b in range(a + 1, min(size, a + LONGEST) + 1) if word[a:b] in p
        ]
        forward, backward = [1.0] + [0.0] * size, [0.0] * size + [1.0]
        for a, b, piece in arcs:
            forward[b] += forward[a] * p[piece]
        for a, b, piece in reversed(arcs):
            backward[a] += backward[b] * p[piece]
        for a, b, piece in arcs:
            uses[piece] += count * forward[a] * p[piece] * backward[b] / forward[size]
        total += count * math.log(forward[size])
    return uses, total


def best_cut(word: bytes, log_p: Mapping[bytes, float], without: bytes | None = None) -> list[bytes]:
    """The cut of the largest probability; `without` that piece. Of equals the one with the longest last piece."""
    score, back = [0.0] + [-math.inf] * len(word), [0] * (len(word) + 1)
    for b in range(1, len(word) + 1):
        for a in range(max(0, b - LONGEST), b):
            piece = word[a:b]
            if piece in log_p and piece != without and score[a] + log_p[piece] > score[b]:
                score[b], back[b] = score[a] + log_p[piece], a
    pieces, end = [], len(word)
    while end:
        pieces.append(word[back[end] : end])
        end = back[end]
    return pieces[::-1]


def pruned(uses: Mapping[bytes, float], size: int) -> dict[bytes, float]:
    """The single bytes, and of the longer pieces those whose absence costs the most, `size` in all.

    The cost of a piece is uses * (log p - log p of its best cut without it).
    """
    log_p = log_probabilities(uses)
    cost = {
        piece: uses[piece] * (log_p[piece] - sum(log_p[q] for q in best_cut(piece, log_p, piece)))
        for piece in uses
        if len(piece) > 1
    }
    single = [piece for piece in uses if len(piece) == 1]
    kept = {*single, *sorted(cost, key=lambda piece: (-cost[piece], piece))[: max(0, size - len(single))]}
    return {piece: n for piece, n in uses.items() if piece in kept}


def train(words: Mapping[bytes, int], size: int) -> dict[bytes, float]:
    """At most `size` pieces with their log-probabilities; every byte of `words` is one.

    Rounds of two steps of expectation and maximisation, each followed by `pruned` to three quarters. A longer piece
    with less than half an expected use is dropped.

    Args:
      words: word -> count; words of more than some hundred bytes lose the smallest probabilities to rounding.
    """
    uses = seeds(words, _SEEDS * size)
    while True:
        for _ in range(2):
            uses, _ = expected(words, log_probabilities(uses))
            uses = {piece: max(n, 1e-3) for piece, n in uses.items() if len(piece) == 1 or n >= 0.5}
        if len(uses) <= size:
            return log_probabilities(uses)
        uses = pruned(uses, max(size, int(_KEPT * len(uses))))
