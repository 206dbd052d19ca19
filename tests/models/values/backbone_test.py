"""Every knob that pretrained families need, against plain loops: alone where it can hide, together where it cannot."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import masks
from models import rope_scaling
from models.lm import LM
from tests.plain import backbone, layers
from tests.plain.drawn import drawn, spec

V, D, N, H, T = 11, 12, 2, 6, 9


def geglu(p, x):
    return layers.linear(p["down"], layers.gelu_tanh(layers.linear(p["gate"], x)) * layers.linear(p["up"], x))


def mlp(p, x):
    return layers.mlp(p, x, "gelu")


LLAMA3 = {"kind": "llama3", "factor": 8.0, "low": 1.0, "high": 4.0, "original": 64}
YARN = {"kind": "yarn", "factor": 4.0, "original": 32, "beta_fast": 4.0, "beta_slow": 1.0}
CASES = {
    # name: changes of config.model, options of plain attention (a list: by position), of the plain model, its channel
    "gpt2": (
        {"positions": 16, "norm": "layernorm", "norm_bias": True, "attention": {"rope_fraction": 0.0, "bias": True}}
        | {"mlp": {"bias": True}},
        {"fraction": 0.0}, {"kind": "layernorm"}, mlp,
    ),
    "neox": (
        {"parallel": True, "norm": "layernorm", "norm_bias": True, "attention": {"rope_fraction": 0.34}},
        {"fraction": 0.34}, {"kind": "layernorm", "parallel": True}, mlp,
    ),
    "qwen2 and granite": (
        {"attention": {"qkv_bias": True, "scale": 0.3}, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
        | {"residual_scale": 0.4, "embedding_scale": 1.7},
        {"scale": 0.3, "N": 4, "K": 2, "H": 4}, {"scale": 0.4, "embedding": 1.7}, mlp,
    ),
    "olmo2": (
        {"norm_place": "post", "attention": {"qk_norm": True, "qk_norm_over": "row", "qk_norm_eps": 0.03}},
        {"row": True, "eps": 0.03}, {}, mlp,
    ),
    "gemma2": (
        {"norm_place": "sandwich", "norm_offset": True, "channel": "swiglu", "mixer": "attention,attention"}
        | {"swiglu": {"hidden": 5, "activation": "gelu"}, "attention": {"softcap": 1.5, "qk_norm": True}}
        | {"by_position": ({"attention": {"window": 3}}, {"attention": {"rope_theta": 500.0}})},
        [{"softcap": 1.5, "offset": 1.0, "window": 3}]
        + [{"softcap": 1.5, "offset": 1.0, "rate": lambda i, R: 500.0 ** (-2 * i / R)}],
        {"offset": 1.0}, geglu,
    ),
    "sinks": ({"attention": {"sink_scores": True}, "num_kv_heads": 1}, {"K": 1}, {}, mlp),
    "llama3": (
        {"attention": {"rope_scaling": LLAMA3}},
        {"rate": lambda i, R: backbone.llama3(i, R, 1e4, **LLAMA3)}, {}, mlp,
    ),
    "yarn": (
        {"attention": {"rope_scaling": YARN, "rope_theta": 100.0}},
        {"rate": lambda i, R: backbone.yarn(i, R, 100.0, **YARN), "factor": 0.1 * math.log(4.0) + 1}, {}, mlp,
    ),
    "dynamic": (
        {"attention": {"rope_scaling": {"kind": "dynamic", "factor": 2.0, "original": 5}}},
        {"rate": lambda i, R: backbone.dynamic(i, R, 1e4, 2.0, 5, T)}, {}, mlp,
    ),
    "longrope": (
        {"attention": {"rope_scaling": {"kind": "longrope", "factor": 3.0, "original": 7}
         | {"short_factors": ("1.0", "1.0", "1.0"), "long_factors": ("1.5", "2.5", "4.0")}}},
        {"rate": lambda i, R: 1e4 ** (-2 * i / R) / (1.5, 2.5, 4.0)[i]}
        | {"factor": math.sqrt(1 + math.log(3) / math.log(7))}, {}, mlp,
    ),
}  # fmt: skip


def both(changes):
    return drawn(lambda rngs: LM(spec(vocab_size=V, **changes), rngs=rngs), seed=3)


@pytest.mark.parametrize("case", CASES)
def test_features_equal_the_plain_model(case, x64):
    changes, attention, options, channel = CASES[case]
    run, p = both(changes)
    x = np.random.default_rng(4).integers(0, V, T)
    got = run(lambda model, x: model(x, mask=masks.Causal()).features, x[None])
    each = attention if isinstance(attention, list) else [attention]
    mixers = [functools.partial(backbone.attention, **{"N": N, "K": N, "H": H} | more) for more in each]
    np.testing.assert_allclose(got[0], backbone.model(p, x, mixers, channel, **options), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", ["gpt2", "olmo2", "gemma2", "sinks", "neox"])
def test_prefill_and_steps_equal_the_whole(case, x64):
    run, _ = both(CASES[case][0])
    x = np.random.default_rng(4).integers(0, V, (2, T))

    def steps(model, x):
        whole = model(x, mask=masks.Causal()).features
        model, at = model.for_decoding(), jnp.arange(T)[None]
        state, found = model.init_state(2, T), []
        for part in (slice(0, 5), slice(5, 6), slice(6, T)):
            out = model(x[:, part], mask=masks.Causal(), positions=at[:, part], state=state, fresh=part.start == 0)
            state = out.state
            found.append(out.features)
        return whole, jnp.concatenate(found, axis=1)

    whole, stepped = run(steps, x)
    np.testing.assert_allclose(stepped, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("R", [4, 16, 64, 128])
@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_rates_equal_the_released_formulas(R, theta):
    def check(got, plain, **options):
        np.testing.assert_allclose(got, [plain(i, R, theta, **options) for i in range(R // 2)], rtol=1e-13)

    check(rope_scaling.rates(R, theta), backbone.linear, factor=1.0)
    check(rope_scaling.linear(R, theta, factor=3.0), backbone.linear, factor=3.0)
    for length in (10, 4096, 9000):
        options = {"factor": 2.5, "original": 4096, "length": length}
        check(rope_scaling.dynamic(R, theta, **options), backbone.dynamic, **options)
    for low, high in ((1.0, 4.0), (2.0, 3.0)):
        options = {"factor": 8.0, "low": low, "high": high, "original": 8192}
        check(rope_scaling.llama3(R, theta, **options), backbone.llama3, **options)
    for fast, slow, truncate in ((32.0, 1.0, True), (32.0, 1.0, False), (8.0, 2.0, True)):
        options = {"factor": 16.0, "original": 4096, "beta_fast": fast, "beta_slow": slow, "truncate": truncate}
        check(rope_scaling.yarn(R, theta, **options), backbone.yarn, **options)


def test_factors_by_hand():
    assert rope_scaling.yarn_factor(1.0) == rope_scaling.longrope_factor(0.5, 4096) == 1.0
    assert rope_scaling.yarn_factor(40.0) == pytest.approx(1.3688879454113936, rel=1e-15)  # 0.1 ln 40 + 1
    deepseek = (0.1 * 0.707 * math.log(40) + 1) / (0.1 * 0.5 * math.log(40) + 1)
    assert rope_scaling.yarn_factor(40.0, mscale=0.707, mscale_all_dim=0.5) == pytest.approx(deepseek, rel=1e-15)
    assert rope_scaling.yarn_factor(40.0, mscale=0.707) == rope_scaling.yarn_factor(40.0)
    assert rope_scaling.longrope_factor(32.0, 4096) == pytest.approx(math.sqrt(1 + 5 / 12), rel=1e-15)  # 2^5, 2^12


def test_the_length_of_dynamic_rates_may_be_traced(x64):
    traced = jax.jit(lambda n: rope_scaling.dynamic(8, 1e4, factor=2.0, original=16, length=n))(40.0)
    np.testing.assert_allclose(traced, rope_scaling.dynamic(8, 1e4, factor=2.0, original=16, length=40), rtol=1e-14)
