"""Covers and the law of the next byte against enumeration on small alphabets, in float64."""

import functools
import itertools
import re

import numpy as np
import pytest

from data.tokenizers import covers, pairs

END = 6
MERGES = [(b"a", b"b"), (b"ab", b"a"), (b"b", b"b")]
ALPHABET = (b"a", b"b", b"\xc3")


class Tiny:
    """Byte pairs over a, b and one byte that begins a character; the last id ends a text."""

    pieces = (*ALPHABET, b"ab", b"aba", b"bb", b"")

    def encode(self, text):
        """By the merges."""
        return [self.pieces.index(p) for p in pairs.encode(text, {m: k for k, m in enumerate(MERGES)})]


@functools.cache
def drawn(last):
    """Log-probabilities of 7 ids after the ids `last`, drawn once."""
    rng = np.random.default_rng(abs(hash(last)) % 2**32)
    return np.log(rng.dirichlet(np.ones(7)))


def model(ids):
    return drawn(tuple(ids[-3:]) + (len(ids) % 5,))


def every_sequence(length):
    """All sequences of tokens with bytes, up to `length` of them."""
    for n in range(length + 1):
        yield from itertools.product(range(END), repeat=n)


def plain_covers(prefix):
    """By the definition: canonical, the last token begins inside the prefix and reaches its end."""
    found = []
    for ids in every_sequence(len(prefix)):
        text = b"".join(Tiny.pieces[i] for i in ids)
        inside = len(text) - len(Tiny.pieces[ids[-1]]) < len(prefix) if ids else not prefix
        if text.startswith(prefix) and inside and tuple(Tiny().encode(text)) == ids:
            found.append(ids)
    return sorted(found)


TEXTS = [bytes(t) for n in range(5) for t in itertools.product(b"ab", repeat=n)] + [b"a\xc3b", b"\xc3"]


@pytest.mark.parametrize("text", TEXTS)
def test_covers_are_those_of_the_definition(text):
    assert covers.covers(Tiny(), text) == plain_covers(text)


@pytest.mark.parametrize("text", TEXTS)
def test_the_law_read_byte_by_byte_is_the_sum_over_covers(text):
    law = covers.ByteLaw(Tiny(), model)
    for k, byte in enumerate(text):
        sums = [covers.prefix_log_probability(Tiny(), model, text[:k] + bytes([b])) for b in range(256)]
        np.testing.assert_allclose(law.row().log_joint, sums, rtol=1e-13)
        want = np.exp(sums - np.log(np.sum(np.exp(sums))))
        np.testing.assert_allclose(law.row().next_byte(), want, rtol=1e-12)
        np.testing.assert_allclose(law.row().next_byte().sum(), 1, rtol=1e-14)
        np.testing.assert_allclose(law.read(byte), np.log(want[byte]), rtol=1e-12)
    plain = sum(np.exp(sum(model(ids[:k])[i] for k, i in enumerate(ids))) for ids in plain_covers(text))
    np.testing.assert_allclose(np.exp(law.log_p), plain, rtol=1e-13)
    assert sorted(law.covers) == plain_covers(text)


class Words:
    """Words with the blank before them, the last of several blanks being the word's, as in GPT-2."""

    pieces = (b"a", b" ", b"  ", b" a", b"aa", b"")

    def encode(self, text):
        words = re.findall(rb" ?a+| +(?!a)| +", text)
        rank = {(b" ", b" "): 0, (b" ", b"a"): 1, (b"a", b"a"): 2}
        return [self.pieces.index(piece) for word in words for piece in pairs.encode(word, rank)]


@pytest.mark.parametrize("text", [bytes(t) for n in range(1, 5) for t in itertools.product(b"a ", repeat=n)])
def test_blanks_may_belong_to_what_stands_behind_them(text):
    want = set()
    for more in (bytes(t) for n in range(4) for t in itertools.product(b"a ", repeat=n)):
        ids = tuple(Words().encode(text + more))
        ends = np.cumsum([len(Words.pieces[i]) for i in ids])
        want.add(ids[: int(np.searchsorted(ends, len(text))) + 1])
    assert covers.covers(Words(), text) == sorted(want)
    law = covers.ByteLaw(Words(), lambda ids: model(ids)[:6])
    for byte in text:
        law.read(byte)
    assert sorted(law.covers) == sorted(want)


