"""Rules of parallel decoding: exact check 15, and the confidences by hand."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.canvas import reveal
from tests.models import tiny_laws

CONF = np.array([0.80, 0.999, 0.55, 0.93, 0.97, 0.90])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_factor_and_threshold_counts(dtype, x64):
    """Check 15, in both precisions: nothing hangs on the rounding of 5 (1 - .9) = .5."""
    conf = jnp.asarray(CONF, dtype)
    assert [int(reveal.factor_count(conf, f)) for f in (0.1, 0.25, 0.5, 1, 2)] == [2, 2, 4, 4, 5]
    assert int(reveal.threshold_count(conf, 0.9)) == 4
    assert int(reveal.threshold_count(conf, 0.9995)) == 1 and int(reveal.factor_count(conf, 1e-9)) == 1
    nothing = jnp.full((6,), -jnp.inf)
    assert int(reveal.threshold_count(nothing, 0.9)) == 0 and int(reveal.factor_count(nothing, 1.0)) == 0


def test_product_and_joint_argmax_part_just_past_a_third():
    """Check 15, the joint. Two tokens, both marginals 1-e at 0: (n+1) e <= 1 keeps the argmaxes equal, e > 1/3 need
    not."""

    def joint(e):  # P(00) = 1-2e, P(01) = P(10) = e: the marginals of 0 are 1-e each
        return np.array([[1 - 2 * e, e], [e, 0.0]])

    for e, agree in ((0.33, True), (0.34, False)):
        law = joint(e)
        marginals = [law.sum(1), law.sum(0)]
        product = tuple(int(m.argmax()) for m in marginals)
        assert (product == np.unravel_index(law.argmax(), law.shape)) == agree
        conf = jnp.array([m.max() for m in marginals])
        assert int(reveal.factor_count(conf, 1.0)) == (2 if agree else 1)


def test_bound_of_the_factor_rule_on_random_joints():
    """TV of product and joint is below (3n-1) e / 2 when all n marginals exceed 1-e and (n+1) e <= 1."""
    rng, seen = np.random.default_rng(0), 0
    for _ in range(2000):
        n = int(rng.integers(2, 4))
        law = rng.dirichlet(np.full(2**n, 0.2))
        law[0] += rng.uniform(0, 20)
        law = (law / law.sum()).reshape((2,) * n)
        marginals = [law.sum(tuple(j for j in range(n) if j != i)) for i in range(n)]
        e = max(1 - m.max() for m in marginals)
        if (n + 1) * e > 1:
            continue
        seen += 1
        product = np.ones(())
        for m in marginals:
            product = np.multiply.outer(product, m)
        assert product.argmax() == law.argmax()
        assert tiny_laws.tv(product, law) <= (3 * n - 1) * e / 2 + 1e-15
    assert seen > 500


def test_confidences_by_hand():
    logits = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    p = np.exp(logits / 0.5) / np.exp(logits / 0.5).sum(-1, keepdims=True)
    ranked = -np.sort(-p, -1)
    expected = {
        "max_prob": ranked[..., 0],
        "margin": ranked[..., 0] - ranked[..., 1],
        "entropy": (p * np.log(p)).sum(-1),
        "left_to_right": np.tile([0, -1, -2], (2, 1)),
    }
    for kind, value in expected.items():
        np.testing.assert_allclose(reveal.confidence(kind, jnp.asarray(logits), 0.5), value, rtol=1e-5)
    drawn = np.array([[0, 1, 2], [3, 3, 0]])
    plain = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    got = reveal.confidence("candidate", jnp.asarray(logits), 0.5, candidates=jnp.asarray(drawn))
    np.testing.assert_allclose(got, np.take_along_axis(plain, drawn[..., None], -1)[..., 0], rtol=1e-5)
    got = reveal.confidence("drawn", jnp.asarray(logits), 0.5, candidates=jnp.asarray(drawn))
    np.testing.assert_allclose(got, np.take_along_axis(p, drawn[..., None], -1)[..., 0], rtol=1e-5)
    likeliest = jnp.argmax(jnp.asarray(logits), -1)  # What is drawn at temperature 0.
    got = reveal.confidence("drawn", jnp.asarray(logits), 0.0, candidates=likeliest)
    np.testing.assert_allclose(got, plain.max(-1), rtol=1e-5)
    with pytest.raises(ValueError, match="'top' is unknown"):
        reveal.confidence("top", jnp.asarray(logits))


def test_choose_takes_the_surest_open_positions():
    conf = jnp.array([[0.5, 0.9, 0.9, 0.1]])
    for allowed, count in itertools.product(([1, 1, 1, 1], [1, 0, 1, 1]), range(5)):
        allowed = np.array(allowed, bool)
        order = [i for i in (1, 2, 0, 3) if allowed[i]][:count]
        got = np.asarray(reveal.choose(conf, jnp.asarray(allowed[None]), jnp.array([count])))[0]
        assert set(np.flatnonzero(got)) == set(order)
    np.testing.assert_array_equal(reveal.block_of(7, 2, 3), [-2, -1, -1, 0, 0, 1, 1])
