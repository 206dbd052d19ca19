"""Trainers and rules against plain forms: merges, LZW, LiB traces, digits, merges of a batch, morphemes."""

import collections
import itertools
import math
import random

import pytest

from data import tokenizer
from data.tokenizers import digits, dynamic, lib, lzw, morphology, pairs, unigram


def plain_train(words, merges):
    """Byte pairs by counting everything anew at each step."""
    rank = pairs.alphabet_rank()
    age = {bytes([b]): rank[b] for b in range(256)}
    split, made, history = {w: [w[k : k + 1] for k in range(len(w))] for w in words}, [], []
    while True:
        counts = collections.Counter()
        for word, n in words.items():
            for pair in itertools.pairwise(split[word]):
                counts[pair] += n
        history.append(dict(counts))
        if len(made) == merges or not counts or max(counts.values()) < 2:
            return made, history
        best = min(counts, key=lambda p: (-counts[p], age[p[0]], age[p[1]]))
        made.append(best)
        age.setdefault(best[0] + best[1], len(age))
        for word, old in split.items():
            new = []
            for piece in old:
                # A piece just joined is longer than the pair's first: it does not join again.
                if new and (new[-1], piece) == best and not (len(new[-1]) > len(best[0])):
                    new[-1] = new[-1] + piece
                else:
                    new.append(piece)
            split[word] = new


def drawn_words(seed, alphabet="ab ", size=40):
    rng = random.Random(seed)
    words = ("".join(rng.choices(alphabet, k=rng.randint(1, 9))).encode() for _ in range(size))
    return {word: rng.randint(1, 5) for word in words}


@pytest.mark.parametrize("seed", range(6))
def test_merges_and_counts_are_those_of_counting_anew(seed):
    words = drawn_words(seed)
    made, history = plain_train(words, 12)
    assert pairs.train(words, 12) == made
    now, entries = {}, pairs.counts_per_merge(words, made)
    assert len(entries) == len(made)
    for entry, want in zip(entries, history, strict=False):
        now.update(entry)
        assert {p: n for p, n in now.items() if n} == want


def test_overlapping_pairs_count_by_place():
    assert pairs.Corpus({b"aaaa": 2}).counts == {(b"a", b"a"): 6}
    corpus = pairs.Corpus({b"aaaaa": 1}, [(b"a", b"a")])
    assert corpus.words == [[b"aa", b"aa", b"a"]]
    assert corpus.counts == {(b"aa", b"aa"): 1, (b"aa", b"a"): 1}


@pytest.mark.parametrize("seed", range(3))
def test_merges_are_the_library_s(seed):
    texts = [" ".join(w.decode() for w in drawn_words(seed, "abcdeé", 80)).encode() * 2]
    trained = tokenizer.train_bpe(texts, 300)
    borders = trained._library.pre_tokenizer
    to_byte = tokenizer.byte_alphabet()
    words = collections.Counter(bytes(to_byte[c] for c in w) for w, _ in borders.pre_tokenize_str(texts[0].decode()))
    made = pairs.train(words, 300 - 259)
    assert [a + b for a, b in made] == list(trained.pieces[256:-3])
    ranks = {pair: k for k, pair in enumerate(made)}
    for word in words:
        assert pairs.encode(word, ranks) == [trained.pieces[i] for i in trained._library.encode(word.decode()).ids]


def test_later_merges_start_from_earlier_ones():
    words = {b"abab": 3, b"abc": 2}
    first = pairs.train(words, 1)
    assert first == [(b"a", b"b")]
    assert pairs.train({b"ab ab": 3, b"ab ab x": 2}, 2, after=first) == [(b"ab", b" "), (b"ab ", b"ab")]


def test_lzw_by_hand():
    pieces = lzw.train([b"abababa"], 300, (b"a", b"b"))
    assert pieces == [b"a", b"b", b"ab", b"ba", b"aba"]
    assert lzw.train([b"abababa"], 4, (b"a", b"b")) == pieces[:4]
    index = {p: k for k, p in enumerate(pieces)}
    assert lzw.greedy(b"abaabab", index, 3) == [4, 4, 1]
    assert len(lzw.train([b"x" * 100], 300)) == 256 + 13
    with pytest.raises(ValueError, match="use at least 256"):
        lzw.train([], 200)


