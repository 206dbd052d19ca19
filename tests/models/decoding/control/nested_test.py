"""JSON of any depth: the stack against Python's own parser, by brute force and by random texts."""

import itertools
import json
import re

import numpy as np
import pytest

from experiments.generation.text import Generator
from models.decoding.control import nested
from tests.experiments.generation.generate_test import OPTIONS, generator
from tests.models.decoding.stream_test import DEFAULTS

WORDS = [bytes([byte]) for byte in range(256)] + [b'{"', b'":', b"[[", b"]]", b"true", b"1,", None]
EOS = 262


def good(text):
    """JSON as it is written here: no blank but one behind a colon or a comma."""
    try:
        json.loads(text)
    except ValueError:
        return False
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    return not re.search(r"(?<![:,]) ", bare) and not re.search(r"[\t\n\r]", bare)


def test_what_is_read_is_what_python_reads():
    """All texts of up to four of these characters."""
    for n in range(1, 5):
        for text in map("".join, itertools.product('[]{}",:1-a ', repeat=n)):
            state = nested.follow(nested.START, text.encode())
            assert (state is not None and nested.complete(state)) == good(text), text


VALUES = (
    '{"a": [1, -2.5e+3, {"b": null}], "c\\n\\u00e9": "é😀"}',
    "[true, false, [[]], {}]",
    "0",
    "-0.5",
    '""',
    "[0,10]",
)
OTHERS = (b"01", b"-", b"[1,]", b'{"a"}', b"{1:2}", b"tru ", b'"\xc3"', b'"\xe0\x80\x80"', b'"\xff"', b'"\n"', b"1.")
OTHERS += (b"[1 ]", b" 1", b"1e", b'"\\x"', b"]", b"[}", b'{"a":1,}', b"[1,  2]")


@pytest.mark.parametrize("text", VALUES)
def test_values_are_read_and_their_beginnings_can_be_ended(text):
    state = nested.START
    for i, byte in enumerate(text.encode()):
        assert nested.missing(state) > 0 or nested.complete(state)
        state = nested.step(state, byte)
        assert state is not None, text[: i + 1]
    assert nested.complete(state) and nested.missing(state) == 0


@pytest.mark.parametrize("text", OTHERS)
def test_what_is_no_value_is_not_read(text):
    state = nested.follow(nested.START, text)
    assert state is None or not nested.complete(state)


def test_random_texts_are_json_within_their_limit():
    rng = np.random.default_rng(0)
    root, depth = nested.trie(WORDS), 0
    for _ in range(60):
        limit = int(rng.integers(2, 40))
        state, text, left = nested.START, b"", limit
        while True:
            mask = nested.allowed(root, state, left, len(WORDS))
            if nested.complete(state) and (rng.random() < 0.2 or not mask.any() or left == 1):
                break
            token = int(rng.choice(np.flatnonzero(mask)))
            text, left = text + WORDS[token], left - 1
            state = nested.follow(state, WORDS[token])
            depth = max(depth, len(state[1]))
        json.loads(text.decode())
        assert left >= 1
    assert depth >= 2


def test_a_token_is_allowed_iff_its_bytes_go_on_and_an_end_is_near():
    state = nested.follow(nested.START, b'{"a":[')
    for left in (2, 3, 4, 6, 30):
        mask = nested.allowed(nested.trie(WORDS), state, left, len(WORDS))
        for token, word in enumerate(WORDS):
            after = nested.follow(state, word) if word else None
            assert mask[token] == (after is not None and nested.missing(after) + 1 <= left - 1)
    with pytest.raises(ValueError, match="is none"):
        nested.trie(WORDS[:10])


def test_the_generator_writes_json():
    maker, params = generator()
    options = DEFAULTS | OPTIONS | {"control": "json", "json": {"on": True}, "max_tokens": 24, "temperature": 1.0}
    for text in Generator(maker.program, maker.tokenizer)(params, ["a", "b"], options, seed=2):
        json.loads(text)
