"""Measures of tokenizers: plain functions of counts, pieces and boundaries. An encoding is a sequence of ids."""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np


def bytes_per_token(num_bytes: Sequence[int], num_tokens: Sequence[int]) -> float:
    """sum of bytes / sum of tokens over documents."""
    return float(np.sum(num_bytes) / np.sum(num_tokens))


def fertility(tokens_per_word: Sequence[int]) -> float:
    """Tokens a word: sum / count, at least 1 where every word has a token (Rust et al. 2021)."""
    return float(np.mean(tokens_per_word))


def renyi_entropy(counts: Sequence[float], order: float = 2.5, base: float = 2.0) -> float:
    """H_a(p) = log(sum_v p_v^a) / (1 - a) of p = counts / sum; a = 1 is Shannon's, -sum p log p.

    Args:
      counts: [V] uses of each token; zeros add nothing.
      order: a > 0.
      base: of the logarithm; 2 gives bits.
    """
    p = np.asarray(counts, np.float64)
    p = p[p > 0] / p.sum()
    nats = -np.sum(p * np.log(p)) if order == 1 else np.log(np.sum(p**order)) / (1 - order)
    return float(nats / np.log(base))


def renyi_efficiency(counts: Sequence[float], order: float = 2.5, vocab_size: int | None = None) -> float:
    """H_a(p) / log V (Zouhar et al. 2023, arXiv:2306.16842), in 0..1.

    Args:
      counts: [V] uses of each token.
      order: a; the paper's best is 2.5, the released code's default 3.
      vocab_size: V; None counts the tokens that were used, as the released code does.
    """
    V = int(np.count_nonzero(counts)) if vocab_size is None else vocab_size
    return renyi_entropy(counts, order, np.e) / float(np.log(V))


def parity(tokens: Mapping[str, Sequence[int]], reference: str) -> dict[str, float]:
    """Tokens of a language over those of `reference` on parallel texts, mean of the ratios (Petrov et al. 2023).

    Args:
      tokens: language -> tokens of each parallel text, in one order.
    """
    base = np.asarray(tokens[reference], np.float64)
    return {language: float(np.mean(np.asarray(counts) / base)) for language, counts in tokens.items()}


def boundary_agreement(found: Iterable[int], gold: Iterable[int]) -> dict[str, float]:
    """Precision, recall and F1 of places where a token ends against gold places; 0/0 counts as 1."""
    found, gold = set(found), set(gold)
    both = len(found & gold)
    precision = both / len(found) if found else 1.0
    recall = both / len(gold) if gold else 1.0
    f1 = 2 * precision * recall / (precision + recall) if both else float(not found and not gold)
    return {"precision": precision, "recall": recall, "f1": f1}


def ends(pieces: Iterable[bytes | str]) -> list[int]:
    """Where each piece ends, from the start of the text; the end of the text is the last."""
    return np.cumsum([len(piece) for piece in pieces]).tolist()


def shares(unique: Iterable[str], words: Collection[str], morphemes: Collection[str]) -> dict[str, float]:
    """%TR and %Pure: 100 times the share of unique tokens that are words, and that are one morpheme.

    Args:
      unique: tokens of an encoding, each once; blanks around a token are not part of it, case is not read.
      words, morphemes: lower case.

    Source: Bayram et al. 2025, arXiv:2502.07057
    """
    tokens = {token.strip().lower() for token in unique} - {""}
    if not tokens:
        return {"words": 0.0, "pure": 0.0}
    return {
        "words": 100 * sum(token in words for token in tokens) / len(tokens),
        "pure": 100 * sum(token in morphemes for token in tokens) / len(tokens),
    }


def script(piece: bytes) -> str:
    """The one class of a piece: "bytes" where it is no UTF-8, "blank", "digit", "symbol", a script, or "mixed".

    A script is the first word of the Unicode names of the letters ("latin", "cyrillic", "cjk", ...); marks and what is
    no letter do not count beside letters.
    """
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return "bytes"
    if not text.strip():
        return "blank"
    scripts = {unicodedata.name(c, "UNKNOWN").split()[0].lower() for c in text if c.isalpha()}
    if len(scripts) > 1:
        return "mixed"
    if scripts:
        return scripts.pop()
    return "digit" if any(c.isdigit() for c in text) else "symbol"


def scripts(pieces: Iterable[bytes]) -> dict[str, int]:
    """Pieces of each class of `script`; the counts sum to the number of pieces, specials (empty) under "special"."""
    return dict(Counter(script(piece) if piece else "special" for piece in pieces))


def coverage(counts: Sequence[int]) -> float:
    """Share of the vocabulary [V] that is used at all."""
    counts = np.asarray(counts)
    return float(np.count_nonzero(counts) / len(counts))


def interval(
    numerators: Sequence[float], denominators: Sequence[float], level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of sum(numerators) / sum(denominators) over documents (percentiles; Efron 1979).

    Args:
      numerators, denominators: [documents], e.g. bytes and tokens of each.
      level: its coverage.
      draws: samples of as many documents, with replacement.
      seed: of the draws.
    """
    top, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    rng = np.random.default_rng(seed)
    ratios = np.empty(draws)
    for k in range(draws):  # One sample at a time: documents may be many.
        chosen = rng.integers(0, len(top), len(top))
        ratios[k] = top[chosen].sum() / below[chosen].sum()
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
