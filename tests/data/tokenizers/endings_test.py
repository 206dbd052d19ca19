"""Covers of whole texts against those found from the first byte, for every tokenizer that is learned here."""

import random

import numpy as np
import pytest

from data.tokenizers import covers, endings, pairs
from tests.data.tokenizers import covers_test, trainers_test

TEXTS = [
    b"left + right, 1234567 and 89 lambs",
    "okullar evlerden göz gözlerde".encode(),
    b"the quick brown fox jumped over 1234567 lazy dogs in the quick house of 4500",
    b"x",
    "é".encode(),
]


@trainers_test.NAMES
def test_covers_are_those_found_from_the_first_byte(name):
    made = trainers_test.trained(name)
    pieces = endings.Pieces(made)
    for text in TEXTS:
        found, want = endings.ending(made, text, pieces), covers.covers(made, text)
        assert found.covers == want
        assert found.ids == tuple(made.encode(text).tolist())


@trainers_test.NAMES
def test_what_may_follow_is_decided_as_on_the_whole_text(name):
    made, rng = trainers_test.trained(name), random.Random(1)
    ids = tuple(made.encode(b"\n".join(TEXTS[:3])).tolist())
    whole, seen = covers.Valid(made), set()
    every = [bool(piece) and whole((*ids[:30], i)) for i, piece in enumerate(made.pieces)]
    assert endings.followers(made, ids[:30]) == every
    for turn in range(4):
        following = [rng.choice(ids) if turn % 2 else rng.randrange(made.vocab_size) for _ in ids]
        want = [bool(made.pieces[i]) and whole((*ids[:k], i)) for k, i in enumerate(following)]
        assert endings.continuations(made, ids, range(len(ids)), following, context=16) == want
        seen |= {ok for i, ok in zip(following, want, strict=True) if made.pieces[i]}
    assert seen == {True, False}


BLANKS = [b" ", b"  ", b"\n\n", b"the  quick \n\n b", b"e 1 .  a  ", b"left \t ", "a\u3000 ".encode()]


@pytest.mark.parametrize("name", ["bpe", "supertokens", "digits_right"])
def test_covers_that_end_in_blanks_are_those_of_the_definition(name):
    """All encodings of a text and whole tokens behind it; a token that ends inside of a character is left out."""
    made = trainers_test.trained(name)
    whole = [piece for piece in made.pieces if piece and not covers.unfinished(piece)]
    behind = {piece[k:] + more for piece in whole for k in range(len(piece) + 1) for more in (b"", b"a", b"1", b".")}
    for text in BLANKS:
        want = set()
        for ids in made.encode_batch([text + more for more in sorted(behind)]):
            ends = np.cumsum([len(made.pieces[i]) for i in ids])
            want.add(tuple(ids[: int(np.searchsorted(ends, len(text))) + 1].tolist()))
        found = endings.ending(made, text).covers
        assert {ids for ids in found if not covers.unfinished(made.pieces[ids[-1]])} == want
        assert found == covers.covers(made, text)
    text = b"a  " if name != "supertokens" else b"e"
    assert not all(covers.canonical(made, ids) for ids in endings.ending(made, text).covers)


def test_covers_of_a_small_alphabet_are_those_of_the_definition():
    for text in covers_test.TEXTS:
        if not text or covers.unfinished(text):
            with pytest.raises(ValueError, match="whole character"):
                endings.ending(covers_test.Tiny(), text)
        else:
            assert endings.ending(covers_test.Tiny(), text).covers == covers_test.plain_covers(text)


class Joined:
    """A piece that ends inside of a character; what is broken is written byte by byte, as by our byte-level BPE."""

    pieces = (b"a", b"\xc3", b"\xa9", b"a\xc3")

    def encode(self, text):
        whole = len(text) - covers.unfinished(text)
        parts = pairs.encode(text[:whole], {(b"a", b"\xc3"): 0}) if whole else []
        return [self.pieces.index(part) for part in (*parts, *(text[k : k + 1] for k in range(whole, len(text))))]


def test_a_beginning_may_end_inside_of_a_character():
    for text in ("é", "aé", "aéaé", "éaéa"):
        found = endings.ending(Joined(), text.encode())
        assert found.ids in found.covers and found.covers == covers.covers(Joined(), text.encode())
    assert endings.ending(Joined(), "aé".encode()).bodies[-1] == (3,)


def test_pieces_are_found_by_how_they_begin():
    pieces = endings.Pieces(covers_test.Tiny())
    np.testing.assert_array_equal(pieces.beginning(b"a"), [0, 3, 4])
    np.testing.assert_array_equal(pieces.beginning(b"ab"), [3, 4])
    np.testing.assert_array_equal(pieces.equal(b"ab"), [3])
    assert pieces.longest == 3 and not len(pieces.beginning(b"ba"))
