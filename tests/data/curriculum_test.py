"""Curricula of tasks: which settings a training row has, by its number, and held-out rows that have the task's own."""

import collections
import itertools
import math

import numpy as np
import pytest

import data
from data import cache
from data.tasks import draws, loading, make

PLAIN = "pairs=8, queries=16, keys=32, values=16"
STAGED = f"40: pairs=2; 60: pairs=2 | pairs=4 | pairs=8; {PLAIN}"


def pairs_of(tokens, keys=32, values=16):
    """How many (key, value) pairs a row begins with: keys that stand before their first repetition."""
    seen = []
    for place in range(0, len(tokens) - 1, 2):
        key, value = tokens[place], tokens[place + 1]
        if key in seen or key >= keys or not keys <= value < keys + values:
            return place // 2
        seen.append(key)
    return len(seen)


def rows(corpus, count, batch=10):
    loader = data.Loader(corpus.train, batch_size=batch, length=48, pad=corpus.tokenizer.pad, seed=3)
    return np.concatenate([loader.batch(step)["tokens"] for step in range(count // batch)])


def test_stages_follow_each_other_in_the_order_of_training():
    """Keys are asked right behind the pairs at times, so a count may be too large; it is never too small."""
    corpus = loading.corpus("recall", STAGED, seed=1)
    train = corpus.train.packed(48)
    task = [make("recall", f"{PLAIN}, pairs={n}") for n in (2, 4, 8)]
    tokens = rows(corpus, 130)
    numbers = np.arange(130)
    plain = [each.sample(corpus.train.seed, numbers, 48)[0][:, :-1] for each in task]
    np.testing.assert_array_equal(tokens[:40], plain[0][:40])
    np.testing.assert_array_equal(tokens[100:], plain[2][100:])
    which = [[k for k in range(3) if np.array_equal(tokens[i], plain[k][i])] for i in range(40, 100)]
    assert all(len(each) == 1 for each in which)
    counts = collections.Counter(each[0] for each in which)
    assert sorted(counts) == [0, 1, 2] and min(counts.values()) > 8
    assert all(pairs_of(tokens[i].tolist()) >= 2 for i in range(40))
    np.testing.assert_array_equal(train.rows(np.array([99, 3])).tokens, tokens[[99, 3]])


def test_held_out_rows_have_the_tasks_own_settings():
    staged, plain = (loading.corpus("recall", text, seed=1) for text in (STAGED, PLAIN))
    index = np.arange(20)
    for split in (corpus.valid.packed(48).rows(index) for corpus in (staged, plain)):
        assert split.tokens.shape == (20, 48)
    same = [corpus.valid.packed(48).rows(index).tokens for corpus in (staged, plain)]
    np.testing.assert_array_equal(*same)
    assert staged.hash != plain.hash != loading.corpus("recall", f"{PLAIN}, power=0.01", seed=1).hash
    old = {"pairs": 8, "queries": 16, "keys": 32, "values": 16, "noise": 16}
    assert plain.hash == cache.digest("task", "recall", old, 0, 1), "corpora keep the names of old runs"
    assert loading.corpus("recall", PLAIN, seed=1).hash == plain.hash


def test_star_graphs_and_addition_may_begin_easily():
    stars = loading.corpus("star_graph", "30: least=1, most=1 | least=2, most=2; arms=2, least=3, most=3, nodes=20")
    scored = stars.train.packed(40).rows(np.arange(60)).scored.sum(1)
    assert {*scored[:30].tolist()} == {2, 3} and {*scored[30:].tolist()} == {4}
    sums = loading.corpus("arithmetic", "30: digits=1; digits=4, reverse=true")
    tokens = sums.train.packed(20).rows(np.arange(60)).tokens
    place = (tokens == 10).argmax(1)  # of the sign: the digits of the first number
    assert place[:30].max() == 1 and place[30:].max() == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pairs=2; pairs=8", "does not begin with its rows; use 20000: ..."),
        ("0: pairs=2; pairs=8", "does not begin with its rows"),
        ("10: keys=8, pairs=2; pairs=8", "has 88 symbols and the task itself 144"),
        ("10: paris=2; pairs=8", "paris"),
    ],
)
def test_what_is_no_curriculum_is_refused_in_a_sentence(text, said):
    with pytest.raises(ValueError, match=said.replace("...", r"\.\.\.")):
        loading.corpus("recall", text)


def test_a_row_that_does_not_fit_any_stage_is_refused():
    staged = loading.corpus("recall", "10: pairs=32; pairs=2, queries=2")
    with pytest.raises(ValueError, match="length=50 is too short for a row of task:recall; use 67 or more"):
        staged.train.packed(50)


def test_weighted_places_are_drawn_one_after_another():
    """All ordered pairs of four places beside their probabilities, w_i / sum w_j / (rest): chi-square of 11 degrees."""
    weights, count = np.array([4.0, 3.0, 2.0, 1.0]), 40_000
    found = draws.weighted(5, np.arange(count), "places", 2, weights)
    seen = collections.Counter(map(tuple, found.tolist()))
    total, chi = weights.sum(), 0.0
    for i, j in itertools.permutations(range(4), 2):
        p = weights[i] / total * weights[j] / (total - weights[i])
        chi += (seen[i, j] - count * p) ** 2 / (count * p)
    assert chi < 31.3  # one in a thousand


def test_distances_of_queries_follow_the_power():
    """The first query's place has probability a i^(a - 1) / sum; each key is asked for its own value."""
    task = make("recall", "pairs=4, queries=4, keys=16, values=16, power=0.5")
    sequence, answers = task.sample(7, np.arange(20_000), 47)
    weights = 0.5 * np.arange(1, 21) ** -0.5
    np.testing.assert_allclose(task.weights(20), weights, rtol=1e-15)
    assert answers.sum(1).min() == answers.sum(1).max() == 4
    place = draws.weighted(7, np.arange(20_000), "places", 4, weights)
    p = weights / weights.sum()
    first = np.bincount(place[:, 0], minlength=20) / 20_000
    assert np.abs(first - p).max() < 4 * math.sqrt(p.max() / 20_000)
    for i in range(200):
        held = dict(zip(sequence[i, 0:8:2].tolist(), sequence[i, 1:8:2].tolist(), strict=True))
        at = np.flatnonzero(answers[i])
        assert {*at.tolist()} == {int(9 + 2 * p) for p in place[i]}
        assert [held[k] for k in sequence[i, at - 1].tolist()] == sequence[i, at].tolist()
    with pytest.raises(ValueError, match=r"power=-1\.0 is no power of distances; use 0\.01"):
        make("recall", "power=-1")
