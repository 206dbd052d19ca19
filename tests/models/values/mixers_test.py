"""Every mixer, whole, against a loop over its tokens: a packed row of two documents in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import masks
from models.mixers import MIXERS, Context
from tests.plain import layers, learners
from tests.plain.drawn import drawn, spec

pytestmark = pytest.mark.usefixtures("x64")
CUTS = (7, 4)  # Tokens of the two documents: chunks of 3 end inside and at the border.
T, N, H = sum(CUTS), 2, 6
# Sums of a few dozen terms of order one, at float64's 1e-16. Newton-Schulz multiplies what is small by up to 4 a step.
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def both(name, plain, seed=0, mask=masks.Causal(), **changes):  # noqa: B008 (immutable)
    """What the mixer makes of a packed row, and the plain form of each document by itself: [T, D] twice."""
    run, p, x, apply = packed(name, seed, mask, changes)
    return run(apply, x)[0], alone(plain, p, x)


def packed(name, seed, mask, changes):
    """(run, parameters, x [1, T, D], a call of the mixer on it as two documents)."""
    made = spec(**changes)
    run, p = drawn(lambda rngs: MIXERS[name](made, rngs=rngs), seed)
    x = np.random.default_rng(seed + 1).normal(size=(1, T, made.D))
    places = jnp.concatenate([jnp.arange(n) for n in CUTS])[None]
    segments = jnp.repeat(jnp.asarray([1, 2]), jnp.asarray(CUTS), total_repeat_length=T)[None]
    return run, p, x, lambda module, x: module(x, Context(places, segments, mask))[0]


def alone(plain, p, x):
    """The plain form of each document by itself, [T, D]."""
    ends = np.cumsum((0, *CUTS))
    return np.concatenate([plain(p, x[0, a:b]) for a, b in zip(ends, ends[1:], strict=False)])


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        (
            {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "norm_eps": 1e-3}
            | {"attention": {"qk_norm": True, "rope_fraction": 0.7, "rope_theta": 50.0, "bias": True}},
            {"N": 4, "eps": 1e-3, "fraction": 0.7, "theta": 50.0},
        ),
        ({"attention": {"window": 3, "sinks": 2}}, {"window": 3, "sinks": 2}),
        (
            {"parametrization": "mup", "head_dim": 6, "mup": {"base_head_dim": 2}},
            {"scores": (2 / 6) ** 0.5},  # mup, table 8: scores fall as 1 / H from those of the base.
        ),
    ],
    ids=["plain", "grouped", "window+sinks", "mup"],
)
def test_attention(changes, options):
    settings = {"N": N, "K": 2, "H": H} | options
    got, want = both("attention", lambda p, x: layers.attention(p, x, **settings), **changes)
    np.testing.assert_allclose(got, want, **CLOSE)


def test_attention_under_a_full_mask_and_a_window_on_both_sides():
    settings = {"N": N, "K": N, "H": H, "see": layers.everything, "window": 3}
    plain = lambda p, x: layers.attention(p, x, **settings)  # noqa: E731
    got, want = both("attention", plain, mask=masks.Full(), attention={"window": 3})
    np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize("decay", [True, False])
def test_linear_attention(decay):
    plain = lambda p, x: learners.linear_attention(p, x, N=N)  # noqa: E731
    got, want = both("linear_attention", plain, linear_attention={"chunk_size": 3, "decay": decay})
    np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize("conv", [0, 1, 4])
@pytest.mark.parametrize("name", ["gated_delta", "linear_attention"])
def test_a_memory_behind_a_convolution(name, conv):
    plain = getattr(learners, name)
    got, want = both(name, lambda p, x: plain(p, x, N=N), **{name: {"chunk_size": 3, "conv": conv}})
    np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize("name", ["ttt_linear", "ttt_mlp"])
@pytest.mark.parametrize("gate", [True, False])
def test_ttt(name, gate):
    options = {"mini_batch": 3, "gate": gate, "base_rate": 3.0, "rope_theta": 20.0}
    plain = lambda p, x: learners.ttt(p, x, N=N, mini_batch=3, base_rate=3.0, theta=20.0)  # noqa: E731
    got, want = both(name, plain, **{name: options | ({"hidden_ratio": 1.5} if name == "ttt_mlp" else {})})
    np.testing.assert_allclose(got, want, **CLOSE)


LACT = {"heads": 3, "hidden_ratio": 1.5, "chunk_size": 3, "window": 4, "base_rate": 0.5, "rope_theta": 30.0}
VARIANTS = {
    "as_released": {"newton_schulz_steps": 5, "normalize": "post", "momentum": True, "rank": 2, "value_silu": True}
    | {"output_scale": True, "qk_norm": True, "rope_fast": True},
    "bare": {"newton_schulz_steps": 0, "normalize": "pre", "momentum": False, "rank": 0, "value_silu": False}
    | {"output_scale": False, "qk_norm": False, "rope_fast": False},
    "sums": {"newton_schulz_steps": 2, "normalize": "none", "momentum": True, "rank": 0, "value_silu": True}
    | {"output_scale": True, "qk_norm": False, "rope_fast": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_lact(variant):
    options = LACT | VARIANTS[variant]
    got, want = both("lact", lambda p, x: learners.lact(p, x, N=N, H=H, o=options), lact=options)
    # Five steps of Newton-Schulz may multiply an error of 1e-15 by 4^5.
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-9)


FORMS = {
    "attention": ({"attention": {"qk_norm": True}}, lambda p, x: layers.attention(p, x, N=N, K=N, H=H)),
    "linear_attention": ({"linear_attention": {"chunk_size": 3}}, lambda p, x: learners.linear_attention(p, x, N=N)),
    "gated_delta": ({"gated_delta": {"chunk_size": 3, "conv": 3}}, lambda p, x: learners.gated_delta(p, x, N=N)),
    "ttt_linear": (
        {"ttt_linear": {"mini_batch": 3, "gate": True}},
        lambda p, x: learners.ttt(p, x, N=N, mini_batch=3, base_rate=1.0),
    ),
    "ttt_mlp": (
        {"ttt_mlp": {"mini_batch": 3, "hidden_ratio": 1.5}},
        lambda p, x: learners.ttt(p, x, N=N, mini_batch=3, base_rate=0.1),
    ),
    "lact": (
        {"lact": LACT | VARIANTS["as_released"] | {"newton_schulz_steps": 1}},
        lambda p, x: learners.lact(p, x, N=N, H=H, o=LACT | VARIANTS["as_released"] | {"newton_schulz_steps": 1}),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_gradients(name):
    """Of a number made of all outputs, along two directions through all parameters: difference quotients."""
    changes, plain = FORMS[name]
    run, p, x, apply = packed(name, 2, masks.Causal(), changes)
    gradient = run.gradient(lambda module: jnp.sum(jnp.sin(apply(module, jnp.asarray(x)))))
    rng, h = np.random.default_rng(9), 1e-6
    for _ in range(2):
        direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), p)
        ends = [jax.tree.map(lambda leaf, d, s=s: leaf + s * h * d, p, direction) for s in (1, -1)]
        slope = np.subtract(*(np.sin(alone(plain, q, x)).sum() for q in ends)) / (2 * h)
        found = sum((g * d).sum() for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
        # h^2 times a third derivative (some 1e7 along a direction through all parameters), and 1e-14 over h of a sum.
        np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-7)
