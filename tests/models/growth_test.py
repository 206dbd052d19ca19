"""Growth keeps the function, lets new tokens learn at once, and refuses to change anything else."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from kernels import masks
from models import growth
from models.lm import LM
from models.spec import Spec

V, B, T = 17, 2, 12
OPTIONS = {"tokens": 20, "channel_tokens": 70}


def spec(dtype="float64", options=OPTIONS, **changes):
    config = base.get_config().model
    config.update({"width": 32, "num_layers": 2, "num_heads": 4, "projection": "pattention", "channel": "pattention"})
    config.update({"norm": "layernorm", "norm_scale": False, "pattention": options, **changes})
    return Spec.from_config(config.to_dict() | {"dtype": dtype, "param_dtype": dtype}, vocab_size=V)


def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, V, (B, T)), jnp.int32)


def merge(made, params):
    return nnx.merge(nnx.split(nnx.eval_shape(lambda: LM(made, rngs=nnx.Rngs(0))))[0], params)


def logits(made, params):
    model = merge(made, params)
    return model.logits(model(tokens(), mask=masks.Causal())[0])


def born(made, seed=0):
    return nnx.to_pure_dict(nnx.state(LM(made, rngs=nnx.Rngs(seed)), nnx.Param))


def apply(made, params):
    return jax.jit(functools.partial(logits, made))(params)


def map_named(fn, name, tree):
    return jax.tree_util.tree_map_with_path(lambda path, x: fn(x) if path[-1].key == name else x, tree)


LARGER = {"tokens": 33, "channel_tokens": 131}
ROUTED = {"top_r": 8, "top_by": "magnitude"}
CASES = {
    "l2_gelu": ({}, LARGER),
    "gelu_l2": ({"normalization": "gelu_l2"}, LARGER),
    "tanh": ({"gelu": "tanh"}, LARGER),
    "mixer_only": ({}, {**LARGER, "channel_tokens": 70}),
    "router": (ROUTED, {"tokens": 30, "channel_tokens": 105}),
}
MAPS = {"q_tokens": 10, "k_tokens": 20, "v_tokens": 15, "o_tokens": 12}  # P of each map of the mixer before,
GROWN = {"q_tokens": 11, "v_tokens": 40, "o_tokens": 12}  # and after; k follows `tokens`, o stays.


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
def test_growth_by_zero_keys_changes_no_output(case, dtype, tolerance, x64):
    options, larger = CASES[case]
    old, new = (spec(dtype, OPTIONS | options | sizes) for sizes in ({}, larger))
    params = born(old)
    grown = growth.grow(params, old, new, jax.random.key(1))
    q = grown["stack"]["period"]["0_attention"]["mixer"]["q"]
    assert q["keys"].shape == (2, larger["tokens"], 32) and q["values"].dtype == dtype
    assert not np.any(q["keys"][:, 20:]) and np.all(np.any(q["values"][:, 20:], axis=-1)), "zero keys, drawn values"
    before, after = apply(old, params).astype("float64"), apply(new, grown).astype("float64")
    assert float(jnp.abs(after - before).max() / jnp.abs(before).max()) <= tolerance
    # Computing tau anew from the grown P is what would change it.
    anew = map_named(lambda tau: tau * np.sqrt(larger["tokens"] / 20), "tau", grown)
    assert float(jnp.abs(apply(new, anew) - before).max() / jnp.abs(before).max()) > 1e-3


@pytest.mark.parametrize("routed", [False, True])
def test_every_map_grows_by_itself(routed, x64):
    """Numbers of its own before and after; a router keeps the same share of each, so there all grow alike."""
    larger = {name: 3 * P for name, P in (OPTIONS | MAPS).items()} if routed else {**LARGER, "k_tokens": 0, **GROWN}
    more = {"top_r": 8, "top_by": "magnitude"} if routed else {}
    old, new = spec(options=OPTIONS | MAPS | more), spec(options=OPTIONS | more | larger)
    params = born(old)
    grown = growth.grow(params, old, new, jax.random.key(1))
    block = grown["stack"]["period"]["0_attention"]
    want = {"q": 30, "k": 60, "v": 45, "out": 36} if routed else {"q": 11, "k": 33, "v": 40, "out": 12}
    was = dict(zip(want, MAPS.values(), strict=True))
    for name, P in want.items():
        part = block["mixer"][name]
        assert part["keys"].shape == part["values"].shape == (2, P, 32), name
        assert not np.any(part["keys"][:, was[name] :]) and set(np.ravel(part["tau"])) == {np.sqrt(was[name])}
    assert block["channel"]["map"]["keys"].shape[1] == larger["channel_tokens"]
    before = apply(old, params)
    assert float(jnp.abs(apply(new, grown) - before).max() / jnp.abs(before).max()) <= 1e-12


def test_growing_twice_keeps_the_tau_of_birth(x64):
    specs = [spec(options={"tokens": P}) for P in (8, 12, 32)]
    params = born(specs[0])
    for old, new in zip(specs, specs[1:], strict=False):
        params = growth.grow(params, old, new, jax.random.key(2))
    assert set(np.ravel(params["stack"]["period"]["0_attention"]["mixer"]["q"]["tau"])) == {np.sqrt(8)}
    before = apply(specs[0], born(specs[0]))
    assert float(jnp.abs(apply(specs[2], params) - before).max() / jnp.abs(before).max()) <= 1e-12


def test_new_keys_get_gradient_at_the_first_step():
    old, new = spec("float32"), spec("float32", LARGER)
    params = growth.grow(born(old), old, new, jax.random.key(1))
    loss = lambda params: jnp.sum(jnp.sin(3 * logits(new, params)))  # noqa: E731
    grads = jax.jit(jax.grad(loss))(params)
    rows = {"mixer": 20, "channel": 70}
    block = grads["stack"]["period"]["0_attention"]
    for part, was in rows.items():
        for name, grad in block[part].items():
            assert np.all(np.any(grad["keys"][:, was:] != 0, axis=-1)), name
            assert not np.any(grad["values"][:, was:]), "a zero score gives its value no gradient"
            assert not np.any(grad["tau"]), "frozen"


def refused(old, new, *words):
    with pytest.raises(ValueError) as error:
        growth.grow({}, old, new, jax.random.key(0))
    assert all(word in str(error.value) for word in words), error.value


def test_everything_else_is_refused_by_name():
    old = spec()
    changes = {
        "model.num_layers=4 was 2": {"num_layers": 4},
        "model.width=64 was 32": {"width": 64, "head_dim": 8},
        "model.num_heads=8 was 4": {"num_heads": 8, "head_dim": 8},
        "model.num_kv_heads=2 was 4": {"num_kv_heads": 2},
        "model.vocab_size=32 was 17": {"vocab_size": 32},
        "model.mixer='attention,attention' was 'attention'": {"mixer": "attention,attention"},
        "model.channel='mlp' was 'pattention'": {"channel": "mlp"},
        "model.tied=False was True": {"tied": False},
        "model.attention.rope_fraction=0.5 was 1.0": {"attention": {"rope_fraction": 0.5}},
        "model.pattention.gelu='tanh' was 'exact'": {"options": {**OPTIONS, "gelu": "tanh"}},
    }
    for sentence, change in changes.items():
        refused(old, spec(**change), sentence, "growth changes only parameter tokens")
    refused(old, spec(options={"tokens": 10}), "model.pattention.tokens=10 is fewer than the 20", "use e.g. 40")
    maps = spec(options=OPTIONS | MAPS)
    refused(maps, spec(options=OPTIONS | MAPS | {"v_tokens": 14}), "model.pattention.v_tokens=14 is fewer than the 15")
    refused(maps, spec(options=OPTIONS | {"tokens": 8, "o_tokens": 12}), "model.pattention.q_tokens=8 is fewer")
    assert not growth.problems(maps, spec(options=OPTIONS | MAPS | {"v_tokens": 0}))  # 20, as `tokens`
    softmax = {**OPTIONS, "normalization": "softmax"}
    refused(spec(options=softmax), spec(options=softmax), "softmax", "grow one with 'l2_gelu'")
    routed = {**OPTIONS, "top_r": 8}
    refused(spec(options=routed), spec(options=routed), "top_by='score'", "use 'magnitude'")
    routed |= {"top_by": "magnitude"}
    refused(spec(options=routed), spec(options={**routed, "tokens": 40}), "channel_tokens=70", "use 140")
    refused(
        spec(options=routed | MAPS), spec(options=routed | MAPS | {"q_tokens": 20}),
        "model.pattention.q_tokens=20 changes what the router keeps of q's 10 tokens; use 10",
    )  # fmt: skip
    dense = spec(projection="dense", channel="mlp")
    refused(dense, dense, "no parameter tokens to grow")


def test_what_is_no_part_of_the_function_may_differ():
    other = {
        "remat": "full",
        "unroll": 1,
        "init_std": 0.5,
        "init": "fan_in",
        "attention": {"implementation": "chunked"},
    }
    assert not growth.problems(
        spec(), spec(options={**LARGER, "init_values": "fan_in", "implementation": "xla"}, **other)
    )
    mixed = dataclasses.replace(spec(options=LARGER), dtype=jnp.dtype("bfloat16"))
    assert not growth.problems(spec(), mixed)


def test_extend_grows_one_axis_only():
    np.testing.assert_array_equal(growth.extend(jnp.zeros((2, 3)), jnp.ones((2, 5)))[0], [0, 0, 0, 1, 1])
    for shape in ((2, 2), (3, 4), (2, 3, 1)):
        with pytest.raises(ValueError, match="cannot grow"):
            growth.extend(jnp.zeros((2, 3)), jnp.ones(shape))


def test_a_grown_model_reads_a_prompt_and_steps_as_it_reads_the_whole():
    old, new = spec("float32"), spec("float32", LARGER)
    params = growth.grow(born(old), old, new, jax.random.key(1))
    # New keys that have learnt something, so that they take part.
    params = map_named(lambda keys: keys + 0.01 * jax.random.normal(jax.random.key(3), keys.shape), "keys", params)

    @jax.jit
    def in_pieces(params):
        model = merge(new, params).for_decoding()
        state, outs = model.init_state(B, T), []
        for a, b in ((0, 7), *((t, t + 1) for t in range(7, T))):
            positions = jnp.broadcast_to(jnp.arange(a, b), (B, b - a))
            y, state, _ = model(tokens()[:, a:b], mask=masks.Causal(), positions=positions, state=state)
            outs.append(y)
        return model.logits(jnp.concatenate(outs, axis=1))

    want = apply(new, params)
    np.testing.assert_allclose(in_pieces(params), want, rtol=0, atol=1e-5 * float(jnp.abs(want).max()))
