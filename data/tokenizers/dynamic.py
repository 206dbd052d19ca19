"""Dynamic tokenization: byte-pair merges found within one batch (Feher et al. 2024, arXiv:2411.18553)."""

from collections import Counter
from collections.abc import Sequence


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
