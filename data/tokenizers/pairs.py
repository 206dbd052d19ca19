"""Byte-pair merges in plain Python: training with an order that is fully stated, encoding, and counts for each merge.

A word is a tuple of pieces (bytes); a corpus is a mapping from words, as bytes, to how often each occurs. Training
touches only the words that hold the merged pair.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

Pair = tuple[bytes, bytes]


class Corpus:
    """Words in pieces, with the count of every pair of neighbours kept up to date under merges.

    Overlapping pairs count by place: "aaa" holds (a, a) twice.
    """

    def __init__(self, words: Mapping[bytes, int], merges: Iterable[Pair] = ()):
        """`merges` are applied first, in their order."""
        self._start([[word[k : k + 1] for k in range(len(word))] for word in words], list(words.values()))
        for pair in merges:
            self.merge(pair)

    @classmethod
    def of_pieces(cls, words: list[list[bytes]], uses: list[int]) -> "Corpus":
        """Words that are in pieces already, with the count of each."""
        made = cls.__new__(cls)
        made._start(words, uses)
        return made

    def _start(self, words: list[list[bytes]], uses: list[int]) -> None:
        self.words, self.uses = words, uses
        self.counts: Counter = Counter()
        self._where: defaultdict[Pair, set[int]] = defaultdict(set)
        for index, word in enumerate(self.words):
            for pair in zip(word, word[1:], strict=False):
                self.counts[pair] += self.uses[index]
                self._where[pair].add(index)

    def merge(self, pair: Pair) -> set[Pair]:
        """Joins `pair` everywhere, in each word from left to right; the pairs whose count was touched."""
        touched: set[Pair] = set()
        joined = pair[0] + pair[1]
        for index in sorted(self._where.pop(pair, ())):
            old, uses = self.words[index], self.uses[index]
            new, k = [], 0
            while k < len(old):
                if k + 1 < len(old) and old[k] == pair[0] and old[k + 1] == pair[1]:
                    new.append(joined)
                    k += 2
                else:
                    new.append(old[k])
                    k += 1
            if len(new) == len(old):
                continue
            before, after = Counter(zip(old, old[1:], strict=False)), Counter(zip(new, new[1:], strict=False))
            for each in before.keys() | after.keys():
                if change := after[each] - before[each]:
                    self.counts[each] += change * uses
                    touched.add(each)
                if after[each]:
                    self._where[each].add(index)
                else:
                    self._where[each].discard(index)
            self.words[index] = new
        self.counts = self.counts if not touched else self._without_zeros(touched)
        return touched

    def _without_zeros(self, touched: set[Pair]) -> Counter:
        for pair in touched:
            if not self.counts[pair]:
                del self.counts[pair]
        return self.counts


def train(words: Mapping[bytes, int], merges: int, *, after: Iterable[Pair] = (), least: int = 2) -> list[Pair]:
    """The merges of byte-pair encoding: each step joins the pair with the largest count.

    Equal counts: the pair whose (first, second) piece is older, alphabet before merges, the alphabet in the order of
    `alphabet_rank`: the order of the tokenizers library, whose merges these are.

    Args:
      words: word -> count; pairs never cross words.
      merges: how many to add; fewer where no pair occurs `least` times.
      after: merges already learned, e.g. within words, that these are added to (SuperBPE's second stage).
    """
    after = list(after)
    return _added(Corpus(words, after), merges, after, least)


def train_pieces(
    words: list[list[bytes]], uses: list[int], merges: int, after: Iterable[Pair], least: int = 2
) -> list[Pair]:
    """`train` on words that are in the pieces of the merges `after` already, e.g. by the library; they are changed.

    Args:
      words: each a list of pieces. uses: count of each word.
    """
    return _added(Corpus.of_pieces(words, uses), merges, after, least)


def _added(corpus: Corpus, merges: int, after: Iterable[Pair], least: int) -> list[Pair]:
    age = {bytes([b]): rank for b, rank in enumerate(alphabet_rank())}
    for pair in after:
        age.setdefault(pair[0] + pair[1], len(age))
    made: list[Pair] = []
    heap = _Largest(age)
    heap.push(corpus.counts, corpus.counts)
    while len(made) < merges:
        pair = heap.pop(corpus.counts)
        if pair is None or corpus.counts[pair] < least:
            break
        made.append(pair)
        age.setdefault(pair[0] + pair[1], len(age))
        heap.push(corpus.merge(pair), corpus.counts)
    return made


class _Largest:
    """The pair with the largest count; entries that are out of date are dropped when they come up."""

    def __init__(self, age: dict[bytes, int]):
        self._age, self._entries = age, []

    def push(self, pairs: Iterable[Pair], counts: Mapping[Pair, int]) -> None:
        import heapq

        for pair in pairs:
            if counts[pair]:
                entry = (-counts[pair], self._age[pair[0]], self._age[pair[1]], pair)
                heapq.heappush(self._entries, entry)

    def pop(self, counts: Mapping[Pair, int]) -> Pair | None:
        import heapq

        while self._entries:
            count, _, _, pair = heapq.heappop(self._entries)
            if counts[pair] == -count:
                return pair
        return None


def alphabet_rank() -> list[int]:
    """Rank of each byte 0..255 in byte-level BPE's alphabet, sorted by the characters that stand for bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [b for b in range(256) if b not in printable]
    character = {b: b for b in printable} | {b: 256 + k for k, b in enumerate(others)}
    order = sorted(range(256), key=character.__getitem__)
    return [order.index(b) for b in range(256)]


def encode(word: bytes, ranks: Mapping[Pair, int]) -> list[bytes]:
    """Pieces of one word: at each step the adjacent pair of the lowest rank, the leftmost of equals, is joined."""
    pieces = [word[k : k + 1] for k in range(len(word))]
    while len(pieces) > 1:
        best = min(range(len(pieces) - 1), key=lambda k: (ranks.get((pieces[k], pieces[k + 1]), len(ranks)), k))
        if (pieces[best], pieces[best + 1]) not in ranks:
            break
        pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
    return pieces


def counts_per_merge(words: Mapping[bytes, int], merges: Iterable[Pair]) -> list[dict[Pair, int]]:
    """Counts of pairs BEFORE each merge, as changes: entry 0 has all, entry t those that merge t - 1 touched.

    `dict.update` of the entries 0..t in turn gives all counts at step t; a pair that is gone has 0.
    """
    corpus, merges = Corpus(words), list(merges)
    entries = [dict(corpus.counts)]
    for pair in merges[:-1]:
        touched = corpus.merge(pair) | {pair}
        entries.append({each: corpus.counts[each] for each in touched})
    return entries


def words_of(texts: Iterable[bytes], pretokenize) -> Counter:
    """Counts of the words of texts; `pretokenize`: bytes -> parts that join to it."""
    counts: Counter = Counter()
    for text in texts:
        counts.update(pretokenize(text))
    return counts
