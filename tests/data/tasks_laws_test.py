"""Tasks with a law of chance: entropy by enumeration, rows that follow it, walks in chunks and in single steps."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from data import tasks
from data.tasks import draws


def enumerated_entropy(task, n):
    """Entropy in nats of the first n symbols, over all of them."""
    total = 0.0
    for word in itertools.product(range(task.symbols), repeat=n):
        p = task.stationary[int("".join(map(str, word[: task.order])), task.symbols)]
        for i in range(task.order, n):
            p *= task.transitions[int("".join(map(str, word[i - task.order : i])), task.symbols), word[i]]
        total -= p * math.log(p) if p else 0.0
    return total


@pytest.mark.parametrize(
    "task",
    [
        tasks.Markov(order=1, symbols=3),
        tasks.Markov(order=2, symbols=2, law=3),
        tasks.Markov(order=2, symbols=3, concentration=1.0),
        tasks.Markov(order=3, symbols=2, kind="switching", flip=0.1),
        tasks.Markov(order=2, symbols=3, kind="switching", flip=0.3),
    ],
)
def test_the_markov_entropy_rate_by_enumeration(task):
    n = task.order + 3
    # Stationary: each symbol past the first k adds the rate. Sums of at most 3^5 terms below 6 nats, in float64.
    added = np.diff([enumerated_entropy(task, m) for m in range(task.order, n + 1)])
    np.testing.assert_allclose(added, task.best_loss, rtol=1e-11)
    one = task.stationary.reshape(task.symbols, -1).sum(axis=1)
    assert task.chance_loss == pytest.approx(-(one * np.log(one)).sum(), rel=1e-13)
    assert task.best_loss < task.chance_loss <= math.log(task.symbols) * (1 + 1e-12)
    if task.kind == "switching":
        flip = task.flip
        closed = -(1 - flip) * math.log(1 - flip) - flip * math.log(flip / (task.symbols - 1))
        assert task.best_loss == pytest.approx(closed, rel=1e-12)
        assert task.best_accuracy == pytest.approx(max(1 - flip, flip / (task.symbols - 1)), rel=1e-12)
        assert task.chance_loss == pytest.approx(math.log(task.symbols), rel=1e-12)


@pytest.mark.parametrize("settings", ["order=2, symbols=3", "order=3, symbols=3, kind=switching", "order=1, symbols=6"])
def test_markov_rows_follow_their_law(settings):
    task = tasks.make("markov", settings)
    sequence, answers = task.sample(1, np.arange(400), 300)
    k, v = task.order, task.symbols
    context = sum(sequence[:, i : 301 - k + i] * v ** (k - 1 - i) for i in range(k))
    nats = -np.log(task.transitions[context, sequence[:, k:]])
    assert answers[:, k:].all() and not answers[:, :k].any()
    means = nats.mean(axis=1)  # rows are independent, so 4 standard errors of their mean
    assert abs(means.mean() - task.best_loss) < 4 * means.std(ddof=1) / math.sqrt(len(means))
    right = (task.transitions[context].argmax(axis=-1) == sequence[:, k:]).mean(axis=1)
    assert abs(right.mean() - task.best_accuracy) < 4 * right.std(ddof=1) / math.sqrt(len(right))
    # The first context and the last are both stationary.
    for place in (context[:, 0], context[:, -1]):
        counts = np.bincount(place, minlength=v**k)
        expected = task.stationary * 400
        few = expected < 5
        observed = np.append(counts[~few], counts[few].sum())
        wanted = np.append(expected[~few], expected[few].sum())
        keep = wanted > 0
        assert stats.chisquare(observed[keep], wanted[keep]).pvalue > 1e-4


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ("order=2, symbols=3", 149),
        ("order=2, symbols=3", 5000),  # chunks of 70, longer than the window
        ("order=4, symbols=5", 149),  # 625 contexts: no chunks
        ("order=2, symbols=3, kind=switching, flip=0.02", 5000),  # walks that rarely meet
    ],
)
def test_markov_walks_equal_one_step_at_a_time(settings, steps):
    task = tasks.make("markov", settings)
    k = task.order
    sequence, _ = task.sample(9, np.arange(2), steps + k - 1)
    u = draws.uniforms(9, np.arange(2), "steps", steps)
    laws = np.cumsum(task.transitions, axis=1)[:, :-1]
    for row in range(2):
        state = sequence[row, :k].tolist()
        for t in range(steps):
            context = sum(s * task.symbols ** (k - 1 - i) for i, s in enumerate(state[-k:]))
            state.append(int((u[row, t] >= laws[context]).sum()))
        assert state == sequence[row].tolist()


def test_automata_give_legal_strings_at_the_entropy_of_the_oracle():
    task = tasks.make("automata", "states=4, symbols=5, degree=2, string_length=6")
    row, length, period = np.arange(200), 97, 7
    sequence, answers = task.sample(2, row, length)
    symbol, following = task.machines(2, row)
    assert all(len(set(s)) == 2 for s in symbol.reshape(-1, 2).tolist())
    assert all(len(set(s)) == 2 for s in following.reshape(-1, 2).tolist())
    legal = task.legal(2, row, length)
    chosen = []
    for b in range(0, 200, 10):
        state = 0
        for t in range(length + 1):
            if t % period == period - 1:
                assert sequence[b, t] == task.symbols and not answers[b, t]
                state = 0
                continue
            permitted = symbol[b, state].tolist()
            edge = permitted.index(sequence[b, t])
            if t:
                assert np.flatnonzero(legal[b, t - 1]).tolist() == sorted(permitted)
                assert answers[b, t] == (t >= 0.5 * (length + 1))
            chosen.append(edge)
            state = following[b, state, edge]
    assert stats.binomtest(sum(chosen), len(chosen), 0.5).pvalue > 1e-4
    assert (legal[:, :, : task.symbols].sum(axis=-1)[answers[:, 1:]] == task.degree).all()
    # All strings of one automaton: degree^n of them, all different, so the entropy of a symbol is log(degree).
    strings = {()}
    states = {(): 0}
    for _ in range(task.string_length):
        longer = {}
        for string in strings:
            for s, nxt in zip(symbol[0, states[string]].tolist(), following[0, states[string]].tolist(), strict=True):
                longer[(*string, s)] = nxt
        strings, states = set(longer), longer
    assert len(strings) == 2**6
    assert math.log(len(strings)) / 6 == pytest.approx(task.best_loss, rel=1e-14)
