"""The whole model, from tokens to logits, and what its parameters start from."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from kernels import masks
from models.lm import LM, TimeEmbedding
from models.mixers.linear import GatedDelta
from tests.plain import layers, learners
from tests.plain.drawn import drawn, spec

V, D, N, H, T = 11, 12, 2, 6, 9


def whole(changes, *, attention, scale=1.0, logit_scale=1.0, softcap=0.0, told=False, roles=0, **plain):
    """(features, logits) of the model and of its plain form, for tokens of one row."""
    run, p = drawn(lambda rngs: LM(spec(vocab_size=V, **changes), rngs=rngs), seed=3)
    rng = np.random.default_rng(4)
    x = rng.integers(0, V, (1, T))
    time, condition = (rng.uniform(size=(1, T)), rng.normal(size=(1, T, D))) if told else (None, None)
    given, role = {"time": time, "condition": condition} if told else {}, rng.integers(0, max(1, roles), (1, T))
    given |= {"roles": role} if roles else {}
    call = lambda model, x: model(x, mask=masks.Causal(), **given)[0]  # noqa: E731
    features = run(call, x)
    logits = run(lambda model, x: model.logits(x), features)
    more = {"time": time[0], "condition": condition[0]} if told else {}
    want = layers.model(
        p, x[0], scale=scale, roles=role[0] if roles else None, **plain, **more,
        mixers=[lambda p, h: layers.attention(p, h, N=N, K=N, H=H, **attention)],
    )  # fmt: skip
    return (features[0], want), (logits[0], layers.logits(p, want, logit_scale, softcap), p)


def mlp(p, h):
    return layers.mlp(p, h, "gelu")


CASES = {
    "roles": ({"roles": 3, "embedding_scale": 0.0}, {"attention": {}, "roles": 3, "scale": D**0.5}),
    "tied": ({"logit_scale": 0.0, "embedding_scale": 0.0}, {"attention": {}, "scale": D**0.5, "logit_scale": D**-0.5}),
    "told": (
        {"time_features": 6, "self_condition": True, "tied": False, "softcap": 2.0, "logit_scale": 0.5},
        {"attention": {}, "told": True, "softcap": 2.0, "logit_scale": 0.5},
    ),
    # Yang et al. 2022, table 8, beside CompleteP: logits by 1 / r, scores by 1 / H, branches by 1 / l.
    "mup": (
        {"parametrization": "mup", "mup": {"base_width": 4, "base_head_dim": 3, "base_layers": 1}},
        {"attention": {"scores": (3 / 6) ** 0.5}, "branch": 1 / 2, "logit_scale": 4 / 12},
    ),
    "mup, scales by the width of the base": (
        {"parametrization": "mup", "mup": {"base_width": 4}, "logit_scale": 0.0, "embedding_scale": 0.0},
        {"attention": {}, "scale": 4**0.5, "logit_scale": 4**-0.5 * 4 / 12},
    ),
    "layernorm": (
        {"norm": "layernorm", "norm_scale": False, "final_norm": "layernorm", "norm_eps": 1e-3},
        {"attention": {}, "norms": ("layernorm", "layernorm"), "eps": 1e-3},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_features_and_logits(case, x64):
    changes, options = CASES[case]
    (features, want), (logits, by_hand, p) = whole(changes, channel=mlp, **options)
    np.testing.assert_allclose(features, want, rtol=1e-10, atol=1e-10)
    assert logits.dtype == np.float32 and logits.shape == (T, V)
    # Rounded to float32 once as a whole, and in its scale and cap: a few eps of what the products sum to.
    size = np.abs(want) @ np.abs(p.get("head", p["embedding"])).T
    assert np.all(np.abs(logits - by_hand) <= 8 * np.finfo(np.float32).eps * size)


def test_a_pattern_of_mixers_with_other_channels(x64):
    """Two layers, each once: gated delta, then linear attention, with SwiGLU."""
    changes = {"mixer": "gated_delta,linear_attention", "channel": "swiglu", "swiglu": {"hidden": 5, "bias": False}}
    run, p = drawn(lambda rngs: LM(spec(vocab_size=V, **changes), rngs=rngs), seed=5)
    x = np.random.default_rng(6).integers(0, V, (1, T))
    got = run(lambda model, x: model(x, mask=masks.Causal())[0], x)
    mixers = [lambda p, h: learners.gated_delta(p, h, N=N), lambda p, h: learners.linear_attention(p, h, N=N)]
    want = layers.model(p, x[0], mixers=mixers, channel=layers.swiglu)
    np.testing.assert_allclose(got[0], want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("per_token", [False, True])
def test_time_embedding(per_token, x64):
    """Four rates of F = 8: 1000, 100, 10 and 1 radians over the whole of t, by hand."""
    run, p = drawn(lambda rngs: TimeEmbedding(spec(time_features=8), rngs=rngs))
    time = np.array([[0.3, 0.007, 1.0], [0.0, 0.5, 0.25]]) if per_token else np.array([0.3, 0.007])
    got = run(lambda module, t: module(t), time)
    angles = (time if per_token else time[:, None])[..., None] * np.array([1000.0, 100.0, 10.0, 1.0])
    want = np.concatenate([np.cos(angles), np.sin(angles)], -1) @ p["kernel"]
    # An angle of 1000 has eps 1e-13.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)


NARROW = {"dtype": "float32", "param_dtype": "float32"}
SIZES = {"width": 64, "num_heads": 4, "num_layers": 8} | NARROW


def stds(**changes):
    """Standard deviation of each parameter of a fresh model, by its path; a part in a hundred off at 1e4 numbers."""
    made = jax.jit(lambda: nnx.state(LM(spec(vocab_size=512, **SIZES | changes), rngs=nnx.Rngs(0)), nnx.Param))()
    flat = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(made))[0]
    return {"/".join(k.key for k in path).removeprefix("stack/period/0_"): float(np.std(leaf)) for path, leaf in flat}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, {"embedding": 0.02, "attention/mixer/q/kernel": 0.02, "attention/channel/down/kernel": 0.02}),
        (
            {"init": "fan_in", "init_std": 0.5},
            {"embedding": 0.5, "attention/mixer/out/kernel": 1 / 8, "attention/channel/down/kernel": 1 / 16},
        ),
        (
            {"init": "normal_depth", "init_std": 0.1},  # Outputs by sqrt(2 L) = 4 (GPT-2).
            {"attention/mixer/q/kernel": 0.1, "attention/mixer/out/kernel": 0.1 / 4, "attention/channel/up/kernel": 0.1}
            | {"attention/channel/down/kernel": 0.1 / 4},
        ),
        (  # mup: by 1 / sqrt(r) where inputs are wide; the depth of the base counts, since branches have their own.
            {"parametrization": "mup", "init": "normal_depth", "mup": {"base_width": 16, "base_layers": 2}},
            {"embedding": 0.02, "attention/mixer/q/kernel": 0.01, "attention/channel/down/kernel": 0.01 / 2},
        ),
        (  # TokenFormer: keys 0.02, values 2 / (L sqrt(D)).
            {"projection": "pattention", "channel": "pattention", "pattention": {"tokens": 64}},
            {"attention/mixer/q/keys": 0.02, "attention/mixer/q/values": 2 / (8 * 8)}
            | {"attention/channel/map/values": 2 / (8 * 8)},
        ),
        ({"mixer": "ttt_mlp"}, {"ttt_mlp/mixer/w0": 0.02, "ttt_mlp/mixer/w1": 0.02}),
        (  # LaCT: w1 1 / sqrt(F); low ranks 0.5 / sqrt(rank) and 0.5 / sqrt(d).
            {"mixer": "lact", "lact": {"heads": 1, "rank": 16, "hidden_ratio": 4.0}},
            {"lact/mixer/w1": 1 / 16, "lact/mixer/left0": 0.5 / 4, "lact/mixer/right2": 0.5 / 8},
        ),
    ],
    ids=["normal", "fan_in", "normal_depth", "mup", "pattention", "ttt", "lact"],
)
def test_parameters_start_with_the_published_spread(changes, wanted):
    found = stds(**changes)
    for name, std in wanted.items():
        # 4096 numbers and more: the standard error of a spread is 1 / sqrt(2 n) = 1.1 %; five of them.
        assert found[name] == pytest.approx(std, rel=0.055), name


def test_gated_delta_starts_as_mamba_2_does():
    """A uniform in [1, 16], softplus(b) log-uniform in [0.001, 0.1]: 4096 heads' worth."""
    made = jax.jit(
        lambda: nnx.state(GatedDelta(spec(width=4, num_heads=4096, head_dim=1, **NARROW), rngs=nnx.Rngs(1)))
    )()
    p = nnx.to_pure_dict(made)
    a = np.exp(np.asarray(p["log_a"], np.float64))
    step = np.log(layers.softplus(np.asarray(p["decay"]["bias"], np.float64)))
    for values, low, high in ((a, 1, 16), (step, math.log(1e-3), math.log(1e-1))):
        assert low - 1e-3 <= values.min() and values.max() <= high + 1e-3
        assert values.max() > high - 0.02 * (high - low) and values.min() < low + 0.02 * (high - low)
        assert values.mean() == pytest.approx((low + high) / 2, abs=5 * (high - low) / math.sqrt(12 * 4096))
