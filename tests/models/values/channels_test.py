"""Every channel, projection and norm, whole, against its formula in numpy float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from kernels import masks
from models import norms, pattention, projections
from models.channels import ACTIVATIONS, CHANNELS
from models.mixers import Context
from tests.plain import layers
from tests.plain.drawn import drawn, spec

pytestmark = pytest.mark.usefixtures("x64")
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def both(make, plain, *, shape=(2, 5, 12), call=lambda module, x: module(x)):
    run, p = drawn(make)
    x = np.random.default_rng(1).normal(size=shape)
    return run(call, x), plain(p, x)


def channel(module, x):
    """A channel's output; it has nothing to report."""
    y, report = module(x, Context(jnp.arange(x.shape[1])[None], None, masks.Causal()))
    assert not report
    return y


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp(activation):
    made = spec(channel="mlp", mlp={"activation": activation, "hidden": 20, "bias": activation != "relu"})
    plain = lambda p, x: layers.mlp(p, x, activation)  # noqa: E731
    got, want = both(lambda rngs: CHANNELS["mlp"](made, rngs=rngs), plain, call=channel)
    np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize("bias", [True, False])
def test_swiglu(bias):
    made = spec(channel="swiglu", swiglu={"hidden": 0, "bias": bias})
    run, p = drawn(lambda rngs: CHANNELS["swiglu"](made, rngs=rngs))
    assert p["up"]["kernel"].shape == (12, 64)  # 8 D / 3 = 32, up to a multiple of 64.
    x = np.random.default_rng(1).normal(size=(2, 5, 12))
    np.testing.assert_allclose(run(channel, x), layers.swiglu(p, x), **CLOSE)


def test_the_hidden_width_of_an_mlp_is_four_times_the_model():
    _, p = drawn(lambda rngs: CHANNELS["mlp"](spec(), rngs=rngs))
    assert p["up"]["kernel"].shape == (12, 48)


@pytest.mark.parametrize(
    ("normalization", "gelu", "kept", "by"),
    [
        ("l2_gelu", "exact", 0, "score"),
        ("l2_gelu", "tanh", 5, "magnitude"),
        ("gelu_l2", "exact", 5, "score"),
        ("softmax", "exact", 0, "score"),
    ],
)
def test_pattention(normalization, gelu, kept, by):
    """As a channel, and as a map from a channel's hidden width, with another number of tokens in each."""
    options = {"normalization": normalization, "gelu": gelu, "top_r": kept, "top_by": by}
    made = spec(channel="pattention", pattention={"tokens": 10, "channel_tokens": 20, **options})
    plain = lambda share: lambda p, x: layers.pattention(p, x, normalization, gelu, share * kept, by)  # noqa: E731
    whole = lambda rngs: CHANNELS["pattention"](made, rngs=rngs)  # noqa: E731
    got, want = both(whole, lambda p, x: plain(2)(p["map"], x), call=channel)  # twice the tokens, the same share kept
    np.testing.assert_allclose(got, want, **CLOSE)
    mixing = lambda rngs: pattention.Pattention(made, 12, 6, axes=("embed", "heads"), bias=True, rngs=rngs)  # noqa: E731
    got, want = both(mixing, lambda p, x: plain(1)(p, x) + p["bias"])
    np.testing.assert_allclose(got, want, **CLOSE)


def test_dense():
    made = spec()
    make = lambda rngs: projections.make(made, 12, 5, axes=("embed", "heads"), bias=True, rngs=rngs)  # noqa: E731
    got, want = both(make, lambda p, x: x @ p["kernel"] + p["bias"])
    np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize("kind", norms.NORMS)
@pytest.mark.parametrize("scale", [True, False])
def test_norms(kind, scale):
    made = spec(norm=kind, norm_scale=scale, norm_bias=scale and kind == "layernorm", norm_eps=0.1)
    got, want = both(lambda rngs: norms.make(made, rngs=rngs), lambda p, x: layers.norm(p, x, kind, 0.1))
    np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize(("name", "parts"), [("layernorm", {"scale", "bias"}), ("rmsnorm", {"scale"}), ("same", set())])
def test_the_final_norm(name, parts):
    made = spec(norm="rmsnorm", norm_scale=False, final_norm=name, norm_eps=0.1)
    run, p = drawn(lambda rngs: norms.make_final(made, rngs=rngs))
    assert set(p) == parts
    x = np.random.default_rng(1).normal(size=(3, 12))
    kind = "rmsnorm" if name == "same" else name
    np.testing.assert_allclose(run(lambda module, x: module(x), x), layers.norm(p, x, kind, 0.1), **CLOSE)