def test_lib_learns_a_pair_at_its_second_sighting_and_moves_by_its_rank():
    memory = lib.Memory.of_symbols(["a", "b"])
    units = lib.read_article(memory, ["abab"], lambda: 0.0)
    # a, then ab is a candidate, then ba, then ab again: it is a unit. All was read in single symbols.
    assert units == [["a", "b", "a", "b"]]
    assert memory.lexicon.units == ["a", "b", "ab"]
    assert memory.probation == {"ab": lib.LIFE}, "what is read leaves probation, the end of the list enters it"
    # ab is tried against a, then b; both meet at once: one unit against two, so it is rewarded: rank 2 - (0 + 1).
    assert lib.read_article(memory, ["abab"], lambda: 0.9) == [["ab", "ab"]]
    assert memory.lexicon.units == ["a", "ab", "b"]
    assert "ab" not in memory.probation


def test_lib_forgets_what_is_not_used_for_ten_articles():
    memory = lib.Memory(lib.Lexicon(["a", "b", "xy"]), {"xy": 2})
    lib.read_article(memory, ["ab"], lambda: 0.9)
    assert "xy" in memory.lexicon and memory.probation["xy"] == 1
    lib.read_article(memory, ["ab"], lambda: 0.9)
    assert memory.lexicon.units == ["a", "b"] and memory.probation == {"b": lib.LIFE}


def test_lib_punishes_a_unit_that_makes_the_reading_longer():
    memory = lib.Memory(lib.Lexicon(["a", "b", "c", "d", "ab", "bcd"]))
    assert lib.read_article(memory, ["abcda"], lambda: 0.9) == [["ab", "c", "d", "a"]]
    # With ab three units up to the meeting place, without it two (a, bcd): ab moves behind, and a has rank 0.
    assert memory.lexicon.units == ["a", "b", "c", "d", "bcd", "ab"]


def test_lib_moves():
    lexicon = lib.Lexicon("abcdefghij")
    lexicon.move([("j", -1), ("a", 1), ("c", 1), ("z", 1)])
    assert "".join(lexicon.units) == "abdcefgjhi", "j from 9 to 9 - 2, c from 2 to 2 + 1; rank 0 stays"
    lexicon.move([("i", 1)])
    assert "i" not in lexicon and len(lexicon) == 9
    assert lib.segment(lib.Lexicon([b"a", b"ab", b"abc"]), b"abdabca?") == [b"ab", b"d", b"abc", b"a", b"?"]


