"""Covers of a whole text, found where they differ from its encoding: at its end (Phan et al. 2024, arXiv:2410.09303).

`covers.covers` enumerates from the first byte. A cover of a long text is the encoding of one of its beginnings, and a
token that reaches or passes the end; the beginnings that count end less than the longest token before the end, and all
share what stands before the last words. So the work is that of some words, whatever the length of the text.
"""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from data.tokenizers.covers import BEHIND, Encoder, Ids, Valid, ends_blank, unfinished


class Pieces:
    """The pieces of a tokenizer in the order of their bytes, to find those that begin with some bytes.

    `apart`: no piece goes on behind a blank, so that words are encoded by themselves; else lines are.
    """

    def __init__(self, tokenizer: Encoder):
        held = sorted((piece, i) for i, piece in enumerate(tokenizer.pieces) if piece)
        self._sorted, self._ids = [piece for piece, _ in held], np.array([i for _, i in held], np.int64)
        self.longest = max(map(len, self._sorted))
        self.apart = not any(b" " in piece.lstrip() or b"\n" in piece.lstrip() for piece in self._sorted)

    def beginning(self, start: bytes) -> np.ndarray:
        """Ids of the pieces that begin with `start`, ascending."""
        first = bisect.bisect_left(self._sorted, start)
        last = bisect.bisect_right(self._sorted, start + b"\xff" * self.longest)
        return np.sort(self._ids[first:last])

    def equal(self, piece: bytes) -> np.ndarray:
        """Ids of the pieces that are `piece`."""
        first, last = bisect.bisect_left(self._sorted, piece), bisect.bisect_right(self._sorted, piece)
        return self._ids[first:last]


@dataclasses.dataclass(frozen=True)
class Ending:
    """The covers of a text: each of `bodies`, followed by one of the tokens of its entry of `last`."""

    ids: Ids  # the encoding of the text
    bodies: tuple[Ids, ...]
    last: tuple[np.ndarray, ...]  # ids, ascending, at least one

    @property
    def covers(self) -> list[Ids]:
        """All covers, sorted as `covers.covers` sorts them."""
        return sorted((*body, int(i)) for body, some in zip(self.bodies, self.last, strict=True) for i in some)


def ending(tokenizer: Encoder, text: bytes, pieces: Pieces | None = None) -> Ending:
    """The covers of `text`, which is not empty and does not end inside a character of UTF-8.

    Args:
      tokenizer: has pieces and encodes any text.
      text: of any length.
      pieces: of the tokenizer; None: made here.

    Errors: ValueError for a text that is empty, or ends inside a character.
    """
    if not text or unfinished(text):
        raise ValueError(f"a text must end with a whole character, and {text[-4:]!r} does not; cut it before that.")
    pieces = pieces or Pieces(tokenizer)
    ids = _encoded(tokenizer, [text])[0]
    start = _window(tokenizer, ids, pieces.longest, pieces)
    shared, tail = ids[:start], text[sum(len(tokenizer.pieces[i]) for i in ids[:start]) :]
    fitting = {j: pieces.beginning(tail[j:]) for j in range(max(0, len(tail) - pieces.longest), len(tail))}
    places = [j for j, some in fitting.items() if len(some)]
    exactly = Exactly(tokenizer, pieces, tail)
    tried = [(body, fitting[j]) for j in places for body in exactly(j)]
    asked = [(*body, int(i)) for body, some in tried for i in some]
    valid = iter(begin_encodings(tokenizer, asked))
    kept = [(body, some[[next(valid) for _ in some]]) for body, some in tried]
    kept = [(shared + body, some) for body, some in kept if len(some)]
    return Ending(ids, tuple(body for body, _ in kept), tuple(some for _, some in kept))


def begin_encodings(tokenizer: Encoder, sequences: Sequence[Ids]) -> list[bool]:
    """Whether each of `sequences` begins the encoding of some text: `covers.Valid`, of many at once."""
    texts = [b"".join(tokenizer.pieces[i] for i in ids) for ids in sequences]
    found = [tuple(ids) == made for ids, made in zip(sequences, _encoded(tokenizer, texts), strict=True)]
    rest = Valid(tokenizer)
    return [
        same or bool(unfinished(text) or ends_blank(text)) and rest(tuple(ids))
        for same, text, ids in zip(found, texts, sequences, strict=True)
    ]


