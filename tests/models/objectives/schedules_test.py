"""Schedules against their formulas, their derivatives and the identities between them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.objectives import schedules

T = np.linspace(0.02, 0.98, 13)
CASES = {
    "linear": ({}, lambda t: 1 - t, lambda t: 1 / t),
    "loglinear": ({}, lambda t: np.exp(np.log1p(-(1 - 1e-3) * t)), lambda t: 1 / t),
    "cosine_md4": (
        {},
        lambda t: 1 - np.cos(math.pi / 2 * (1 - t)),
        lambda t: math.pi / 2 * np.tan(math.pi / 2 * (1 - t)),
    ),
    "cosine_mdlm": ({}, lambda t: 1e-3 + (1 - 1e-3) * np.cos(math.pi * t / 2), None),
    "poly": ({"k": 3}, lambda t: 1 - t**3, lambda t: 3 / t),
    "geometric": (
        {"sigma_min": 1e-4, "sigma_max": 20.0},
        lambda t: np.exp(-(1e-4 ** (1 - t)) * 20.0**t),
        lambda t: 1e-4 ** (1 - t) * 20.0**t * np.log(2e5) / np.expm1(1e-4 ** (1 - t) * 20.0**t),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("clip", [0.0, 1e-4])
def test_formulas_derivatives_and_inverse(name, clip, x64):
    kw, alpha, weight = CASES[name]
    schedule = schedules.get(name, clip=clip, **kw)
    t = jnp.asarray(T)
    expected = (1 - 2 * clip) * alpha(T) + clip
    np.testing.assert_allclose(schedule.alpha(t), expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(schedule.mask(t), 1 - expected, rtol=1e-11, atol=1e-15)
    slope = jax.vmap(jax.grad(lambda s: schedule.alpha(s)))(t)
    np.testing.assert_allclose(schedule.dalpha(t), slope, rtol=1e-10)
    np.testing.assert_allclose(schedule.weight(t), -slope / (1 - expected), rtol=1e-9)
    np.testing.assert_allclose(schedule.weight(t), schedule.dsigma(t) / jnp.expm1(schedule.sigma(t)), rtol=1e-9)
    back = schedule.time(schedule.mask(t))
    # The inverse is as good as 1 - alpha is: relative error eps / alpha in m becomes eps / alpha / (dm/dt) in t.
    assert np.all(np.abs(back - t) <= 1e-14 / schedule.alpha(t) / np.abs(schedule.dalpha(t)) + 1e-14)
    if weight is not None and clip == 0:
        np.testing.assert_allclose(schedule.weight(t), weight(T), rtol=1e-12)


def test_small_times_keep_their_mask_rate_in_float32():
    for name in ("linear", "cosine_md4", "cosine_mdlm", "poly"):
        t = np.float32(1e-6)
        got = schedules.get(name).mask(t)
        assert got.dtype == jnp.float32
        with jax.enable_x64(True):
            exact = float(schedules.get(name).mask(np.float64(t)))
        assert abs(float(got) - exact) < 1e-6 * exact


def test_refusals_name_the_value():
    with pytest.raises(ValueError, match="'cosin' is unknown"):
        schedules.get("cosin")
    with pytest.raises(ValueError, match="does not take"):
        schedules.get("linear", k=2)
    with pytest.raises(ValueError, match="clip=0.7"):
        schedules.get("linear", clip=0.7)


@pytest.mark.parametrize("how", ["iid", "offset", "stratified"])
def test_times_lie_in_range_and_strata(how):
    t = np.asarray(schedules.sample_times(jax.random.key(0), 64, how, low=1e-3))
    assert t.min() > 1e-3 and t.max() <= 1
    if how != "iid":  # one time in each of 64 equal strata
        assert len(set(np.floor((t - 1e-3) / (1 - 1e-3) * 64 - 1e-4))) == 64
    else:
        assert len(set(np.floor(t * 64))) < 60


def test_variances_of_time_sampling(x64):
    """Section 4: for an integrand of t the stratified estimate varies least, the shared offset next, iid most."""
    f = lambda t: jnp.cos(2 * t) + 3 * t**2  # noqa: E731
    spread = {}
    for how in ("iid", "offset", "stratified"):
        keys = jax.random.split(jax.random.key(1), 4000)
        draws = jax.vmap(lambda k: f(schedules.sample_times(k, 8, how, dtype=jnp.float64)).mean())(keys)  # noqa: B023
        assert abs(float(draws.mean()) - (np.sin(2) / 2 + 1)) < 5 * float(draws.std()) / 4000**0.5
        spread[how] = float(draws.var())
    assert spread["stratified"] < 0.5 * spread["offset"] < 0.25 * spread["iid"]


def test_grids():
    assert schedules.grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    np.testing.assert_allclose(schedules.grid(2, "cosine"), [1, math.cos(math.pi / 4), 0], atol=1e-16)
