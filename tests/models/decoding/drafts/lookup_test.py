"""Prompt lookup against its definition: of the longest last words that stood before, what followed the newest place."""

import jax
import numpy as np

from models.decoding.drafts import lookup

R, COUNT, NGRAM = 12, 3, 3


def plain(text):
    """The tokens behind the newest earlier place of the last n tokens, n = NGRAM, ..., 1; [] where there is none."""
    for n in range(NGRAM, 0, -1):
        places = [end for end in range(n, len(text)) if text[end - n : end] == text[-n:]] if len(text) > n else []
        if places:
            return text[places[-1] : places[-1] + COUNT]
    return []


def test_drafts_are_what_followed_the_newest_place_of_the_longest_words():
    rng = np.random.default_rng(0)
    text, length = rng.integers(0, 3, (200, R)), rng.integers(1, R + 1, 200)
    tokens, found = map(np.asarray, jax.jit(lookup.continuation, static_argnums=(2, 3))(text, length, NGRAM, COUNT))
    wanted = [plain(row[:n].tolist()) for row, n in zip(text, length, strict=True)]
    assert [row[there].tolist() for row, there in zip(tokens, found, strict=True)] == wanted
    assert {len(row) for row in wanted} == set(range(COUNT + 1))