def continuations(
    tokenizer: Encoder,
    ids: Ids,
    places: Sequence[int],
    following: Sequence[int],
    pieces: Pieces | None = None,
    context: int = 64,
) -> list[bool]:
    """Whether `ids[:k]` and then the token of `following` begin an encoding, for each k of `places`, ascending.

    What stands `context` bytes or more before a place, in front of a word or line, decides nothing and is not read.

    Args:
      tokenizer: has pieces and encodes any text.
      ids: an encoding of a text.
      places: numbers of tokens, up to len(ids).
      following: as many ids; those without bytes begin none.
      pieces: of the tokenizer; None: made here.
      context: bytes.
    """
    pieces = pieces or Pieces(tokenizer)
    asked, which = [], []
    start, nearest = 0, 0
    for n, (k, i) in enumerate(zip(places, following, strict=True)):
        if k >= nearest:
            start, nearest = _window(tokenizer, ids[:k], context, pieces), k + context // 4
        if tokenizer.pieces[int(i)]:
            asked.append((*ids[start:k], int(i)))
            which.append(n)
    found = [False] * len(following)
    for n, ok in zip(which, begin_encodings(tokenizer, asked), strict=True):
        found[n] = ok
    return found


def followers(tokenizer: Encoder, ids: Ids, pieces: Pieces | None = None) -> list[bool]:
    """Whether `ids` and then each token of the vocabulary begin an encoding, `[V]`; tokens without bytes begin none."""
    pieces = pieces or Pieces(tokenizer)
    start = _window(tokenizer, ids, pieces.longest, pieces)
    tried = [i for i, piece in enumerate(tokenizer.pieces) if piece]
    found = [False] * len(tokenizer.pieces)
    for i, ok in zip(tried, begin_encodings(tokenizer, [(*ids[start:], i) for i in tried]), strict=True):
        found[i] = ok
    return found


class Exactly:
    """The sequences that begin an encoding and end exactly at a place of a text.

    One, but inside of a character, and behind a blank that an encoding may give to what follows.
    """

    def __init__(self, tokenizer: Encoder, pieces: Pieces, text: bytes):
        self._tokenizer, self._pieces, self._text = tokenizer, pieces, text
        self._at = functools.cache(self._find)

    def __call__(self, end: int) -> tuple[Ids, ...]:
        return self._at(end)

    def _ends(self, ids: Ids) -> list[int]:
        """The place behind each of `ids`, in bytes."""
        return list(itertools.accumulate(len(self._tokenizer.pieces[i]) for i in ids))

    def _find(self, end: int) -> tuple[Ids, ...]:
        text = self._text[:end]
        if not unfinished(text):
            made = _encoded(self._tokenizer, [text, *(text + more for more in BEHIND if ends_blank(text))])
            ends = (self._ends(ids) for ids in made)
            found = [ids[: at.index(end) + 1] for ids, at in zip(made, ends, strict=True) if end in at]
            return tuple(dict.fromkeys(found)) if end else ((),)
        tried = [
            (*ids, int(i))
            for begin in range(max(0, end - self._pieces.longest), end)
            for i in self._pieces.equal(text[begin:])
            for ids in self._at(begin)
        ]
        return tuple(ids for ids, ok in zip(tried, begin_encodings(self._tokenizer, tried), strict=True) if ok)


def _window(tokenizer: Encoder, ids: Ids, least: int, pieces: Pieces) -> int:
    """Tokens of `ids` that need not be read to encode what follows them: a word or line begins there, at least `least`
    bytes before the end, and is encoded the same without what stands before; 0 where no such place is near."""
    held, tried = 0, 0
    for k in range(len(ids) - 1, 0, -1):
        piece, before = tokenizer.pieces[ids[k]], tokenizer.pieces[ids[k - 1]]
        held += len(piece)
        word = piece[:1] in (b" ", b"\n") and before[-1:].isalnum()
        line = before.endswith(b"\n") and not piece[:1].isspace()
        if held >= least and (word if pieces.apart else line):
            if begin_encodings(tokenizer, [ids[k:]])[0]:
                return k
            tried += 1
            if tried == 4:
                break
    return 0


def _encoded(tokenizer: Encoder, texts: Sequence[bytes]) -> list[Ids]:
    many = getattr(tokenizer, "encode_batch", None)
    made = many(texts) if many and texts else [tokenizer.encode(text) for text in texts]
    return [tuple(map(int, ids)) for ids in made]
