"""Mixtures from merges, and rates on Markov sources, against plain forms."""

import itertools
import random

import numpy as np
import pytest

from data.tokenizers import lzw, mixture, pairs, theory


def language(seed, size=300):
    """Words of a made-up language: its own weights over six letters."""
    rng = random.Random(seed)
    weights = [rng.random() ** 3 for _ in range(6)]
    words = ("".join(rng.choices("abcdef", weights, k=rng.randint(2, 7))).encode() for _ in range(size))
    counts = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return counts


def planted(weights, merges):
    """(merges of the mixture, counts, chosen, sizes) with the true weights inside."""
    languages = [language(seed) for seed in range(len(weights))]
    sizes = [sum((len(w) - 1) * n for w, n in words.items()) for words in languages]
    mixed = {}
    for words, weight, size in zip(languages, weights, sizes, strict=True):
        for word, n in words.items():
            mixed[word] = mixed.get(word, 0) + n * weight / size
    corpus, made = pairs.Corpus(mixed), []
    for _ in range(merges):
        made.append(max(corpus.counts, key=corpus.counts.get))
        corpus.merge(made[-1])
    entries = [pairs.counts_per_merge(words, made) for words in languages]
    counts, chosen, _ = mixture.dense_counts(entries, made)
    return made, counts, chosen, sizes


@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.15, 0.6, 0.25)])
def test_a_planted_mixture_lies_in_the_interval_without_slack(weights):
    _, counts, chosen, sizes = planted(weights, 25)
    found = mixture.solve(counts, chosen, sizes)
    assert found.objective == pytest.approx(0, abs=1e-9)
    assert found.weights.sum() == pytest.approx(1)
    for weight, (low, high) in zip(weights, found.interval, strict=True):
        assert low - 1e-6 <= weight <= high + 1e-6
        assert high - low < 0.35, "the merges say something"


def plain_objective(counts, chosen, sizes, a, with_pairs):
    """The least slack for given weights, by one programme over every row at once."""
    from scipy import optimize

    rates = np.einsum("i,tip->tp", a, counts / np.asarray(sizes)[:, None])
    M, P = rates.shape
    rows, b = [], []
    for t, p in itertools.product(range(M), range(P)):
        if p != chosen[t]:
            row = np.zeros(M + P)
            row[t] = row[M + p] = -1
            rows.append(row)
            b.append(rates[t, chosen[t]] - rates[t, p])
    bounds = [(0, None)] * M + [(0, None if with_pairs else 0)] * P
    return optimize.linprog(np.ones(M + P), np.array(rows), np.array(b), bounds=bounds, method="highs").fun


@pytest.mark.parametrize("with_pairs", [True, False])
def test_a_noisy_answer_is_the_best_of_a_grid(with_pairs):
    made, _, _, _ = planted((0.6, 0.4), 12)
    noisy = [language(0, 60), language(1, 60)]
    sizes = [sum((len(w) - 1) * n for w, n in words.items()) for words in noisy]
    counts, chosen, _ = mixture.dense_counts([pairs.counts_per_merge(words, made) for words in noisy], made)
    kept = chosen >= 0
    counts, chosen = counts[kept], chosen[kept]
    found = mixture.solve(counts, chosen, sizes, pair_slack=with_pairs, intervals=False)
    assert found.objective > 1e-6, "the sample is not the training text"
    at = lambda x: plain_objective(counts, chosen, sizes, np.array([x, 1 - x]), with_pairs)  # noqa: E731
    np.testing.assert_allclose(at(found.weights[0]), found.objective, atol=1e-8)
    assert min(at(x) for x in np.linspace(0, 1, 21)) >= found.objective - 1e-9
    assert found.step_slack.sum() + found.pair_slack.sum() == pytest.approx(found.objective)
    assert with_pairs or not found.pair_slack.any()


def test_the_step_that_the_released_code_skips_can_be_skipped():
    _, counts, chosen, sizes = planted((0.5, 0.5), 10)
    lie = chosen.copy()
    lie[4] = 0  # A pair with index 0, which was not the largest.
    assert mixture.solve(counts, lie, sizes, intervals=False).objective > 1e-4
    skipped = mixture.solve(counts, lie, sizes, intervals=False, skip_first_pair=True)
    assert skipped.objective == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="no pair that any language holds"):
        mixture.solve(counts, np.full(len(chosen), -1), sizes)


P = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.25, 0.25]])


def test_rates_of_a_chain():
    pi = theory.stationary(P)
    np.testing.assert_allclose(np.linalg.matrix_power(P, 200)[0], pi, rtol=1e-12)
    np.testing.assert_allclose(theory.unigram_rate(P), -sum(p * np.log(p) for p in pi), rtol=1e-13)
    rate = -sum(pi[x] * P[x, y] * np.log(P[x, y]) for x in range(3) for y in range(3))
    np.testing.assert_allclose(theory.entropy_rate(P), rate, rtol=1e-13)
    for m in (1, 2, 4):
        blocks = 0.0
        for block in itertools.product(range(3), repeat=m):
            p = pi[block[0]] * np.prod([P[x, y] for x, y in itertools.pairwise(block)])
            blocks -= p * np.log(p)
        np.testing.assert_allclose(theory.block_rate(P, m), blocks / m, rtol=1e-12)


def test_a_switching_source_looks_random_and_is_not():
    chain = theory.switching(0.1, 0.1)
    h = -(0.1 * np.log(0.1) + 0.9 * np.log(0.9))
    np.testing.assert_allclose(theory.switching_rate(0.1, 0.1), h)
    np.testing.assert_allclose(theory.unigram_rate(chain), np.log(2))
    np.testing.assert_allclose(theory.entropy_rate(theory.switching(0.3, 0.1)), theory.switching_rate(0.3, 0.1))
    higher = theory.interleaved(chain, 3)
    np.testing.assert_allclose(higher.sum(1), 1)
    np.testing.assert_allclose(theory.entropy_rate(higher), h, rtol=1e-10)
    assert higher[0b011, 0b110] == pytest.approx(0.9), "three symbols ago stood 0"


def test_rates_of_a_dictionary_are_those_of_a_long_text():
    rng = np.random.default_rng(0)
    text, length = [0], 200_000
    cdf = np.cumsum(P, 1)
    for u in rng.random(length - 1):
        text.append(int(np.searchsorted(cdf[text[-1]], u)))
    symbols = bytes(text)
    pieces = lzw.train([symbols[:2000]], 40, [bytes([s]) for s in range(3)])
    rates = theory.dictionary_rates(P, [tuple(p) for p in pieces])
    ids = np.array(lzw.greedy(symbols, {p: k for k, p in enumerate(pieces)}, max(map(len, pieces))))
    counts = np.bincount(ids) / len(ids)
    seen = -np.sum(counts[counts > 0] * np.log(counts[counts > 0])) * len(ids) / length
    # The estimate's standard error is some sigma / sqrt(tokens); tokens' log-probabilities spread by about 1 nat.
    assert abs(rates["unigram"] - seen) < 5 / np.sqrt(len(ids))
    assert abs(rates["symbols"] - length / len(ids)) < 5 * rates["symbols"] / np.sqrt(len(ids))
    np.testing.assert_allclose(rates["bigram"], theory.entropy_rate(P), rtol=1e-12)
    assert theory.entropy_rate(P) < rates["unigram"] < theory.unigram_rate(P)


def test_rates_of_small_dictionaries_by_hand():
    single = theory.dictionary_rates(P, [(0,), (1,), (2,)])
    np.testing.assert_allclose(
        [single["unigram"], single["bigram"], single["symbols"]],
        [theory.unigram_rate(P), theory.entropy_rate(P), 1],
        rtol=1e-12,
    )
    coin = np.full((2, 2), 0.5)
    pair = theory.dictionary_rates(coin, [(0,), (1,), (0, 0)])
    # The next token begins with 0 or 1, q and 1 - q; from 0: 00 or 0 evenly, and behind a lone 0 stands a 1.
    q = 2 / 5  # q = q (1/2 * 1/2) + (1 - q) / 2
    tokens = np.array([q / 2, q / 2, 1 - q])
    np.testing.assert_allclose(pair["symbols"], tokens @ [2, 1, 1], rtol=1e-12)
    np.testing.assert_allclose(pair["unigram"], -(tokens @ np.log(tokens)) / pair["symbols"], rtol=1e-12)
    with pytest.raises(ValueError, match="lacks a prefix"):
        theory.dictionary_rates(P, [(0,), (1,), (2,), (0, 1, 2)])
    assert theory.excess_factor(1000, 0.1) == pytest.approx(1.5)
