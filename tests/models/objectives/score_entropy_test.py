"""Score entropy: exact check 11, the equivalent forms, and the reverse steps, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.objectives import masked_diffusion as md
from models.objectives import schedules
from models.objectives import score_entropy as se
from tests.models import tiny_laws

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
X = RNG.integers(0, 5, (4, 6))
Z = np.where(RNG.random((4, 6)) < 0.6, 5, X)
LOGITS = RNG.normal(size=(4, 6, 6))


@pytest.mark.parametrize("name", ["linear", "loglinear", "cosine_md4", "cosine_mdlm", "poly", "geometric"])
@pytest.mark.parametrize("columns", [5, 6])
def test_absorbing_equals_subs_per_token(name, columns):
    """Check 11, first half: sigma' times score entropy at s = k p is the SUBS loss, on six schedules."""
    schedule, t = schedules.get(name), jnp.asarray([0.1, 0.4, 0.7, 0.95])
    logits, sigma = LOGITS[..., :columns], schedule.sigma(t)
    log_p = jax.nn.log_softmax(md.mask_logits(logits, 5), -1)
    log_score = se.log_score_from_probs(log_p, sigma, Z, "absorb")
    got = schedule.dsigma(t)[:, None] * se.absorbing(log_score, sigma, Z, X)
    np.testing.assert_allclose(got, md.token_loss(logits, X, Z, t, schedule, 5), rtol=1e-10, atol=1e-12)


def test_absorbing_by_hand_and_its_least_value():
    sigma, log_score = np.array([0.3, 1.0, 2.0, 5.0]), RNG.normal(size=(4, 6, 6))
    got = np.asarray(se.absorbing(log_score, sigma, Z, X))
    for b, l in np.ndindex(4, 6):
        k = 1 / np.expm1(sigma[b])
        hand = np.exp(log_score[b, l, :5]).sum() - k * log_score[b, l, X[b, l]] + k * (np.log(k) - 1)
        np.testing.assert_allclose(got[b, l], hand if Z[b, l] == 5 else 0.0, rtol=1e-12)
    sharp = np.full((1, 1, 5), -np.inf)
    sharp[0, 0, 2] = -np.log(np.expm1(0.7))  # s = k at x, nothing elsewhere: no loss
    np.testing.assert_allclose(se.absorbing(sharp, 0.7, [[5]], [[2]]), 0, atol=1e-14)


def test_uniform_by_hand_and_from_logits():
    sigma, z = np.array([0.05, 0.5, 2.0, 6.0]), RNG.integers(0, 5, (4, 6))
    z[:, 0] = X[:, 0]
    log_score = RNG.normal(size=(4, 6, 5))
    got, alpha = np.asarray(se.uniform(log_score, sigma, z, X)), np.exp(-sigma)
    for b, l in np.ndindex(4, 6):
        q = alpha[b] * np.eye(5)[X[b, l]] + (1 - alpha[b]) / 5
        r, s = q / q[z[b, l]], np.exp(log_score[b, l])
        terms = s - r * np.log(s) + r * (np.log(r) - 1)
        np.testing.assert_allclose(got[b, l], np.delete(terms, z[b, l]).sum() / 5, rtol=1e-12)
    logits = LOGITS[..., :5]
    implied = se.log_score_from_probs(jax.nn.log_softmax(logits, -1), sigma, z, "uniform")
    np.testing.assert_allclose(
        se.uniform_from_logits(logits, alpha, z, X), se.uniform(implied, sigma, z, X), rtol=1e-10, atol=1e-12
    )


def noised_joint(law, alpha):
    """Law of z_t when each token is resampled uniformly with probability 1 - alpha."""
    size = law.shape[0]
    kernel = alpha * np.eye(size) + (1 - alpha) / size
    for axis in range(law.ndim):
        law = np.moveaxis(np.tensordot(kernel, law, (0, axis)), 0, axis)
    return law


def true_log_score(law, alpha):
    """log p_t(y at l) / p_t(z) for all z: [V ** L, L, V]."""
    noised, size = noised_joint(law, alpha), law.shape[0]
    out = []
    for z in tiny_laws.states(size, law.ndim):
        rows = [[noised[tuple(np.where(np.arange(law.ndim) == l, y, z))] for y in range(size)] for l in range(law.ndim)]
        out.append(np.log(rows) - np.log(noised[tuple(z)]))
    return np.array(out)


