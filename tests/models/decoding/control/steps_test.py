"""Who writes the next token, and what is read: routing, nudging, roll-outs, beams, soft inputs, by value."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from models.decoding.control import rollouts, routing, search, superposed, thinking
from tests.plain import control as plain


@pytest.fixture(autouse=True)
def _float64(x64):
    """All values here are compared in float64."""


def test_thresholds_give_the_two_pure_models_ties_included():
    critical = jnp.array([0.0, 0.5, 1.0])
    assert routing.to_large(critical, 0.0).all() and not routing.to_large(critical, 1.01).any()
    assert routing.to_large(critical, 0.5).tolist() == [False, True, True]
    log_p = jnp.log(jnp.array([[1.0, 0.0], [0.3, 0.7], [0.5, 0.5]]))
    assert not routing.needs_nudging(log_p, 0.0).any() and routing.needs_nudging(log_p, 1.01).all()
    assert routing.needs_nudging(log_p, 0.5).tolist() == [False, False, False]
    assert routing.needs_nudging(log_p, 0.6).tolist() == [False, False, True]
    logits = jnp.array([[0.0, 0.0], [9.0, 0.0]])
    assert routing.entropy_to_large(logits, np.log(2) - 1e-12).tolist() == [True, False]
    assert rollouts.looks_ahead(logits, 0.0).all() and not rollouts.looks_ahead(logits, np.inf).any()
    assert routing.all_exceeded([jnp.array([1.0, 2.0]), jnp.array([5.0, 3.0])], [2.0, 3.0]).tolist() == [False, True]


def test_log_uncertainty_is_the_sum_over_the_largest_logits():
    logits = np.random.default_rng(0).random((3, 30)) * 20 + 1
    aleatoric, epistemic = routing.log_uncertainty(logits, k=10)
    for row in range(3):
        want = plain.log_uncertainty(logits[row], 10)
        np.testing.assert_allclose((aleatoric[row], epistemic[row]), want, rtol=1e-12)


def test_the_router_and_its_loss():
    rng = np.random.default_rng(1)
    hidden, embedded, logits = rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), rng.normal(size=(4, 6))
    features = routing.router_features(hidden, embedded, logits, top=2)
    want = np.concatenate([hidden, embedded, np.sort(logits)[:, ::-1][:, :2]], axis=1)
    np.testing.assert_array_equal(features, want)
    kernel, label = rng.normal(size=8), np.array([1, 0, 0, 0])
    p = 1 / (1 + np.exp(-(want @ kernel - 0.3)))
    np.testing.assert_allclose(routing.router(features, kernel, -0.3), p, rtol=1e-12)
    loss = routing.router_loss(want @ kernel - 0.3, label, positive_weight=routing.recall_weight(label, 2.0))
    np.testing.assert_allclose(loss, -np.mean(6 * label * np.log(p) + (1 - label) * np.log(1 - p)), rtol=1e-12)
    assert routing.recall_weight(np.zeros(3)) == 1


def test_the_threshold_for_a_recall_is_the_largest():
    critical, label = np.array([0.9, 0.2, 0.6, 0.4, 0.95]), np.array([1, 1, 1, 1, 0])
    for recall in (0.1, 0.25, 0.5, 0.75, 0.76, 1.0):
        bar = float(routing.threshold_for_recall(critical, label, recall))
        reached = lambda t: (critical[label == 1] >= t).mean()  # noqa: E731
        assert reached(bar) >= recall and reached(bar + 1e-9) < recall


def test_nudged_words_are_those_of_the_released_loop():
    rng = np.random.default_rng(2)
    for _ in range(200):
        words = [" ".join(["ab", "c", "", "abc", "d"][i] for i in rng.integers(0, 5, rng.integers(1, 6)))]
        text = words[0].lstrip(" ")
        table = {i: ([" a", " ab", " x", "b"][rng.integers(4)], rng.random()) for i in range(8)}
        base = lambda prefix, table=table: table[len(prefix.split(" "))]  # noqa: E731
        pieces = text.split(" ")
        first = [table[i][0] for i in range(len(pieces) + 1)]
        top = [table[i][1] for i in range(len(pieces) + 1)]
        taken = routing.nudging_words(pieces, first, top, 0.8)
        assert pieces[:taken] == plain.nudging_words(text, base, 0.8)
    log_p = jnp.log(jnp.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.9, 0.1]]))
    assert routing.base_tokens(log_p, 0.55) == 2 and routing.base_tokens(log_p, 0.0) == 4
    assert routing.base_tokens(log_p, 0.95) == 0
    same = ["a", "b", "b", "b", "b"]
    assert (
        routing.repeated(same) and not routing.repeated(same[:-1]) and not routing.repeated(["b", "b", "a", "b", "b"])
    )


def test_adadec_scores_in_both_forms():
    rng = np.random.default_rng(3)
    first, rollout, length = -rng.random((2, 3)), -rng.random((2, 3, 5)), rng.integers(0, 6, (2, 3))
    length[0] = [5, 2, 3]
    history = np.array([-4.0, 0.0])
    for row in range(2):
        for form, loop in (
            (rollouts.adadec_scores, plain.adadec), (rollouts.released_adadec_scores, plain.adadec_released),
        ):  # fmt: skip
            got = form(history, first, rollout, length, 0.7)[row]
            np.testing.assert_allclose(got, loop(history[row], first[row], rollout[row], length[row], 0.7), rtol=1e-14)
    none = rollouts.adadec_scores(0.0, first, rollout, np.zeros((2, 3), int))
    np.testing.assert_array_equal(none, first)  # Without a roll-out the order is that of greedy decoding.


def test_the_learned_threshold_is_that_of_logistic_regression():
    rng = np.random.default_rng(4)
    H = rng.random(200) * 3
    wrong = (rng.random(200) < 1 / (1 + np.exp(-(2 * H - 3)))).astype(float)
    nll = lambda w: np.mean(np.logaddexp(0, w[0] * H + w[1]) - wrong * (w[0] * H + w[1]))  # noqa: E731
    a, b = optimize.minimize(nll, [0.0, 0.0], tol=1e-14).x
    assert abs(float(rollouts.entropy_threshold(H, wrong)) + b / a) < 1e-5  # The minimiser's own error.


def test_trials_grow_with_the_entropy():
    H = [0.0, 0.01, 0.0482, 0.0483, 0.5, 1.0, 1.4999, 1.5, 9.0]
    want = [int(1 + 39 * min(max((h - 0.01) / 1.49, 0), 1)) for h in H]
    assert rollouts.trials(np.array(H)).tolist() == want and want[0] == 1 and want[-1] == 40
    assert want[2:4] == [1, 2]
    assert rollouts.trials_in_steps(np.array([0.49, 0.5, 3.49, 3.5])).tolist() == [1, 3, 3, 8]
    p = np.array([0.5, 0.5, 0.0])
    assert rollouts.entropy_of(p) == -np.sum(p * np.log(p + 1e-10))


def test_the_best_trial_is_the_least_perplexing():
    log_p = np.log(np.array([[0.5, 0.5, 0.9], [0.6, 0.1, 0.1], [0.5, 0.6, 0.1]]))
    length = np.array([3, 1, 2])
    want = [0.225 ** (-1 / 3), 1 / 0.6, 0.3**-0.5]
    np.testing.assert_allclose(rollouts.perplexity(log_p, length), want, rtol=1e-14)
    assert rollouts.best_trial(log_p, length) == np.argmin(want) == 0
    assert rollouts.best_trial(log_p, length, np.array([False, True, True])) == 1
    assert rollouts.best_trial_truncated(log_p, length) == 1  # Of the first tokens alone 0.6 is the largest.
    stops = np.isin(np.arange(6), [2, 4])
    assert rollouts.trial_length(np.array([[1, 2, 4], [0, 1, 3], [4, 2, 2]]), stops).tolist() == [2, 3, 1]


def test_beam_search_over_a_chain_is_the_search_over_texts():
    rng = np.random.default_rng(5)
    V, eos, K, steps = 5, 0, 3, 4
    chain = np.log(rng.dirichlet(np.ones(V), V))
    texts, score, done = np.zeros((K, 0), int), np.array([0.0, -np.inf, -np.inf]), np.zeros(K, bool)
    for _ in range(steps):
        last = texts[:, -1] if texts.shape[1] else np.full(K, 1)
        beams = search.beam_step(score, chain[last], done, eos, K)
        parent, token = np.asarray(beams.parent), np.asarray(beams.token)
        texts = np.concatenate([texts[parent], token[:, None]], axis=1)
        score, done = np.asarray(beams.score), done[parent] | (token == eos)
    want = plain.beam_search(lambda text: chain[text[-1] if text else 1], K, steps, eos)
    assert [tuple(text) for text in texts] == [text for text, _ in want]
    np.testing.assert_allclose(score, [value for _, value in want], rtol=1e-14)


def test_a_wide_beam_finds_the_likeliest_text():
    rng = np.random.default_rng(6)
    chain = np.log(rng.dirichlet(np.ones(3), 3))
    want = max((chain[1, a] + chain[a, b] + chain[b, c] for a, b, c in itertools.product(range(3), repeat=3)))
    got = plain.beam_search(lambda text: chain[text[-1] if text else 1], 9, 3, eos=-1)
    assert abs(got[0][1] - want) < 1e-14


def test_best_of_n_and_votes():
    score, length = np.array([-4.0, -3.0, -6.0]), np.array([4, 2, 8])
    assert search.best_of(score, length) == 2
    np.testing.assert_allclose(search.length_penalised(score, length, 0.5), score / np.sqrt(length), rtol=1e-14)
    assert search.majority(["7", "8", "8", "7", None, None, None]) == "7" and search.majority([None]) is None


def test_superposed_steps_are_those_of_the_released_code():
    rng = np.random.default_rng(7)
    k, V = 3, 8
    score = np.zeros(k)
    for turn in range(4):
        p = np.asarray(superposed.keep_top(rng.dirichlet(np.ones(V)), 5))
        assert (p > 0).sum() == 5 and abs(p.sum() - 1) < 1e-14
        ngram = rng.dirichlet(np.ones(V), k) * (rng.random((k, V)) < 0.5)
        ngram[1] = 0  # Nothing is known behind this text.
        log_p, best = plain.superposed_step(p, ngram, score, 0.5, 200, turn == 0, eos=2)
        got = superposed.mixed(p, ngram, 0.5)
        np.testing.assert_allclose(got, log_p, rtol=1e-12)
        step = superposed.step(score, got, first=turn == 0, eos=2)
        assert [(int(a), int(b)) for a, b in zip(step.parent, step.token, strict=True)] == [b[:2] for b in best]
        np.testing.assert_allclose(step.log_p, [b[2] for b in best], rtol=1e-12)
        score = np.asarray(step.log_p)
        weight = np.zeros(V)
        for token, share in zip(step.token, plain.softmax(score), strict=True):
            weight[int(token)] += share
        np.testing.assert_allclose(superposed.superposition(score, step.token, V), weight, rtol=1e-12)
    np.testing.assert_allclose(superposed.perplexity(score, 4), np.exp(-score / 4), rtol=1e-14)


def test_one_superposed_text_without_ngrams_is_greedy():
    p = np.random.default_rng(8).dirichlet(np.ones(6))
    got = superposed.step(jnp.zeros(1), superposed.mixed(p, np.zeros((1, 6)), 0.0), first=False)
    assert got.token[0] == np.argmax(p) and got.parent[0] == 0
    assert superposed.superposition(got.log_p, got.token, 6).tolist() == np.eye(6)[np.argmax(p)].tolist()


def test_the_law_of_ngrams_passes_over_what_it_lacks():
    tables = [{(1,): {2: 3, 0: 1}}, {(0, 1): {2: 1}}, {(5, 0, 1): {1: 1}}]
    got = superposed.ngram_law(tables, [0.2, 0.3, 0.5], [0, 1], 4)
    np.testing.assert_allclose(got, [0.05, 0, 0.15 + 0.3, 0], rtol=1e-14)
    assert not superposed.ngram_law(tables, [0.2, 0.3, 0.5], [3], 4).any()


def test_swi_reasoning_traces():
    rng = np.random.default_rng(9)
    changed = set()
    for _ in range(100):
        steps, window = 30, int(rng.integers(0, 5))
        H, ends, symbols = rng.random(steps), rng.random(steps) < 0.02, rng.random(steps) < 0.1
        want = plain.swi(H, ends, symbols, window)
        state = thinking.begin(H[:1], ends[:1])
        reads, change = thinking.reads(state, symbols[:1]), ""
        for step in range(steps):
            if step:
                state, switched = thinking.think(state, H[step : step + 1], ends[step], symbols[step], window)
                change = "explicit" if switched.to_explicit[0] else "soft" if switched.to_soft[0] else ""
                reads = switched.reads_soft
            mode = thinking.SOFT if state.soft[0] else thinking.EXPLICIT
            assert (mode, bool(reads[0]), change, int(state.switches[0])) == want[step]
            changed.add(change)
    assert changed == {"", "soft", "explicit"}


def test_what_swi_reasoning_reads_and_injects():
    expected, mark = np.array([1.0, 2.0]), np.array([5.0, -2.0])
    np.testing.assert_allclose(thinking.blended(expected, mark, 0.7, 10, 40), 0.775 * expected + 0.225 * mark)
    assert (thinking.blended(expected, mark, 1.0, 10, 40) == expected).all()
    np.testing.assert_allclose(thinking.first_read(expected, mark), 0.9 * expected + 0.1 * mark)
    assert [thinking.injections(n, 2) for n in range(6)] == ["", "", "converge", "converge", "converge", "answer"]
    left = jnp.array([-1, -1, 3, 1])
    assert thinking.answer_left(left, jnp.array([False, True, False, False]), 32).tolist() == [-1, 31, 2, 0]
    p = jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(thinking.entropy(p), [np.log(2), 0], atol=1e-15)
