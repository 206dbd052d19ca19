"""GeDi, budget guidance, semantic control and constraints: exact where they can be, and the released forms by value."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from models.decoding.control import budget, gedi, semantic
from tests.plain import control as plain

ROUNDING = 1e-12  # Sums of some ten numbers of size below 100, float64.


@pytest.fixture(autouse=True)
def _float64(x64):
    """All values here are compared in float64."""


def sources(V=4, C=2):
    """Markov sources: laws `[C, V, V]`, starts `[C, V]`, weights `[C]`."""
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(V), (C, V)), rng.dirichlet(np.ones(V), C), np.array([0.3, 0.7])


def test_gedi_on_a_mixture_of_two_markov_sources_is_bayes():
    """p is the mixture: the guided next token is then exactly the class's own, for every text of five tokens."""
    chains, starts, prior = sources()
    for text in itertools.product(range(4), repeat=4):
        likelihood = np.array([starts[c, text[0]] * np.prod([chains[c][a, b] for a, b in itertools.pairwise(text)])
                               for c in range(2)])  # fmt: skip
        following = chains[:, text[-1]]
        p = (prior * likelihood) @ following / (prior @ likelihood)
        guided = gedi.exact(jnp.log(p), jnp.log(likelihood), jnp.log(following), jnp.log(prior), wanted=1)
        np.testing.assert_allclose(plain.softmax(guided), following[1], rtol=ROUNDING)


def test_gedi_without_weight_is_the_model_bit_for_bit():
    rng = np.random.default_rng(1)
    log_p, history, each = rng.normal(size=(3, 7)), rng.normal(size=(3, 2)), rng.normal(size=(3, 2, 7))
    weight = jnp.array([0.0, 2.0, 0.0])
    got = gedi.exact(log_p, history, each, np.zeros(2), 0, weight)
    assert (np.asarray(got) == log_p).all(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize("setting", [
    {"weight": 30.0, "filter_p": 0.8, "target_p": 0.8},
    {"weight": 5.0, "filter_p": 0.5, "target_p": 0.6, "scale": 2.5, "bias": (0.3, -0.2)},
    {"weight": 30.0, "filter_p": 0.8, "target_p": gedi.released_target(0.8, 2.0), "class_bias": 2.0},
])  # fmt: skip
def test_gedi_as_released(setting):
    rng = np.random.default_rng(2)
    for steps in (0, 3, 11):
        logits, each, history = rng.normal(size=12) * 2, rng.normal(size=(2, 12)), -rng.random(2) * steps
        scores, desired = plain.gedi_released(logits, history, each, steps, **setting)
        trained = {name: jnp.asarray(setting[name]) for name in ("scale", "bias", "class_bias") if name in setting}
        got = gedi.released_log_desired(history, each, steps, **trained)
        np.testing.assert_allclose(got, desired, atol=ROUNDING)
        rest = {name: setting[name] for name in ("weight", "filter_p", "target_p")}
        released = gedi.released(logits, got, **rest)
        np.testing.assert_allclose(released, scores, atol=1e-11)
        assert (np.asarray(released) < -5000).any()
        for scale in (10.0, 0.0):
            previous = np.array([np.argmax(scores), 3, 3, int(np.argsort(scores)[-2]), 5])
            wanted = plain.gedi_repetition(scores, previous, 1.2, scale)
            np.testing.assert_allclose(gedi.released_repetition(released, previous, 1.2, scale), wanted, rtol=1e-11)


def test_the_target_of_gedi_moves_with_the_bias_of_its_class():
    assert abs(gedi.released_target(0.8, 2.0) - 1 / (1 + 0.25 * np.exp(-2))) < ROUNDING
    assert gedi.released_target(1.0, 2.0) == 1.0 and gedi.released_target(0.0, 2.0) == 0.0


def test_the_filter_at_the_defaults_of_generate_takes_off_all_but_rounding():
    rng = np.random.default_rng(3)
    scores, desired = rng.normal(size=20), np.log(rng.random(20) * 0.9)
    assert (np.asarray(gedi.released_filter(scores, desired, 1.0, 1.0)) < -5000).sum() >= 19


def test_budget_factors_are_the_gamma_law():
    rng = np.random.default_rng(4)
    alpha, rate = 1 + rng.random((3, 5)) * 60, 8 + rng.random((3, 5)) * 20
    for remaining in (1.0, 50.0, 2000.0):
        want = stats.gamma.cdf(np.log(remaining + 1), alpha, scale=1 / rate)
        np.testing.assert_allclose(budget.factor(alpha, rate, np.full(3, remaining)), want, rtol=1e-10, atol=1e-14)
    lengths = np.array([1.0, 7.0, 300.0])
    want = -stats.gamma.logpdf(np.log(lengths + 1), alpha[:, 0], scale=1 / rate[:, 0])
    np.testing.assert_allclose(budget.negative_log_likelihood(alpha[:, 0], rate[:, 0], lengths), want, rtol=1e-10)


def test_budget_guidance_as_released():
    rng = np.random.default_rng(5)
    for case in range(6):
        logits = rng.normal(size=9) * 2
        alpha = np.concatenate([1 + rng.random(7) * 60, [0.5, 5.0]])
        rate = np.concatenate([9.5 + rng.random(7) * 3, [20.0, 20.0]])  # The last two are not trusted.
        if case == 5:
            rate = rate * 0 + 2
        for remaining in (1, 30, 4000):
            want = plain.budget_released(logits, alpha, rate, remaining)
            got = budget.released(logits, alpha, rate, jnp.asarray(float(remaining)))
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-15)
    assert budget.released_remaining(jnp.array([5, 2, 1])).tolist() == [4, 1, 1]


