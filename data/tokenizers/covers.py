"""Covers of a prefix and the exact law of the next byte of a model of tokens (Phan et al. 2024, arXiv:2410.09303).

A sequence of tokens is valid where it begins the encoding of some text. cover(x) holds the valid sequences whose last
token begins inside x and reaches or passes its end. A text that begins with x has exactly one of them at its start:

    P(x) = sum over cover(x) of P(t_1, ..., t_k),        P(b | x) = P(xb) / sum_b' P(xb').

The model is a function from ids so far to log-probabilities `[V]` of the next; it may know tokens without bytes
(an end): they never extend a text.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

Ids = tuple[int, ...]
Model = Callable[[Ids], np.ndarray]
# What may follow a blank, of each kind that patterns of words tell apart: a letter, a digit, a mark, the end of a line.
BEHIND = (b"a", b"0", b".", b"\n")


class Encoder(Protocol):
    """What is read of a tokenizer: the bytes of each id (b"" for specials), and the encoding of a text."""

    pieces: Sequence[bytes]

    def encode(self, text: bytes) -> Sequence[int]:
        """Ids of `text`."""


def canonical(tokenizer: Encoder, ids: Sequence[int]) -> bool:
    """encode(decode(ids)) == ids."""
    text = b"".join(tokenizer.pieces[i] for i in ids)
    return tuple(int(i) for i in tokenizer.encode(text)) == tuple(ids)


class Valid:
    """Whether ids begin the encoding of some text, with the answers kept.

    Ids that are canonical do. Where a character of UTF-8 is unfinished at their end, they need not be canonical (our
    byte-level tokenizers write broken characters byte by byte): then some token must continue it validly. Nor where a
    blank is at their end, which tokenizers of words may give to the word behind it: then the encoding of their text
    and one of `BEHIND` must begin with them.
    """

    def __init__(self, tokenizer: Encoder):
        self._tokenizer, self._known = tokenizer, {}

    @functools.cached_property
    def _inner(self) -> list[int]:
        """Tokens that begin inside of a character."""
        return [i for i, piece in enumerate(self._tokenizer.pieces) if piece and 0x80 <= piece[0] < 0xC0]

    def __call__(self, ids: Ids) -> bool:
        if ids not in self._known:
            self._known[ids] = self._begins(ids, 3)
        return self._known[ids]

    def _begins(self, ids: Ids, further: int) -> bool:
        """`further`: tokens that may be tried; a character has at most three bytes behind its first."""
        if canonical(self._tokenizer, ids):
            return True
        text = b"".join(self._tokenizer.pieces[i] for i in ids)
        if ends_blank(text):
            return any(tuple(map(int, self._tokenizer.encode(text + more)[: len(ids)])) == ids for more in BEHIND)
        return bool(further and unfinished(text)) and any(self._begins((*ids, i), further - 1) for i in self._inner)


def ends_blank(text: bytes) -> bool:
    """Whether the last character of `text` is a blank of any kind."""
    return text[-3:].decode("utf-8", "replace")[-1:].isspace()


def unfinished(text: bytes) -> int:
    """Bytes at the end of `text` that begin a character of UTF-8 and do not finish it; 0 where there are none."""
    for back in range(1, min(3, len(text)) + 1):
        byte = text[-back]
        if byte >= 0xC2:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF5 else 0
            return back if back < length else 0
        if not 0x80 <= byte < 0xC0:
            return 0
    return 0


def covers(tokenizer: Encoder, prefix: bytes, valid: Callable[[Ids], bool] | None = None) -> list[Ids]:
    """cover(prefix), sorted; of an empty prefix the empty sequence.

    Found from scratch: the encodings of every beginning of the prefix, and every token that covers the rest.

    Args:
      valid: which sequences count (None: `Valid`, which begin an encoding).
    """
    valid = valid or Valid(tokenizer)
    whole: list[list[Ids]] = [[()]] + [[] for _ in prefix]  # sequences that end exactly at a place
    found: list[Ids] = [] if prefix else [()]
    for begin in range(len(prefix)):
        rest = prefix[begin:]
        fitting = [i for i, piece in enumerate(tokenizer.pieces) if piece and _agree(piece, rest)]
        for ids in whole[begin]:
            for i in fitting:
                if not valid((*ids, i)):
                    continue
                end = begin + len(tokenizer.pieces[i])
                if end < len(prefix):
                    whole[end].append((*ids, i))
                else:
                    found.append((*ids, i))
    return sorted(found)


def _agree(piece: bytes, rest: bytes) -> bool:
    return piece.startswith(rest) or rest.startswith(piece)


def log_probability(model: Model, ids: Ids) -> float:
    """log P(t_1, ..., t_k) = sum of the model's log-probabilities."""
    return float(sum(model(ids[:k])[i] for k, i in enumerate(ids)))


def prefix_log_probability(tokenizer: Encoder, model: Model, prefix: bytes, valid=None) -> float:
    """log P(prefix), the logarithm of the sum over its covers; -inf where there are none."""
    return _log_sum([log_probability(model, ids) for ids in covers(tokenizer, prefix, valid)])


