"""Masked diffusion: exact checks 1, 2, 4 and 10, and the SUBS rules, against enumeration in float64."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.objectives import masked_diffusion as md
from models.objectives import schedules
from tests.models import tiny_laws

pytestmark = pytest.mark.usefixtures("x64")
NAMES = ["linear", "cosine_md4", "poly", "loglinear", "geometric"]


def pieces(table, x, mask):
    """Sum of -log p over the masked positions of x, by hand."""
    p = tiny_laws.probabilities(table)
    z = np.where(mask, table.shape[-1], x)
    return sum(-np.log(tiny_laws.at(p, z)[l, x[l]]) for l in range(len(x)) if mask[l])


def by_quadrature(table, x, schedule, limits=(0.0, 1.0), nodes=400):
    """integral of w(t) E[sum ce] dt over `limits`, Gauss-Legendre after t = u^2."""
    u, share = np.polynomial.legendre.leggauss(nodes)
    low, high = np.sqrt(limits[0]), np.sqrt(limits[1])
    u, share = low + (high - low) * (u + 1) / 2, share * (high - low) / 2
    t = jnp.asarray(u**2)
    m, w = np.asarray(schedule.mask(t)), np.asarray(schedule.weight(t)) * 2 * u * share
    total = 0.0
    for mask in itertools.product([0, 1], repeat=len(x)):
        if k := sum(mask):
            total += (w * m**k * (1 - m) ** (len(x) - k)).sum() * pieces(table, x, np.array(mask, bool))
    return total


@pytest.mark.parametrize("case", tiny_laws.CASES)
def test_oracle_nelbo_is_the_negative_log_likelihood(case):
    """Check 1."""
    law = tiny_laws.joint(case)
    denoise = tiny_laws.denoiser(tiny_laws.oracle_table(law))
    x = np.argwhere(law > 0)
    got = md.nelbo_exact(denoise, x, law.shape[0], law.shape[0])
    np.testing.assert_allclose(got, -np.log(law[law > 0]), atol=1e-10, rtol=0)
    for name in ("linear", "cosine_md4", "poly"):  # the schedules that reach both ends
        same = md.nelbo_exact(denoise, x, law.shape[0], schedule=name)
        np.testing.assert_allclose(same, got, atol=1e-10)


def test_oracle_nelbo_of_every_schedule_from_its_token_losses():
    """Check 1 through `token_loss` itself: quadrature over t and every masked set."""
    law = tiny_laws.joint("C")
    table = tiny_laws.oracle_table(law)
    denoise, x = tiny_laws.denoiser(table), np.array([2, 0, 1])
    sets = np.array(list(itertools.product([False, True], repeat=3)))
    u, share = np.polynomial.legendre.leggauss(60)
    t = jnp.asarray(((u + 1) / 2) ** 2)
    for name in ("linear", "cosine_md4", "poly"):
        schedule, total = schedules.get(name), 0.0
        for mask in sets:
            z = np.where(mask, 4, x)[None].repeat(60, 0)
            loss = md.token_loss(denoise(z, t), x[None].repeat(60, 0), z, t, schedule, 4).sum(-1)
            chance = schedule.mask(t) ** mask.sum() * schedule.alpha(t) ** (~mask).sum()
            total += float((share * (u + 1) / 2 * chance * loss).sum())
        np.testing.assert_allclose(total, -np.log(law[tuple(x)]), atol=1e-10)


@pytest.mark.parametrize("case", tiny_laws.CASES)
def test_steps_close_the_gap_like_one_over_steps(case):
    """Check 2."""
    law = tiny_laws.joint(case)
    denoise, x = tiny_laws.denoiser(tiny_laws.oracle_table(law)), np.argwhere(law > 0)
    loss = lambda n: float((law[law > 0] * md.nelbo_exact(denoise, x, law.shape[0], steps=n)).sum())  # noqa: E731
    axes = range(law.ndim)
    marginals = sum(tiny_laws.entropy(law.sum(tuple(j for j in axes if j != i))) for i in axes)
    np.testing.assert_allclose(loss(1), marginals, atol=1e-10)
    gaps = [loss(steps) - tiny_laws.entropy(law) for steps in (64, 128, 256)]
    assert 0 < gaps[2] < gaps[1] < gaps[0]
    # gap = a/T + b/T^2: the ratio of successive gaps tends to 2.
    assert abs(gaps[1] / gaps[2] - 2) < abs(gaps[0] / gaps[1] - 2) + 1e-6 < 0.05


def test_step_losses_are_the_expectation_of_token_loss():
    """The T-step bound through `token_loss(steps=T)` for every schedule, also where m(0) > 0."""
    table, x, steps = tiny_laws.tab_table(3, 4), np.array([0, 2, 1, 1]), 5
    denoise = tiny_laws.denoiser(table)
    sets = np.array(list(itertools.product([False, True], repeat=4)))
    z = np.where(sets, 3, x)
    for name in NAMES:
        schedule, total = schedules.get(name), 0.0
        for i in range(1, steps + 1):
            t = i / steps
            loss = md.token_loss(denoise(z, t), np.tile(x, (16, 1)), z, t, schedule, 3, steps=steps).sum(-1)
            m = float(schedule.mask(t))
            total += float((m ** sets.sum(1) * (1 - m) ** (~sets).sum(1) * loss).sum()) / steps
        np.testing.assert_allclose(total, md.nelbo_exact(denoise, x, 3, schedule=name, steps=steps), atol=1e-10)


def test_unclipped_schedules_agree_and_clipped_ones_differ_by_their_constants():
    """Check 4: MDLM draws t in [e, 1] under m = (1-e) t, MD4 squeezes alpha, LLaDA draws m in [e, 1]."""
    table, x, eps = tiny_laws.tab_table(3, 4, seed=3), np.array([1, 0, 2, 2]), 1e-3
    denoise = tiny_laws.denoiser(table)
    full = float(md.nelbo_exact(denoise, x, 3))
    np.testing.assert_allclose(full, tiny_laws.random_order_nll(table)[tuple(x)], atol=1e-10)
    for name in ("linear", "cosine_md4", "poly"):
        np.testing.assert_allclose(by_quadrature(table, x, schedules.get(name)), full, atol=1e-10)
    for name, clip, limits in (
        ("loglinear", 0.0, (eps, 1.0)),
        ("linear", 1e-4, (0.0, 1.0)),
        ("cosine_md4", 1e-4, (0.0, 1.0)),
        ("linear", 0.0, (eps, 1.0)),
    ):
        schedule = schedules.get(name, clip=clip)
        got = md.nelbo_exact(denoise, x, 3, schedule=schedule, limits=limits)
        np.testing.assert_allclose(got, by_quadrature(table, x, schedule, limits), atol=1e-10)
        # The part left out is the integral over the mask rates below and above the range, an exact polynomial.
        missing = 0.0
        ends = np.asarray(schedule.mask(jnp.asarray(limits)))
        for low, high in ((0.0, ends[0]), (ends[1], 1.0)):
            for mask in itertools.product([0, 1], repeat=4):
                if k := sum(mask):
                    u, share = np.polynomial.legendre.leggauss(8)
                    m = low + (high - low) * (u + 1) / 2
                    chance = (share * (high - low) / 2 * m ** (k - 1) * (1 - m) ** (4 - k)).sum()
                    missing += chance * pieces(table, x, np.array(mask, bool))
        np.testing.assert_allclose(got + missing, full, atol=1e-10)
        assert missing > 1e-4
    constant = 4 * 1e-4 * math.log(3)
    np.testing.assert_allclose(md.boundary(schedules.get("linear", clip=1e-4), 4, 3), (constant, constant), rtol=1e-10)


def test_set_weights():
    """Check 10, the weights."""
    np.testing.assert_allclose(md.set_weights(4), [0, 1 / 4, 1 / 12, 1 / 12, 1 / 4], atol=1e-15)
    for length in (1, 5, 9):  # all sets containing one given token of given size sum to 1 / length
        c = md.set_weights(length)
        each = [c[k] * math.comb(length - 1, k - 1) for k in range(1, length + 1)]
        np.testing.assert_allclose(each, np.full(length, 1 / length), rtol=1e-12)


def test_estimators_share_a_mean_and_fixed_counts_vary_less():
    """Check 10: exact mean and variance of both estimators, and the draws of `nelbo` against them."""
    table, x, low = tiny_laws.tab_table(3, 4, seed=1), np.array([2, 1, 0, 1]), 1e-3
    denoise = tiny_laws.denoiser(table)
    losses = {m: pieces(table, x, np.array(m, bool)) for m in itertools.product([0, 1], repeat=4)}
    fixed = [
        sum((4 / sum(m) * v) ** p / (4 * math.comb(4, sum(m))) for m, v in losses.items() if sum(m)) for p in (1, 2)
    ]
    exact = float(md.nelbo_exact(denoise, x, 3))
    np.testing.assert_allclose(fixed[0], exact, atol=1e-10)
    u, share = np.polynomial.legendre.leggauss(200)
    t = np.exp(np.log(low) * (1 - u) / 2)  # log-spaced nodes for the 1/t and 1/t^2 weights
    dt = share * t * -np.log(low) / 2
    chance = lambda m, p: (dt / t**p * t ** sum(m) * (1 - t) ** (4 - sum(m))).sum() / (1 - low)  # noqa: E731
    bernoulli = [sum(chance(m, p) * v**p for m, v in losses.items() if sum(m)) for p in (1, 2)]
    variance = {"fixed_count": fixed[1] - fixed[0] ** 2, "bernoulli": bernoulli[1] - bernoulli[0] ** 2}
    assert variance["bernoulli"] > 5 * variance["fixed_count"]
    clipped = float(md.nelbo_exact(denoise, x, 3, schedule="linear", limits=(low, 1.0)))
    np.testing.assert_allclose(bernoulli[0], clipped / (1 - low), atol=1e-10)
    samples = 20000
    for how, mean in (("fixed_count", exact), ("bernoulli", bernoulli[0])):
        options = {} if how == "fixed_count" else {"limits": (low, 1.0)}
        got, error = md.nelbo(denoise, x, jax.random.key(5), samples, 3, how=how, **options)
        expected = math.sqrt(variance[how] / samples)
        assert abs(float(got) - mean) < 4.5 * expected
        if how == "fixed_count":  # the squares of the other are too heavy-tailed for 20000 draws to estimate
            assert 0.9 < float(error) / expected < 1.1


def test_log_probs_are_subs():
    logits = np.random.default_rng(0).normal(size=(2, 4, 6))
    z = np.array([[5, 1, 5, 0], [3, 5, 5, 5]])
    got = np.asarray(md.log_probs(logits, z, 5))
    assert got.dtype == np.float64
    expected = logits - np.log(np.exp(logits[..., :5]).sum(-1, keepdims=True))
    expected[..., 5] = -np.inf
    for b, l in np.argwhere(z != 5):
        expected[b, l] = np.where(np.arange(6) == z[b, l], 0.0, -np.inf)
    np.testing.assert_allclose(got, expected, atol=1e-12)
    narrow = np.asarray(md.log_probs(logits[..., :5], z, 5))  # no mask column: the same law
    np.testing.assert_allclose(narrow, expected[..., :5], atol=1e-12)


def test_gradients_are_finite_and_only_at_masked_rows():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 5))).at[0, 1].set(-jnp.inf)
    x, z = np.array([[0, 1, 2]]), np.array([[4, 1, 4]])
    grad = jax.grad(lambda g: md.token_loss(g, x, z, jnp.array([0.5]), "linear", 4).sum())(logits)
    assert np.isfinite(grad).all() and not np.asarray(grad[0, 1]).any() and np.asarray(grad[0, [0, 2], :4]).all()
    assert not np.asarray(grad[..., 4]).any()


def test_low_precision_logits_are_widened():
    logits = jnp.zeros((1, 2, 4), jnp.bfloat16)
    assert md.log_probs(logits, np.array([[4, 4]]), 4).dtype == jnp.float32


def test_d3pm_form_reduces_to_subs_without_mask_probability():
    rng = np.random.default_rng(2)
    logits, x = rng.normal(size=(3, 4, 6)), rng.integers(0, 5, (3, 4))
    z, t = np.where(rng.random((3, 4)) < 0.6, 5, x), np.array([0.25, 0.5, 1.0])
    zero = logits.copy()
    zero[..., 5] = -np.inf
    np.testing.assert_allclose(
        md.d3pm_token_loss(zero, x, z, t, 4, 5), md.cross_entropy(zero, x, z, 5) / t[:, None], atol=1e-12
    )
    # With a mask probability: T times the divergence of the two reverse laws, keep or stay masked.
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    s = t - 0.25
    theta_x, theta_mask = (0.25 / t)[:, None], (s / t)[:, None]
    alpha_t, alpha_s = 1 - t, 1 - s
    # q(z_s = x) = dt/t, q(z_s = mask) = s/t; the model's: D3PM's posterior mixed over x0 and normalised.
    model_x = np.take_along_axis(p, x[..., None], -1)[..., 0] * theta_x / (1 + (alpha_t / t)[:, None] * p[..., 5])
    ratio = (1 + np.where(s > 0, alpha_s / np.maximum(s, 1e-9), 0)[:, None] * p[..., 5]) / (
        1 + (alpha_t / t)[:, None] * p[..., 5]
    )
    kl = theta_x * np.log(theta_x / model_x) + np.where(theta_mask > 0, theta_mask * -np.log(ratio), 0)
    np.testing.assert_allclose(md.d3pm_token_loss(logits, x, z, t, 4, 5), np.where(z == 5, 4 * kl, 0), atol=1e-12)


@pytest.mark.parametrize("how", ["bernoulli", "fixed_count"])
def test_corrupt_masks_as_promised(how):
    x = jnp.tile(jnp.arange(6), (30000, 1))
    frozen = jnp.zeros_like(x, bool).at[:, :2].set(True)
    noised = jax.jit(lambda k: md.corrupt(k, x, mask_id=9, how=how, frozen=frozen))(jax.random.key(0))
    masked = np.asarray(noised.z == 9)
    assert not masked[:, :2].any() and (np.asarray(noised.z)[~masked] == np.asarray(x)[~masked]).all()
    assert (np.asarray(noised.weight > 0) == masked).all()
    # E[weight at a free token] = 1 under both, and its variance is that of k/n or of 1/t masks; 5 standard errors.
    weight = np.asarray(noised.weight)[:, 2:].sum(1)
    assert abs(weight.mean() - 4) <= 5 * weight.std() / 30000**0.5
    if how == "fixed_count":
        counts = np.bincount(masked.sum(1), minlength=5)
        assert counts[0] == 0
        assert ((counts[1:] - 7500) ** 2 / 7500).sum() < 21.1  # chi-square, 3 dof, 1e-4
        np.testing.assert_allclose(weight, 4)


def test_corrupt_steps_land_on_the_grid():
    noised = md.corrupt(jax.random.key(3), jnp.zeros((64, 8), int), mask_id=1, steps=4)
    assert set(np.round(np.asarray(noised.t) * 4, 5)) == {1.0, 2.0, 3.0, 4.0}


def test_nelbo_of_a_batch_and_its_refusals():
    table = tiny_laws.tab_table(2, 3)
    denoise, x = tiny_laws.denoiser(table), tiny_laws.states(2, 3)
    mean, error = md.nelbo(denoise, x, jax.random.key(0), 4000, vocab_size=2)
    exact = md.nelbo_exact(denoise, x, 2, 2)
    assert mean.shape == error.shape == (8,)
    assert (np.abs(mean - exact) < 5 * error).all()
    with pytest.raises(ValueError, match="samples=1"):
        md.nelbo(denoise, x, jax.random.key(0), 1, 2)
    with pytest.raises(ValueError, match="2\\^25"):
        md.nelbo_exact(denoise, np.zeros((1, 25), int), 2)
    assert md.bits_per_token(math.log(2) * 6, 3) == pytest.approx(2)
    assert float(md.perplexity(math.log(2) * 3, 3)) == pytest.approx(2)
