"""Byte-pair encoding by words: each different word is encoded once, and a text is looked up word by word.

A byte-level BPE cuts text into words by GPT-2's pattern and merges within words only, so that the ids of a text are
those of its words one after another. Text repeats its words, and looking one up costs much less than encoding it. Words
of ASCII text between blanks are looked up: there the pattern is plain. Words with other characters, and the blanks
before them, are encoded by the library.
"""

import itertools
import re
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

_BLANK, _NO_BLANK = r"[ \t\n\r\f\v]", r"[^ \t\n\r\f\v]"
_WORD = re.compile(
    rf"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^ \t\n\r\f\vA-Za-z0-9]+|{_BLANK}+(?!{_NO_BLANK})|{_BLANK}+"
)
_PLAIN = r"[\x00-\x08\x0e-\x1f\x21-\x7f]"
# A word with a character beyond ASCII, and the blanks before it: the pattern has a border before and behind them. No
# character is read twice in the search.
_BEYOND = re.compile(
    rf"((?:(?<!{_BLANK}){_BLANK}++{_PLAIN}*+|(?<!{_BLANK})(?<!{_PLAIN}){_PLAIN}*+)[^\x00-\x7f]{_NO_BLANK}*+)"
)
# Blanks beyond ASCII run on in those beside them.
_OTHER_BLANK = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
_MOST_KEPT = 1 << 22  # characters of the words that are kept


class Words:
    """Ids of texts by a table of words.

    Args:
      encode: ids of each of a list of texts, by the library.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Sequence[Sequence[int]]]):
        self._encode = encode
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._number: dict[str, int] = {}
        self._kept = 0
        self._ids, self._begin = _Growing(np.int32), _Growing(np.int64)
        self._begin.extend(np.zeros(1, np.int64))

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, `[n]` int32: the same that the library gives."""
        if not texts:
            return []
        words: list[str] = []
        counts = []
        for text in texts:
            before = len(words)
            for part, plain in _parts(text):
                words.extend(_WORD.findall(part) if plain else [part])
            counts.append(len(words) - before)
        with self._lock:
            if self._kept > _MOST_KEPT:
                self._clear()
            number = self._numbers(words)
            begin = self._begin.values[number]
            size = self._begin.values[number + 1] - begin
            ends = np.cumsum(size)
            ids = self._ids.values[np.arange(ends[-1] if len(ends) else 0) + np.repeat(begin - (ends - size), size)]
        cuts = np.concatenate([[0], ends])[np.cumsum(counts)]
        return np.split(ids, cuts[:-1])

    def _numbers(self, words: list[str]) -> np.ndarray:
        """The place of each word in the table, `[n]` int64; words that are not there are put there."""
        number = np.fromiter(map(self._number.get, words, itertools.repeat(-1)), np.int64, len(words))
        missing = np.flatnonzero(number < 0).tolist()
        new = list(dict.fromkeys(words[k] for k in missing))
        if new:
            found = [np.asarray(ids, np.int32) for ids in self._encode(new)]
            self._number.update(zip(new, range(len(self._number), len(self._number) + len(new)), strict=True))
            self._begin.extend(self._ids.count + np.cumsum([len(ids) for ids in found]))
            self._ids.extend(np.concatenate(found))
            self._kept += sum(map(len, new))
            number[missing] = [self._number[words[k]] for k in missing]
        return number


class _Growing:
    """An array that is extended in time in proportion to what is added: `values[:count]`."""

    def __init__(self, dtype: type):
        self.values, self.count = np.empty(1024, dtype), 0

    def extend(self, new: np.ndarray) -> None:
        """Appends `new` `[n]`."""
        end = self.count + len(new)
        if end > len(self.values):
            self.values = np.concatenate([self.values, np.empty(max(end, len(self.values)), self.values.dtype)])
        self.values[self.count : end] = new
        self.count = end


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """The text in parts that no word crosses, and whether each is plain ASCII."""
    if text.isascii():
        yield text, True
    elif _OTHER_BLANK.search(text):
        yield text, False
    else:
        for k, part in enumerate(_BEYOND.split(text)):
            if part:
                yield part, not k % 2