@pytest.mark.parametrize("case", ["C", "D"])
def test_uniform_with_true_scores_measures_entropy(case):
    """Check 11, second half: E[integral of the loss + KL(q_T(.|x) || uniform)] = H(P) + KL(p_T || uniform)."""
    law, top = tiny_laws.joint(case), 4.0
    size, length = law.shape[0], law.ndim
    strings = tiny_laws.states(size, length)
    x = np.argwhere(law > 0)
    nodes, share = np.polynomial.legendre.leggauss(60)
    total, loss_of = 0.0, jax.jit(se.uniform)
    for u, du in zip((nodes + 1) / 2, share / 2, strict=True):
        sigma, dsigma = top * u**4, 4 * top * u**3 * du  # the integrand is singular like log sigma at 0
        alpha = np.exp(-sigma)
        scores = np.tile(true_log_score(law, alpha), (len(x), 1, 1))
        clean, noisy = np.repeat(x, len(strings), 0), np.tile(strings, (len(x), 1))
        loss = np.asarray(loss_of(scores, sigma, noisy, clean)).sum(-1)
        q = np.where(clean == noisy, alpha + (1 - alpha) / size, (1 - alpha) / size).prod(-1)
        total += dsigma * (np.repeat(law[law > 0], len(strings)) * q * loss).sum()
    alpha = np.exp(-top)
    q = np.full(size, (1 - alpha) / size) + alpha * np.eye(size)[0]
    total += length * (q * np.log(q * size)).sum()
    last = noised_joint(law, alpha).ravel()
    expected = tiny_laws.entropy(law) + (last * np.log(last * len(last))).sum()
    # 60 Gauss nodes after sigma ~ u^4 leave about 1e-8 of the u^3 log u singularity at the end.
    np.testing.assert_allclose(total, expected, atol=1e-6)


@pytest.mark.parametrize("columns", [5, 6])
def test_absorbing_analytic_step_is_the_ancestral_step(columns):
    """With s = k p the step is keep m_s/m_t, else p: the reverse law of section 1, whatever the schedule."""
    logits, sigma_t, sigma_s = LOGITS[..., :columns], 1.7, 0.6
    log_p = jax.nn.log_softmax(md.mask_logits(logits, 5), -1)
    log_score = se.log_score_from_probs(log_p, sigma_t, Z, "absorb")
    got = np.asarray(se.analytic_step(log_score, Z, sigma_t - sigma_s, "absorb", mask_id=5))
    assert got.shape == (4, 6, 6)
    stay = (1 - np.exp(-sigma_s)) / (1 - np.exp(-sigma_t))
    p = np.exp(np.asarray(log_p))[..., :5]
    expected = np.concatenate([(1 - stay) * p, np.full((4, 6, 1), stay)], -1)
    expected = np.where((Z == 5)[..., None], expected, np.eye(6)[np.where(Z == 5, 0, Z)])
    np.testing.assert_allclose(got, expected, atol=1e-12)
    if columns == 6:  # the mask last is the default
        np.testing.assert_allclose(se.analytic_step(log_score, Z, 1.1), expected, atol=1e-12)


def test_uniform_analytic_step_is_bayes_on_one_token():
    """For one token, true scores make the step the exact posterior p(z_s | z_t)."""
    prior, size = np.array([0.5, 0.2, 0.2, 0.1]), 4
    mix = lambda sigma: np.exp(-sigma) * np.eye(size) + (1 - np.exp(-sigma)) / size  # noqa: E731
    sigma_t, sigma_s = 1.3, 0.4
    p_t, p_s = prior @ mix(sigma_t), prior @ mix(sigma_s)
    z = np.arange(size)[:, None]
    score = np.log(p_t)[None, None] - np.log(p_t)[:, None, None]
    got = np.asarray(se.analytic_step(score, z, sigma_t - sigma_s, "uniform"))[:, 0]
    expected = (p_s[:, None] * mix(sigma_t - sigma_s) / p_t[None]).T
    np.testing.assert_allclose(got, expected, atol=1e-12)
    # Euler agrees with it to second order in the step.
    gaps = [
        np.abs(
            np.asarray(se.euler_step(score, z, d, "uniform")) - np.asarray(se.analytic_step(score, z, d, "uniform"))
        ).max()
        for d in (1e-2, 5e-3)
    ]
    assert 3.8 < gaps[0] / gaps[1] < 4.2


def test_euler_absorbing_and_refusals():
    score = np.log(np.array([[[0.3, 0.5, 1.0]], [[9.0, 9.0, 9.0]]]))
    got = np.asarray(se.euler_step(score, [[2], [1]], 0.1))
    np.testing.assert_allclose(got, [[[0.03, 0.05, 0.92]], [[0, 1, 0]]], atol=1e-12)
    with pytest.raises(ValueError, match="'ring' is unknown"):
        se.euler_step(score, [[2], [1]], 0.1, graph="ring")


def test_head_and_gradients():
    got = np.asarray(se.log_score_from_logits(LOGITS, 0.4, Z))
    expected = LOGITS - np.log(np.expm1(0.4)) - np.log(5)
    np.testing.assert_allclose(got, np.where(np.arange(6) == Z[..., None], 0, expected), rtol=1e-12)
    for loss, z in ((se.absorbing, Z), (se.uniform, np.minimum(Z, 4))):
        grad = jax.grad(lambda g: loss(g, 0.4, z, X).sum())(jnp.asarray(got))  # noqa: B023
        assert np.isfinite(grad).all()
