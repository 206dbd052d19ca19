"""Laws of tokenizers."""

import itertools

import numpy as np

from data.tokenizers import covers, digits, lzw, pairs, theory
from experiments.claims.laws.law import Law
from models.segments import words

_ROUNDINGS = 1e-12  # Sums and products of at most some thousands of numbers below 1, in float64.


class _Pairs:
    """Byte pairs over a and b; the last id ends a text."""

    pieces = (b"a", b"b", b"ab", b"aba", b"bb", b"")
    ranks = {(b"a", b"b"): 0, (b"ab", b"a"): 1, (b"b", b"b"): 2}

    def encode(self, text: bytes) -> list[int]:
        """Ids by the merges."""
        return [self.pieces.index(piece) for piece in pairs.encode(text, self.ranks)]


def byte_law() -> Law:
    """A source of bytes that is read through a tokenizer keeps the law of its next byte.

    A chain over two letters gives texts of 7; the law of their tokens, by enumeration, is the model. Prefixes of up to
    five letters, all of them. Error: absolute, of the next letter's probability.

    Source: Phan et al. 2024, arXiv:2410.09303
    """
    chain, first, length = np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([0.4, 0.6]), 7
    starts: dict[tuple[int, ...], float] = {}
    for text in itertools.product((0, 1), repeat=length):
        p = first[text[0]] * np.prod([chain[x, y] for x, y in itertools.pairwise(text)])
        ids = (*_Pairs().encode(bytes(97 + x for x in text)), len(_Pairs.pieces) - 1)
        for k in range(len(ids) + 1):
            starts[ids[:k]] = starts.get(ids[:k], 0.0) + p

    def model(ids: tuple[int, ...]) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(np.array([starts.get((*ids, i), 0.0) for i in range(len(_Pairs.pieces))]) / starts[ids])

    far, cases = 0.0, 0
    for count in range(6):
        for text in itertools.product((0, 1), repeat=count):
            law = covers.ByteLaw(_Pairs(), model)
            for x in text:
                law.read(97 + x)
            want = chain[text[-1]] if text else first
            far = max(far, float(np.abs(law.row().next_byte()[97:99] - want).max()))
            cases += 1
    return Law(far, _ROUNDINGS, cases)


def blocks() -> Law:
    """The best unigram model over blocks of m symbols of a Markov source pays (H(pi) + (m - 1) H_inf) / m a symbol.

    Against the entropy of all blocks, for three chains of three symbols and m of 1 to 5. Error: nats.

    Source: Rajaraman et al. 2024, arXiv:2404.08335, section 3
    """
    far, cases = 0.0, 0
    for seed, m in itertools.product(range(3), range(1, 6)):
        P = np.random.default_rng(seed).dirichlet(np.ones(3), 3)
        pi, nats = theory.stationary(P), 0.0
        for block in itertools.product(range(3), repeat=m):
            p = pi[block[0]] * np.prod([P[x, y] for x, y in itertools.pairwise(block)])
            nats -= p * np.log(p)
        far, cases = max(far, abs(theory.block_rate(P, m) - nats / m)), cases + 1
    return Law(far, _ROUNDINGS, cases)


def dictionaries() -> Law:
    """The law of tokens given the last one has, for every dictionary of a Markov source, the source's own rate.

    LZW dictionaries of 4 to 40 pieces, learned from texts of three chains. Error: nats a symbol.

    Source: Rajaraman et al. 2024, arXiv:2404.08335
    """
    far, cases = 0.0, 0
    for seed, size in itertools.product(range(3), (4, 10, 40)):
        rng = np.random.default_rng(seed)
        P = rng.dirichlet(np.ones(3), 3)
        text = bytes(rng.integers(0, 3, 400).tolist())
        pieces = lzw.train([text], size, [bytes([s]) for s in range(3)])
        rates = theory.dictionary_rates(P, [tuple(piece) for piece in pieces])
        far, cases = max(far, abs(rates["bigram"] - theory.entropy_rate(P))), cases + 1
    return Law(far, _ROUNDINGS, cases)


def words_mass() -> Law:
    """The texts of a model of words, with the beginnings that are longer, have the probability 1 in all.

    A model over two letters with an end mark, rows drawn from their context, up to 1 to 8 symbols. Error: absolute.

    Source: Neitemeier et al. 2025, arXiv:2501.10322
    """

    def row(before: tuple, word: tuple) -> np.ndarray:
        return np.log(np.random.default_rng([len(before), *map(len, before), 7, *word]).dirichlet(np.ones(3)))

    masses = [sum(words.total_mass(row, (0, 1), 2, most)) for most in range(1, 9)]
    return Law(float(np.abs(np.array(masses) - 1).max()), _ROUNDINGS, len(masses))


def digit_groups() -> Law:
    """Groups of three digits from the right end at powers of 1000 in both numbers and their sum; from the left they
    agree only where the lengths agree modulo 3.

    All pairs of lengths up to 12. Error: pairs of lengths where this is not so.

    Source: Singh and Strouse 2024, arXiv:2402.14903
    """

    def places(count: int, direction: str) -> set[int]:
        ends = np.cumsum(digits.groups(count, direction))
        return {count - int(end) for end in ends[:-1]}

    wrong, cases = 0, 0
    for a, b in itertools.product(range(1, 13), repeat=2):
        low = range(1, min(a, b))
        cut = lambda n, way, low=low: places(n, way) & set(low)  # noqa: E731
        wrong += cut(a, "right") != cut(b, "right")
        if min(a, b) > 3:
            wrong += (cut(a, "left") == cut(b, "left")) != (a % 3 == b % 3)
        cases += 1
    return Law(float(wrong), 0.0, cases)
