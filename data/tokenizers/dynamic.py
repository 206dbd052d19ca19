"""Dynamic tokenization: byte-pair merges found within one batch (Feher et al. 2024, arXiv:2411.18553).

Which pairs are merged depends on the whole batch, later text included: a text that is to be predicted cannot be cut so.
Prompts can, and `Merged` is the tokenizer that does (`experiments.generation.dynamic`).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.tokenizer import ByteLevel, Tokenizer


def merge_batch(
    batch: Sequence[Sequence[Sequence[tuple]]], merges: int, least: int = 1
) -> tuple[list[list[list[tuple]]], list[tuple[tuple, tuple]]]:
    """Merges, `merges` times, the most frequent pair of neighbours within words, over the whole batch.

    Args:
      batch: texts of words of units; a unit is a tuple of ids of the model's own tokenizer.
      merges: m; fewer where no pair is left.
      least: uses that a pair must have.

    Returns:
      (the batch in merged units, the pairs in the order of their merges). Equal counts: the smaller pair first.
    """
    batch, made = [[[tuple(unit) for unit in word] for word in text] for text in batch], []
    for _ in range(merges):
        counts = Counter(pair for text in batch for word in text for pair in zip(word, word[1:], strict=False))
        if not counts:
            break
        pair = min(counts, key=lambda p: (-counts[p], p))
        if counts[pair] < least:
            break
        made.append(pair)
        batch = [[merge(word, pair) for word in text] for text in batch]
    return batch, made


def merge(word: Sequence, pair: tuple) -> list:
    """`word` with each `pair`, from left to right, joined by +."""
    out, k = [], 0
    while k < len(word):
        if k + 1 < len(word) and (word[k], word[k + 1]) == pair:
            out.append(word[k] + word[k + 1])
            k += 2
        else:
            out.append(word[k])
            k += 1
    return out


def reduction(before: Sequence, after: Sequence) -> float:
    """1 - units after / units before, of two batches of texts of words."""
    count = lambda batch: sum(len(word) for text in batch for word in text)  # noqa: E731
    return 1 - count(after) / count(before)


def words(ids: Sequence[int], pieces: Sequence[bytes]) -> list[list[int]]:
    """`ids` cut in front of each piece that begins with a blank, and around specials (empty pieces)."""
    found: list[list[int]] = []
    for i in map(int, ids):
        begins = not found or not pieces[i] or pieces[i][:1].isspace() or not pieces[found[-1][-1]]
        if begins:
            found.append([])
        found[-1].append(i)
    return found


class Merged(ByteLevel):
    """The tokenizer `base`, and behind its ids one for each pair of units that `merge_batch` merged.

    Args:
      base: a tokenizer of bytes.
      pairs: of `merge_batch`, in its order.
      size: ids before the first merged one, at least those of `base`: as many as a model has rows.
    """

    def __init__(self, base: Tokenizer, pairs: Sequence[tuple[tuple, tuple]], size: int):
        self.base, self.pairs, self.chat = base, list(pairs), getattr(base, "chat", "")
        self.units = list(dict.fromkeys(a + b for a, b in self.pairs))  # One may be merged in two ways.
        self._ids = {unit: size + k for k, unit in enumerate(self.units)}
        joined = [b"".join(base.pieces[i] for i in unit) for unit in self.units]
        blank = [b""] * (size - len(base.pieces))
        super().__init__("merged", [*base.pieces, *blank, *joined], (base.bos, base.eos, base.pad))
        self.written = len(base.pieces)  # Ids below it are those that text is written in.

    @property
    def add_bos(self) -> bool:
        """As the tokenizer that it is made of."""
        return getattr(self.base, "add_bos", True)

    def _state(self) -> dict[str, Any]:
        return {"kind": self.name, "base": self.base.hash, "pairs": [[*map(list, pair)] for pair in self.pairs]}

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids of `text`, `[n]` int32: those of the base, merged in the order of the pairs."""
        out: list[int] = []
        for word in words(self.base.encode(text), self.base.pieces):
            units = [(i,) for i in word]
            for pair in self.pairs:
                units = merge(units, pair) if len(units) > 1 else units
            out += [self._ids.get(unit, unit[0]) for unit in units]
        return np.array(out, np.int32)

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each text, `[n]` int32."""
        return [self.encode(text) for text in texts]