def string_log_probability(tokenizer: Encoder, model: Model, text: bytes, end: int) -> float:
    """log P(text and then the token `end`): that of its one encoding, with the end."""
    ids = tuple(int(i) for i in tokenizer.encode(text))
    return log_probability(model, ids) + float(model(ids)[end])


@dataclasses.dataclass(frozen=True)
class Row:
    """The law of what follows a prefix x, as joint log-probabilities."""

    log_joint: np.ndarray  # [256] log P(xb)
    log_end: float  # log P(x and then a token without bytes)
    log_lost: float  # log of the mass on tokens that make the sequence invalid

    def next_byte(self) -> np.ndarray:
        """P(b | x) = P(xb) / sum_b' P(xb'), `[256]`: ends and invalid continuations are left out, as released."""
        return np.exp(self.log_joint - _log_sum(self.log_joint))


class ByteLaw:
    """The law of a text that is read byte by byte; the covers of what was read are kept with their probabilities.

    Covers that end at the last byte branch into all tokens, grouped by their first byte; longer ones give their next
    byte; those that disagree with the byte read are dropped. One call of the model for each cover that ends exactly.
    """

    def __init__(self, tokenizer: Encoder, model: Model, valid: Callable[[Ids], bool] | None = None):
        self.tokenizer, self.model = tokenizer, model
        self.valid = valid or Valid(tokenizer)
        self._first = np.array([piece[0] if piece else -1 for piece in tokenizer.pieces])
        self._covers: dict[Ids, tuple[bytes, float]] = {(): (b"", 0.0)}  # ids -> (bytes beyond the text, log P)
        self._grown: dict[Ids, tuple[bytes, float]] | None = None
        self._row: Row | None = None
        self.log_p = 0.0  # of the text read
        self.log_kept = 0.0  # sum over its bytes of log(sum_b P(xb) / P(x)): 0 where nothing is lost or ended

    @property
    def covers(self) -> dict[Ids, float]:
        """Covers of the text read, with their log-probabilities."""
        return {ids: log_p for ids, (_, log_p) in self._covers.items()}

    def row(self) -> Row:
        """The law of the next byte."""
        if self._row is None:
            self._grow()
        return self._row

    def _grow(self) -> None:
        grown, ends, lost = {}, [], []
        for ids, (beyond, log_p) in self._covers.items():
            if beyond:
                grown[ids] = (beyond, log_p)
                continue
            following = np.asarray(self.model(ids), np.float64) + log_p
            for i in np.flatnonzero(following > -np.inf).tolist():
                if self._first[i] < 0:
                    ends.append(following[i])
                elif self.valid((*ids, i)):
                    grown[(*ids, i)] = (self.tokenizer.pieces[i], float(following[i]))
                else:
                    lost.append(following[i])
        by_byte: list[list[float]] = [[] for _ in range(256)]
        for beyond, log_p in grown.values():
            by_byte[beyond[0]].append(log_p)
        self._grown = grown
        self._row = Row(np.array([_log_sum(some) for some in by_byte]), _log_sum(ends), _log_sum(lost))

    def read(self, byte: int) -> float:
        """Goes on by one byte; log P(byte | text), normalised over bytes."""
        row = self.row()
        total = _log_sum(row.log_joint)
        self._covers = {ids: (beyond[1:], log_p) for ids, (beyond, log_p) in self._grown.items() if beyond[0] == byte}
        self.log_kept += total - self.log_p
        self.log_p = float(row.log_joint[byte])
        self._row = self._grown = None
        return self.log_p - total


def bytes_log_probability(tokenizer: Encoder, model: Model, text: bytes) -> tuple[float, float]:
    """(log P(text) with each byte's law normalised, log P(text) as the sum over its covers)."""
    law = ByteLaw(tokenizer, model)
    normalised = sum(law.read(byte) for byte in text)
    return normalised, law.log_p


def combined(rows: Sequence[np.ndarray], weights: Sequence[float], how: str = "mean") -> np.ndarray:
    """The next-byte law of several models, whatever their tokenizers: weighted mean, or geometric mean, `[256]`.

    Args:
      rows: next-byte laws [256] of the same prefix.
      weights: sum to 1.
      how: "mean" of probabilities, or "product" (of p^w, normalised).
    """
    rows, weights = np.asarray(rows, np.float64), np.asarray(weights, np.float64)[:, None]
    if how == "mean":
        return np.sum(weights * rows, axis=0)
    if how != "product":
        raise ValueError(f"how={how!r} is unknown; use 'mean' or 'product'.")
    with np.errstate(divide="ignore"):
        log_p = np.sum(weights * np.log(rows), axis=0)
    return np.exp(log_p - _log_sum(log_p))


def _log_sum(values: Sequence[float] | np.ndarray) -> float:
    values = np.asarray(values, np.float64)
    top = values.max(initial=-np.inf)
    return float(top + np.log(np.sum(np.exp(values - top)))) if np.isfinite(top) else -np.inf
