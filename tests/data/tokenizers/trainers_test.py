"""Every trainer of the table: lossless, counted, kept, the same from the same texts, and chosen by name."""

import functools
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

import data
from configs import knobs
from data import tokenise, tokenizer
from tests import environment

TEXTS = [
    b"def add(left, right):\n    return left + right  # 1234567 and 89\n" * 8,
    "kitaplarda evlerden okullar kitap ev okul göz gözler\n".encode() * 12,
    bytes(range(256)) * 2 + b"the quick brown fox jumps over the lazy dog\n" * 12,
]
NAMES = pytest.mark.parametrize("name", tokenise.TRAINERS)


@functools.cache
def trained(name):
    return tokenise.TRAINERS[name](TEXTS, 340)


@NAMES
def test_every_byte_string_comes_back(name):
    made, rng = trained(name), random.Random(0)
    some = [b"", bytes(range(256)), *(bytes([b]) for b in range(256)), "日本語 👩‍🚀".encode()[1:-1], *TEXTS]
    some += [bytes(pair) for pair in itertools.product(range(256), repeat=2)]
    some += [rng.randbytes(rng.randint(1, 60)) for _ in range(50)]
    for text, ids in zip(some, made.encode_batch(some), strict=True):
        assert made.decode_bytes(ids) == text
        assert made.token_bytes[ids].sum() == len(text)
    np.testing.assert_array_equal(made.encode(TEXTS[0]), made.encode_batch(TEXTS[:1])[0])


@NAMES
def test_it_is_learned_kept_and_the_same_again(name, tmp_path):
    made = trained(name)
    assert 259 < made.vocab_size <= 340
    assert len(made.encode(TEXTS[2][512:])) < len(TEXTS[2]) - 512
    made.save(tmp_path / "tokenizer.json")
    back = data.load_tokenizer(tmp_path / "tokenizer.json")
    assert back.hash == made.hash and back.pieces == made.pieces
    for text in TEXTS:
        np.testing.assert_array_equal(back.encode(text), made.encode(text))
    again = tokenise.TRAINERS[name](TEXTS, 340)
    assert again.hash == made.hash


def digests():
    """Of every trainer's tokenizer, and of the ids that it gives many texts at once."""
    some = [text[k : k + 90] for text in TEXTS for k in range(0, len(text), 90)]
    ids = lambda made: b"".join(each.astype(np.int32).tobytes() for each in made.encode_batch(some))  # noqa: E731
    return [[name, trained(name).hash, hashlib.sha256(ids(trained(name))).hexdigest()] for name in tokenise.TRAINERS]


@pytest.mark.parametrize("threads", [1, 5])
def test_another_process_with_other_threads_learns_the_same(threads):
    """The library reads how many threads it has when a process begins; its hashes differ from process to process."""
    script = f"import json, {__name__} as here; print(json.dumps(here.digests()))"
    variables = os.environ | {"RAYON_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(threads)}
    told = {"cwd": environment.ROOT, "env": variables, "capture_output": True, "text": True, "check": True}
    assert json.loads(subprocess.run([sys.executable, "-c", script], **told).stdout) == digests()


def test_numbers_are_cut_from_their_side():
    pieces = lambda name: [trained(name).pieces[i] for i in trained(name).encode(b"1234567")]  # noqa: E731
    ends = lambda name: set(np.cumsum([len(p) for p in pieces(name)]).tolist())  # noqa: E731
    assert {1, 4} <= ends("digits_right") and {3, 6} <= ends("digits_left")


def test_supertokens_cross_blanks_and_words_do_not():
    crosses = lambda name: [p for p in trained(name).pieces if b" " in p.strip() and p.strip().isascii()]  # noqa: E731
    assert crosses("superbpe") and crosses("supertokens") and not crosses("bpe")
    assert trained("superbpe").pieces[:300] == trained("bpe").pieces[:300], "the first stage is BPE within words"


def test_a_corpus_is_read_by_name(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one two three four five six seven eight nine ten\n" * 100)
    arguments = {"path": str(tmp_path / "a.txt"), "vocab_size": 300, "cache_dir": str(tmp_path / "cache")}
    for name in ("lzw", "unigram"):
        made = data.load("text", tokenizer=name, **arguments)
        assert made.tokenizer.name == name
        assert data.known_tokenizer("text", tokenizer=name, **arguments).hash == made.tokenizer.hash
    with pytest.raises(ValueError, match="too small for tokenizer='lzw'"):
        data.load("text", tokenizer="lzw", **arguments | {"vocab_size": 258})


def test_the_knob_names_every_trainer():
    (ways,) = knobs.KNOBS["data.tokenizer_sample"].of
    assert set(ways[0].names) == set(tokenise.TRAINERS) == set(data.TOKENIZERS) - {"bytes"}


def test_the_old_tokenizer_has_its_old_state():
    made = trained("bpe")
    assert made._state() == {"kind": "bpe", "definition": made.definition}
    assert made.hash == tokenizer.digest_of(made._state())


def test_bytes_that_a_unigram_text_lacks_are_the_least_likely_pieces(tmp_path):
    tokenise.TRAINERS["unigram"](TEXTS[:1], 300).save(tmp_path / "saved.json")
    saved = json.loads(json.loads((tmp_path / "saved.json").read_text())["definition"])["model"]["vocab"]
    log_p = {bytes(map(tokenizer.byte_alphabet().__getitem__, piece)): value for piece, value in saved}
    lacking = {bytes([b]) for b in range(256)} - {bytes([b]) for b in TEXTS[0]}
    seen = [value for piece, value in log_p.items() if piece not in lacking]
    assert sum(map(np.exp, seen)) == pytest.approx(1, rel=1e-9)
    assert {log_p[byte] for byte in lacking} == {min(seen) - 10}


def test_roots_of_a_morphology_stand_by_how_often_they_are_used():
    made = tokenise.TRAINERS["morphology"]([b"bbb ccc zzz zzz zzz ccc"], 4000)
    places = [made.pieces.index(root) for root in (b"zzz", b" zzz", b"ccc", b" ccc", b"bbb", b" bbb")]
    assert places == sorted(places)