def test_which_texts_end_in_a_blank():
    for text in (b" ", b"a\n", "\u3000".encode(), "é\u00a0".encode()):
        assert covers.ends_blank(text)
    for text in (b"", b"a", b" a", "\u3000".encode()[:2], b" \xc3", b" \xff"):
        assert not covers.ends_blank(text)


def test_nothing_of_the_mass_is_unaccounted_for():
    law = covers.ByteLaw(Tiny(), model)
    for byte in b"abba":
        row = law.row()
        parts = np.exp(row.log_joint).sum() + np.exp(row.log_end) + np.exp(row.log_lost)
        np.testing.assert_allclose(parts, np.exp(law.log_p), rtol=1e-12)
        law.read(byte)
    kept, log_p = covers.bytes_log_probability(Tiny(), model, b"abba")
    np.testing.assert_allclose(kept + law.log_kept, log_p, rtol=1e-12)
    assert log_p < kept


def test_a_source_of_bytes_behind_the_tokenizer_keeps_its_own_law():
    chain = {b: row for b, row in zip(b"ab", ((0.8, 0.2), (0.3, 0.7)), strict=True)}
    length, first = 7, (0.4, 0.6)
    strings = {}
    for text in itertools.product(b"ab", repeat=length):
        p = first[text[0] - 97]
        for x, y in itertools.pairwise(text):
            p *= chain[x][y - 97]
        strings[bytes(text)] = p
    starts = {}
    for text, p in strings.items():
        ids = (*Tiny().encode(text), END)
        for k in range(len(ids) + 1):
            starts[ids[:k]] = starts.get(ids[:k], 0.0) + p

    def pushed(ids):
        with np.errstate(divide="ignore"):
            return np.log(np.array([starts.get((*ids, i), 0.0) for i in range(7)]) / starts[tuple(ids)])

    for text in (b"", b"a", b"ab", b"abba", b"babab"):
        law = covers.ByteLaw(Tiny(), pushed)
        for byte in text:
            law.read(byte)
        row = law.row().next_byte()
        want = chain[text[-1]] if text else first
        np.testing.assert_allclose(row[97:99], want, rtol=1e-12)
        assert row.sum() == pytest.approx(1, abs=1e-14) and not np.exp(law.row().log_lost)
    whole = covers.string_log_probability(Tiny(), pushed, b"abbabba", END)
    np.testing.assert_allclose(np.exp(whole), strings[b"abbabba"], rtol=1e-12)


def test_one_byte_a_token_is_the_model_itself():
    class Bytes:
        pieces = (b"a", b"b", b"c", b"d", b"e", b"f", b"")

        def encode(self, text):
            return [b - 97 for b in text]

    law = covers.ByteLaw(Bytes(), model)
    for k, byte in enumerate(b"fade"):
        ids = tuple(b - 97 for b in b"fade"[:k])
        row = np.exp(model(ids)[:6])
        np.testing.assert_allclose(law.row().next_byte()[97:103], row / row.sum(), rtol=1e-13)
        law.read(byte)


@pytest.mark.parametrize(
    ("text", "count"), [(b"", 0), (b"a", 0), (b"\xc3", 1), (b"\xe6\x97", 2), (b"\xf0\x9f\x91", 3), ("é".encode(), 0)]
)
def test_an_unfinished_character_is_seen(text, count):
    assert covers.unfinished(text) == count
    assert covers.unfinished(b"abc" + text) == count


def test_tokens_within_a_character_count_where_the_tokenizer_cuts_it():
    import data

    trained = data.train_bpe(["日本語 日本 日曜".encode() * 20], 262)  # One merge: the first two bytes of a character.
    ids = tuple(trained.encode("日".encode()))
    assert len(ids) == 2 and not covers.canonical(trained, ids[:1])
    assert covers.Valid(trained)(ids[:1])
    assert ids in covers.covers(trained, "日".encode())


def test_laws_of_several_models_are_mixed():
    rows = np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    np.testing.assert_allclose(covers.combined(rows, [0.25, 0.75]), 0.25 * rows[0] + 0.75 * rows[1])
    product = rows[0] ** 0.25 * rows[1] ** 0.75
    np.testing.assert_allclose(covers.combined(rows, [0.25, 0.75], "product"), product / product.sum(), rtol=1e-14)
    with pytest.raises(ValueError, match="use 'mean' or 'product'"):
        covers.combined(rows, [0.5, 0.5], "sum")