@pytest.mark.parametrize(("size", "length"), itertools.product((2, 3), range(1, 13)))
def test_groups_of_digits(size, length):
    text = bytes(b"1234567890123"[:length])
    left, right = digits.split(text, "left", size), digits.split(text, "right", size)
    assert left == [text[k : k + size] for k in range(0, length, size)]
    assert [p[::-1] for p in right[::-1]] == [text[::-1][k : k + size] for k in range(0, length, size)]
    assert len(left) == len(right) == -(-length // size)


def test_text_around_numbers_stays():
    assert digits.split(b"a1234567b 89", "right") == [b"a", b"1", b"234", b"567", b"b ", b"89"]
    assert digits.split(b"a1234567b 89", "left") == [b"a", b"123", b"456", b"7", b"b ", b"89"]
    assert digits.split(b"") == [] and digits.groups(0) == []


def test_a_batch_is_merged_by_its_own_pairs():
    unit = lambda word: [(ord(c),) for c in word]  # noqa: E731
    batch = [[unit("abab"), unit("ab")], [unit("cb")]]
    merged, made = dynamic.merge_batch(batch, 2)
    a, b, c = ((ord(x),) for x in "abc")
    assert made == [(a, b), (a + b, a + b)], "(a b, a b) and (c, b) occur once each: the smaller first"
    assert merged == [[[a + b + a + b], [a + b]], [[c, b]]]
    assert dynamic.reduction(batch, merged) == pytest.approx(1 - 4 / 8)
    assert dynamic.merge_batch(batch, 9, least=2)[1] == [(a, b)]


def test_merged_tokens_are_read_as_the_bytes_that_they_are_of():
    base, text = tokenizer.ByteTokenizer(), b"abab cab  \xff ab"
    assert [bytes(word) for word in dynamic.words(base.encode(text), base.pieces)] == [
        b"abab", b" cab", b" ", b" \xff", b" ab"
    ]  # fmt: skip
    assert dynamic.words([256, 97, 98, 257, 97], base.pieces) == [[256], [97, 98], [257], [97]]
    batch = [[[(i,) for i in word] for word in dynamic.words(base.encode(text), base.pieces)]]
    after, pairs = dynamic.merge_batch(batch, 3, least=2)
    a, b, blank = ((ord(x),) for x in "ab ")
    assert pairs[0] == (a, b) and len(pairs) == 1
    pairs += [(blank, a + b), (a + b, a + b)]
    made = dynamic.Merged(base, pairs, 262)
    assert made.encode(text).tolist() == [264, 32, 99, 262, 32, 32, 255, 263]
    assert made.decode_bytes(made.encode(text)) == text and made.decode_bytes([264, 259]) == b"abab"
    assert (made.bos, made.eos, made.pad, made.vocab_size, made.written) == (256, 257, 258, 265, 259)
    assert [bytes(each) for each in (text, b"")] == [*map(made.decode_bytes, made.encode_batch([text, b""]))]
    assert made.hash not in (base.hash, dynamic.Merged(base, pairs[:1], 262).hash)
    for word in after[0]:
        assert all(unit in ((made.units[0]), (unit[0],)) for unit in word)


def test_turkish_affixes_follow_the_vowels_and_share_a_name():
    turkish = morphology.turkish(["ev", "kitap", "göz", "okul"])
    readings = {"evlerde": ["ev", "PLURAL", "LOCATIVE"], "kitapta": ["kitap", "LOCATIVE"],
                "gözlüler": ["göz", "WITH", "PLURAL"], "okullardan": ["okul", "PLURAL", "ABLATIVE"]}  # fmt: skip
    for word, names in readings.items():
        read = turkish.analyse(word)
        assert [name for _, name in read] == names
        assert turkish.join(read) == word
    for word in ("evlarda", "evde!", "masa", "kitapda"):
        assert turkish.analyse(word) is None, "harmony is broken, or a part is unknown"


def cuts(word):
    """Every cut of a word into pieces."""
    if not word:
        yield ()
    for end in range(1, len(word) + 1):
        for rest in cuts(word[end:]):
            yield (word[:end], *rest)


def test_expected_uses_and_the_best_cut_are_those_of_all_cuts():
    words = {b"abab": 3, b"aab": 2, b"b": 1}
    log_p = unigram.log_probabilities({b"a": 4, b"b": 3, b"ab": 5, b"aba": 1})
    uses, total = unigram.expected(words, log_p)
    plain, nats = collections.Counter(), 0.0
    for word, count in words.items():
        fitting = [cut for cut in cuts(word) if all(p in log_p for p in cut)]
        weights = [math.exp(sum(log_p[p] for p in cut)) for cut in fitting]
        nats += count * math.log(sum(weights))
        for cut, weight in zip(fitting, weights, strict=True):
            for piece in cut:
                plain[piece] += count * weight / sum(weights)
        assert tuple(unigram.best_cut(word, log_p)) == fitting[weights.index(max(weights))]
    assert uses == pytest.approx(plain) and total == pytest.approx(nats)
    assert unigram.best_cut(b"ab", log_p, b"ab") == [b"a", b"b"]
    want = unigram.pruned(uses, 3)
    again = unigram.log_probabilities(uses)
    cost = {p: uses[p] * (again[p] - sum(again[q] for q in other)) for p, other in
            ((b"ab", [b"a", b"b"]), (b"aba", [b"ab", b"a"]))}  # fmt: skip
    kept = max(cost, key=cost.get)
    assert set(want) == {b"a", b"b", kept}


def test_expectation_and_maximisation_do_not_lose_likelihood():
    words = drawn_words(3, "abcd", 60)
    uses, before = unigram.seeds(words, 40), -math.inf
    for _ in range(6):
        uses, total = unigram.expected(words, unigram.log_probabilities(uses))
        uses = {p: n for p, n in uses.items() if n > 0}
        assert total >= before - 1e-9
        before = total
    made = unigram.train(words, 12)
    assert len(made) <= 12 and {b"a", b"b", b"c", b"d"} <= set(made)
    assert sum(map(math.exp, made.values())) == pytest.approx(1)
