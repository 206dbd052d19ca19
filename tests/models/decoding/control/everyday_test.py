"""Penalties, repeats and cuts by value, against the loops of transformers, llama.cpp and text-generation-webui."""

import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.control import cuts, penalties, repeats
from tests.plain import control as plain

V = 9


@pytest.fixture(autouse=True)
def _float64(x64):
    """All values here are compared in float64."""


def texts():
    """Ragged rows of few ids, so that much comes again; what lies behind their lengths is rubbish."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 3, (6, 14))
    tokens[3:] = rng.integers(0, V, (3, 14))
    return tokens, np.array([14, 9, 1, 14, 5, 2])


def test_counts_are_of_the_tokens_that_count():
    tokens, length = texts()
    got = penalties.counts(tokens, length, V)
    for row in range(6):
        assert got[row].tolist() == np.bincount(tokens[row, : length[row]], minlength=V).tolist()


def test_penalties_by_value():
    logits = np.array([[2.0, -1.0, 0.5, -3.0], [2.0, -1.0, 0.5, -np.inf]])
    seen = np.array([[True, True, False, False], [False, False, True, True]])
    got = penalties.repetition(logits, seen, jnp.array([2.0, 4.0]))
    assert got.tolist() == [[1.0, -2.0, 0.5, -3.0], [2.0, -1.0, 0.125, -np.inf]]
    count = np.array([[0, 1, 3, 0], [2, 0, 0, 1]])
    got = penalties.presence_frequency(logits, count, jnp.array([1.0, 0.0]), jnp.array([0.25, 0.5]))
    assert got.tolist() == [[2.0, -2.25, -1.25, -3.0], [1.0, -1.0, 0.5, -np.inf]]
    assert penalties.bias(logits[0], np.array([0, 0, -np.inf, 4.0])).tolist() == [2.0, -1.0, -np.inf, 1.0]
    short = penalties.min_length(logits, jnp.array([3, 4]), jnp.array([4, 4]), eos=2)
    assert np.isneginf(np.asarray(short)).tolist() == [[False, False, True, False], [False, False, False, True]]


def test_neutral_values_change_no_bit():
    tokens, length = texts()
    logits = np.random.default_rng(1).normal(size=(6, V))
    seen = penalties.counts(tokens, length, V)
    for got in (
        penalties.repetition(logits, seen > 0, 1.0),
        penalties.presence_frequency(logits, seen),
        penalties.min_length(logits, length, 0, 1),
        repeats.no_repeat_ngram(logits, tokens, length, 0),
        repeats.dry(logits, repeats.longest_matches(tokens, length, V), 0.0),
        cuts.typical(logits, 1.0),
        cuts.top_n_sigma(logits, 0.0),
    ):
        assert (np.asarray(got) == logits).all()


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_ngrams_that_came_are_not_written_again(n):
    tokens, length = texts()
    got = repeats.repeats_ngram(tokens, length, n, V)
    for row in range(6):
        assert set(np.flatnonzero(got[row])) == plain.banned_ngrams(tokens[row, : length[row]].tolist(), n)


@pytest.mark.parametrize("breaks", [(), (1,), (0, 2)])
def test_dry_is_the_loop(breaks):
    tokens, length = texts()
    is_break = np.isin(np.arange(V), breaks)
    got = repeats.longest_matches(tokens, length, V, is_break)
    logits = np.random.default_rng(2).normal(size=V)
    for row in range(6):
        match = plain.longest_matches(tokens[row, : length[row]].tolist(), V, breaks)
        assert got[row].tolist() == match
        want = [x - 0.8 * 1.75 ** (m - 2) if m >= 2 else x for x, m in zip(logits, match, strict=True)]
        np.testing.assert_allclose(repeats.dry(logits, got[row], 0.8, 1.75, 2), want, rtol=1e-14)
    assert max(map(max, got.tolist())) > 2 or breaks


def test_typical_keeps_what_the_loop_keeps():
    rng = np.random.default_rng(3)
    for _ in range(20):
        logits, mass = rng.normal(size=12) * 2, rng.random()
        assert set(np.flatnonzero(np.isfinite(cuts.typical(logits, mass)))) == plain.typical(logits, mass)
    rows = rng.normal(size=(2, 12))
    both = cuts.typical(rows, jnp.array([0.3, 1.0]))
    assert (np.isfinite(both[0]) == np.isfinite(cuts.typical(rows[0], 0.3))).all() and np.isfinite(both[1]).all()


def test_typical_may_leave_out_the_likeliest():
    p = np.array([0.4, *[0.075] * 8])
    assert not np.isfinite(cuts.typical(np.log(p), 0.2)[0])


def test_top_n_sigma_is_of_the_finite_logits():
    logits = np.array([4.0, 3.0, 1.0, 0.0, -np.inf])
    sigma = np.array([4.0, 3.0, 1.0, 0.0]).std()
    for n in (0.1, 0.7, 1.0, 2.5):
        assert np.isfinite(cuts.top_n_sigma(logits, n)).tolist() == (logits >= 4 - n * sigma).tolist()


def test_mirostat_by_value():
    p = np.array([0.5, 0.25, 0.125, 0.125])
    for mu, kept in ((0.5, 1), (1.0, 1), (2.0, 2), (2.5, 2), (3.0, 4)):
        assert np.isfinite(cuts.mirostat(np.log(p), jnp.asarray(mu + 1e-9))).sum() == kept
    assert abs(cuts.mirostat_mu(6.0, 0.25, 3.0, 0.1) - (6.0 - 0.1 * (2 - 3))) < 1e-15
    rng = np.random.default_rng(4)
    for m in (5, 100):
        for mu in (1.0, 3.0, 6.0):
            logits = rng.normal(size=40) * 1.5
            kept = np.isfinite(cuts.mirostat_v1(logits, jnp.asarray(mu), m))
            k = plain.mirostat_v1(logits, mu, m)
            assert kept.sum() == min(k, 40) and set(np.flatnonzero(kept)) == set(np.argsort(-logits)[:k])
