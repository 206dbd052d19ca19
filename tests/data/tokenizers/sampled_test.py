"""Tokenizers drawn around a text against brute force, and letters of two scripts against words by hand."""

import itertools
import math

import numpy as np
import pytest

from data.tokenizers import romanise, sampled

COUNTS = {b" the": 5, b"then": 2, b"x": 9, b" th": 1}


def test_scores_are_bytes_covered():
    want = {}
    for word, uses in COUNTS.items():
        for a, b in itertools.combinations(range(len(word) + 1), 2):
            if 2 <= b - a <= 3:
                want[word[a:b]] = want.get(word[a:b], 0) + uses * (b - a)
    assert sampled.covered(COUNTS, longest=3) == want
    assert want[b"th"] == 2 * (5 + 2 + 1)
    q = np.array([3.0, 1.0])
    got = sampled.log_scores(q, np.array([0.1, -0.3]))
    assert got[0] == pytest.approx(math.log(0.85), abs=1e-15) and got[1] == -math.inf


def test_the_best_stay_and_noise_moves_them():
    rng = np.random.default_rng(0)
    scores = sampled.covered(COUNTS)
    best = sorted(scores, key=lambda p: -scores[p])[:4]
    got = sampled.draw(COUNTS, 260, 0.0, rng)
    assert [*got][:256] == sampled.BYTES and [*got][256:] == best
    total = sum(scores.values())
    np.testing.assert_allclose([got[p] for p in best], [math.log(scores[p] / total) for p in best], rtol=1e-12)
    assert {got[p] for p in sampled.BYTES} == {math.log(min(scores.values()) / total)}
    assert [*sampled.draw(COUNTS, 260, 1.0, rng)][256:] != best
    with pytest.raises(ValueError, match=rf"use {256 + len(scores)} or less"):
        sampled.draw(COUNTS, 257 + len(scores), 0.0, rng)


def test_the_noise_is_log_normal():
    rng = np.random.default_rng(1)
    logs = np.log([sampled.noise_scale(rng, 1e-3, 2.0) for _ in range(4000)])
    assert abs(logs.mean() - math.log(1e-3)) < 5 * 2 / math.sqrt(4000)
    assert abs(logs.std() / 2 - 1) < 5 / math.sqrt(8000)
    assert sampled.noise_scale(rng, 0.0) == 0


def test_texts_are_cut_by_the_most_probable_pieces():
    log_p = sampled.draw(COUNTS, 264, 0.0, np.random.default_rng(0))
    pieces = [*log_p]
    for text in (b" then the\n\n   th \x00\xff the", b"x" * 70 + b"    then"):
        assert b"".join(sampled.words(text)) == text
        ids = sampled.Encoder(log_p)(text)
        assert b"".join(pieces[i] for i in ids) == text
    word = b" then"
    cuts = ([word[a:b] for a, b in itertools.pairwise([0, *inner, len(word)])]
            for n in range(len(word)) for inner in itertools.combinations(range(1, len(word)), n))  # fmt: skip
    best = max(sum(log_p[p] for p in cut) for cut in cuts if all(p in log_p for p in cut))
    got = [pieces[i] for i in sampled.Encoder(log_p)(word)]
    assert sum(log_p[p] for p in got) == pytest.approx(best, rel=1e-12) and len(got) < len(word)


def test_letters_of_two_scripts():
    said = {
        "Щука, ёж": "Shchuka, ezh",
        "объём": "obem",
        "Їжак": "Izhak",
        "ψυχή": "psychi",
        "Θεός": "Theos",
        "Köln": "Koln",
    }
    assert {text: romanise.romanised(text) for text in said} == said