def test_budget_guidance_with_the_true_chance_is_the_conditional_chain():
    """All texts of an absorbing chain by enumeration: each step of the guided chain is P(next | stops in time)."""
    rng = np.random.default_rng(6)
    chain, stop, most = rng.dirichlet(np.ones(4), 4), np.array([False, False, False, True]), 5
    chain[3] = np.eye(4)[3]
    within = budget.stops_within(jnp.asarray(chain), stop, most)
    for left in range(1, most + 1):
        for state in range(3):
            texts = [(text, p) for text, p, done in plain.texts_of(chain, state, stop, left) if done]
            total = sum(p for _, p in texts)
            assert abs(total - within[left, state]) < ROUNDING
            first = np.array([sum(p for text, p in texts if text[0] == v) for v in range(4)]) / total
            got = budget.exact(jnp.log(chain[state]), within[left - 1])
            np.testing.assert_allclose(np.exp(got), first, rtol=ROUNDING, atol=1e-15)


def test_a_budget_without_end_is_the_model():
    log_p = jnp.log(jnp.array([0.5, 0.25, 0.25]))
    assert (budget.guided(log_p, jnp.ones(3)) == jax.nn.log_softmax(log_p)).all()


def test_semantic_control_is_exact_for_a_verifier_that_is_linear():
    """A verifier linear in the embeddings: the tangent is the verifier, so E[phi | y] is exact by enumeration."""
    rng = np.random.default_rng(7)
    T, V, D, place = 3, 4, 2, 1
    table, slope = rng.random((V, D)), rng.random((T, D)) * 0.1
    law = rng.dirichlet(np.ones(V), T)
    verifier = lambda x: 0.2 + jnp.sum(x * slope)  # noqa: E731
    sample = np.array([2, 0, 3])
    want = np.zeros(V)
    for y in range(V):
        for last in range(V):
            text = table[[2, y, last]]
            want[y] += law[2, last] * (0.2 + (text * slope).sum())
    got = semantic.linearised(verifier, jnp.log(law), sample, place, table)
    np.testing.assert_allclose(got, want, rtol=ROUNDING)
    guided = np.exp(semantic.exact(jnp.log(law[1]), got))
    np.testing.assert_allclose(guided, law[1] * want / (law[1] * want).sum(), rtol=ROUNDING)


def test_semantic_control_of_a_curved_verifier_is_its_tangent():
    rng = np.random.default_rng(8)
    table, law = rng.normal(size=(5, 3)), rng.dirichlet(np.ones(5), 4)
    w = rng.normal(size=(4, 3))
    sample = np.array([1, 2, 3, 4])
    verifier = lambda x: jax.nn.sigmoid(jnp.sum(x * w))  # noqa: E731
    got = semantic.linearised(verifier, jnp.log(law), sample, 2, table)
    mean = np.stack([table[1], table[2], law[2] @ table, law[3] @ table])
    value = 1 / (1 + np.exp(-(mean * w).sum()))
    slope = value * (1 - value) * w
    want = np.clip(value + (table - mean[2]) @ slope[2], 1e-6, 1)
    np.testing.assert_allclose(got, want, rtol=ROUNDING)
