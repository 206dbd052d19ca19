"""What must be true of every model in the house, whatever mixer it is built of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from kernels import masks
from models.channels import CHANNELS
from models.lm import LM
from models.mixers import MIXERS
from models.projections import PROJECTIONS
from models.spec import Spec
from tests import parts

V, B, T = 17, 2, 24


def make(mixer="attention", **changes):
    config = base.get_config().model
    config.update(
        {"width": 32, "num_layers": 2, "num_heads": 4, "mixer": mixer, "init": "fan_in", "unroll": 1, **changes}
    )
    return LM(Spec.from_config(config.to_dict(), vocab_size=V), rngs=nnx.Rngs(params=0))


def tokens(seed=0, shape=(B, T)):
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, shape), jnp.int32)


PLAIN = base.get_config().model
VARIANTS = {name: {"num_layers": 2 if name == PLAIN.mixer else 1, **parts.chosen("mixer", name)} for name in MIXERS} | {
    **{f"channel={name}": parts.chosen("channel", name) for name in CHANNELS if name != PLAIN.channel},
    **{name: parts.chosen("projection", name) for name in PROJECTIONS if name != PLAIN.projection},
    "gqa": {"num_kv_heads": 2},
    "window": {"attention": {"window": 5}},
    "window+sinks": {"attention": {"window": 5, "sinks": 2}},
    "qk_norm+partial_rope": {"attention": {"qk_norm": True, "rope_fraction": 0.5}},
    "swiglu+layernorm": {"channel": "swiglu", "norm": "layernorm", "norm_scale": False, "final_norm": "layernorm"},
    "pattention": {"projection": "pattention", "channel": "pattention", "norm_scale": False},
    "pattention+router": {"projection": "pattention", "pattention": {"tokens": 24, "top_r": 9}},  # in an MLP, too
    "free_head": {"tied": False, "softcap": 5.0, "logit_scale": 0.5},
}


@pytest.fixture(params=VARIANTS)
def model(request):
    return make(**VARIANTS[request.param])


def test_no_token_sees_a_later_one(model):
    """The gradient of the logits at position t with respect to the embeddings of later tokens is exactly zero."""
    graphdef, params = nnx.split(model)
    at = T // 2

    @jax.jit
    def sensitivity(params):
        def f(x):
            features, _ = _from_embeddings(nnx.merge(graphdef, params), x)
            return jnp.sum(features[:, at] ** 2)

        return jax.grad(f)(model.embedding[...][tokens()])

    g = np.abs(np.asarray(sensitivity(params))).sum(axis=(0, 2))
    assert np.all(g[at + 1 :] == 0)
    assert np.all(g[at - 3 : at + 1] > 0)


def _from_embeddings(model, x):
    """The model after its embedding."""
    from models.mixers import Context

    y, state, _ = model.stack(x, Context(jnp.arange(T)[None], None, masks.Causal()))
    return model.norm(y), state


def test_a_row_does_not_depend_on_its_neighbours(model):
    graphdef, params = nnx.split(model)
    run = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x, mask=masks.Causal())[0])
    x = tokens(shape=(4, T))
    whole = run(params, x)
    turned = run(params, jnp.roll(x, 1, axis=0))
    # The same row at another place of the batch goes through the same sums: equal to the last rounding.
    np.testing.assert_allclose(whole, jnp.roll(turned, -1, axis=0), rtol=0, atol=4 * _eps(whole))


def _eps(x):
    return float(np.finfo(np.float32).eps * np.abs(x).max())


def test_prefill_and_steps_equal_the_full_forward(model):
    """Prompts of two lengths, read on in pieces and token by token, padded to one width, end in the same features."""
    graphdef, params = nnx.split(model)
    x = tokens()
    want = jax.jit(lambda params: nnx.merge(graphdef, params)(x, mask=masks.Causal())[0])(params)

    @jax.jit
    def read(params, piece, positions, state):
        return nnx.merge(graphdef, params).for_decoding()(piece, mask=masks.Causal(), positions=positions, state=state)

    state = jax.jit(lambda params: nnx.merge(graphdef, params).for_decoding().init_state(B, T))(params)
    done = np.zeros(B, int)
    for width, *used in ((10, 10, 6), (9, 9, 3), (1, 1, 1), (1, 1, 0), (1, 1, 1), (1, 1, 1)):
        at = done[:, None] + np.arange(width)
        real = np.arange(width) < np.array(used)[:, None]
        piece = jnp.where(real, jnp.take_along_axis(x, jnp.minimum(at, T - 1), axis=1), V - 1)
        features, state, _ = read(params, piece, jnp.where(real, at, -1), state)
        for row in range(B):
            got = features[row, : used[row]]
            np.testing.assert_allclose(got, want[row, done[row] : done[row] + used[row]], rtol=0, atol=1e-5)
        done += used


def test_packing_equals_each_document_alone(model):
    """Values and gradients of two documents in one row are those of the documents by themselves."""
    graphdef, params = nnx.split(model)
    x = tokens()[:1]
    cut = T // 2  # Documents of one length compile once.
    positions = jnp.concatenate([jnp.arange(cut), jnp.arange(T - cut)])[None]
    segments = jnp.concatenate([jnp.full(cut, 1), jnp.full(T - cut, 2)])[None]
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(1, T, 32)), jnp.float32)

    def loss(params, x, weights, **kw):
        features, *_ = nnx.merge(graphdef, params)(x, mask=masks.Causal(), **kw)
        return jnp.sum(features * weights), features

    grad = jax.jit(jax.grad(loss, has_aux=True))
    together, features = grad(params, x, weights, positions=positions, segment_ids=segments)
    g1, first = grad(params, x[:, :cut], weights[:, :cut])
    g2, second = grad(params, x[:, cut:], weights[:, cut:])
    np.testing.assert_allclose(features, jnp.concatenate([first, second], axis=1), rtol=0, atol=1e-5)
    # Sums of T terms, reassociated: off by no more than T times what one rounding of the parameters changes. (Where a
    # gradient is a small difference of large terms, as that of ttt_mlp's rates, it says little of its own error.)
    rng, eps = np.random.default_rng(2), np.finfo(np.float32).eps
    rounded = jax.tree.map(lambda p: p * (1 + eps * rng.choice([-1, 1], p.shape).astype(np.float32)), params)
    nearby, _ = grad(rounded, x, weights, positions=positions, segment_ids=segments)
    for a, b, c, near in zip(*map(jax.tree.leaves, (together, g1, g2, nearby)), strict=True):
        np.testing.assert_allclose(a, b + c, rtol=0, atol=T * np.abs(a - near).max() + 1e-6)


@pytest.mark.parametrize("changes", [{"unroll": 2}, {"remat": "full"}, {"remat": "dots", "unroll": 4}])
def test_scanned_unrolled_and_rematerialised_layers_agree(changes):
    x = tokens()

    def grads(model):
        graphdef, params = nnx.split(model)
        run = jax.jit(jax.grad(lambda p: jnp.sum(nnx.merge(graphdef, p)(x, mask=masks.Causal())[0] ** 2)))
        return jax.tree.leaves(run(params))

    for a, b in zip(grads(make(num_layers=4)), grads(make(num_layers=4, **changes)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * float(jnp.abs(a).max()))


def test_a_pattern_repeats_over_depth():
    model = make(mixer="attention,attention", num_layers=4)
    assert model.stack.period.names == ("0_attention", "1_attention")
    assert model.stack.period.names and model.stack.repeats == 2
    assert jax.tree.leaves(nnx.state(model.stack))[0].shape[0] == 2


def test_bfloat16_computes_in_bfloat16_and_stores_in_float32():
    model = make(dtype="bfloat16")
    features, *_ = model(tokens(), mask=masks.Causal())
    assert features.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype("float32")}
    assert model.logits(features).dtype == jnp.float32


def test_a_window_of_one_sees_only_the_token_itself():
    model = make(attention={"window": 1}, num_layers=1)
    x = tokens()
    changed = x.at[:, 3].add(1) % V
    a, b = (model(t, mask=masks.Causal())[0] for t in (x, changed))
    np.testing.assert_array_equal(a[:, 4:], b[:, 4:])
    assert not np.allclose(a[:, 3], b[:, 3])
