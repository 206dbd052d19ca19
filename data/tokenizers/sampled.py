"""Tokenizers drawn at random around a text, on which a hypernetwork learns (Minixhofer et al. 2024, arXiv:2405.07883).

A tokenizer is a unigram model of substrings. The score of a substring p is the share of bytes that it would cover,
q(p) = uses(p) len(p) / sum, with noise: log(q(p) + z), z ~ N(0, sigma^2), where that is above 0; sigma is drawn anew
for each tokenizer, log sigma ~ N(log noise, spread^2). The best stay, and all bytes. The released code cuts text into
words by GPT-2's pattern and tries every fourth beginning of a piece; here words lie between blanks, and all are tried.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from data.tokenizers import unigram

_WORDS = re.compile(rb" {2,16}| ?[^ \n]{1,64}| |\n{1,16}")
BYTES = [bytes([b]) for b in range(256)]


def words(text: bytes) -> list[bytes]:
    """Words with the blank before each, runs of blanks and of ends of lines; they join to `text`."""
    return _WORDS.findall(text)


def covered(counts: Mapping[bytes, int], longest: int = unigram.LONGEST) -> dict[bytes, int]:
    """uses(p) len(p) of each substring of 2 to `longest` bytes of the words in `counts`, in order of discovery."""
    found: dict[bytes, int] = {}
    for word, uses in counts.items():
        for begin in range(len(word) - 1):
            for end in range(begin + 2, min(len(word), begin + longest) + 1):
                piece = word[begin:end]
                found[piece] = found.get(piece, 0) + uses * (end - begin)
    return found


def noise_scale(rng: np.random.Generator, noise: float = 1e-5, spread: float = 4.0) -> float:
    """sigma with log sigma ~ N(log noise, spread^2); 0 where `noise` is 0."""
    return math.exp(math.log(noise) + spread * rng.standard_normal()) if noise else 0.0


def log_scores(scores: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """log(s / sum s + noise), `[n]`; -inf where that is not above 0."""
    q = scores / scores.sum() + noise
    return np.log(np.where(q > 0, q, 1)) + np.where(q > 0, 0, -np.inf)


def draw(counts: Mapping[bytes, int], size: int, sigma: float, rng: np.random.Generator) -> dict[bytes, float]:
    """Piece -> log score of a tokenizer of `size` pieces: all bytes first, then the best substrings.

    A byte has the score of the least substring before the noise, so that it is used where nothing longer fits.

    Errors: ValueError where the text has too few substrings.
    """
    found = covered(counts)
    if len(found) < size - len(BYTES):
        raise ValueError(
            f"size={size} pieces are more than the text has substrings for; use {len(BYTES) + len(found)} or less."
        )
    scores = np.fromiter(found.values(), np.float64, len(found))
    noised = log_scores(scores, sigma * rng.standard_normal(len(scores)))
    best = np.argsort(-noised, kind="stable")[: size - len(BYTES)]
    pieces, least = [*found], math.log(scores.min() / scores.sum())
    low = np.where(np.isfinite(noised), noised, -1e5)
    return dict.fromkeys(BYTES, least) | {pieces[k]: float(low[k]) for k in best}


class Encoder:
    """Ids of words by the most probable cut: place of a piece in the order of `log_p`; words are kept."""

    def __init__(self, log_p: Mapping[bytes, float]):
        self._log_p, self._ids = log_p, {piece: i for i, piece in enumerate(log_p)}
        self._known: dict[bytes, list[int]] = {}

    def __call__(self, text: bytes) -> list[int]:
        """Ids of `text`, word by word."""
        out: list[int] = []
        for word in words(text):
            if word not in self._known:
                self._known[word] = [self._ids[piece] for piece in unigram.best_cut(word, self._log_p)]
            out += self._known[word]
        return out
