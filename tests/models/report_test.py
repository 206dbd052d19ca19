"""Up and down through the layers: reports, taps, edits, values by layer, and the flow from one layer to the next."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kernels import masks
from models import edits, objectives, reports
from models.block import REMAT, STREAM
from models.channels import CHANNELS
from models.lm import LM
from models.mixers import Context
from models.objectives import OBJECTIVES
from models.reports import Mean
from tests.experiments.program import program_test
from tests.models.lm_test import B, T, make, tokens
from tests.models.toy_channels import Telling

D, L = 32, 4
PATTERN = {"mixer": "attention,linear_attention", "num_layers": L, "linear_attention": {"chunk_size": 5}}
CAUSAL = masks.Causal()


def run(model, *args, **kw):
    """A jitted pass of a model."""
    graphdef, params = nnx.split(model)
    return jax.jit(lambda params: nnx.merge(graphdef, params)(*args, mask=CAUSAL, **kw))(params)


def decoded(model, **kw):
    """The same tokens read with a state."""
    graphdef, params = nnx.split(model)

    @jax.jit
    def read(params):
        made = nnx.merge(graphdef, params).for_decoding()
        return made(tokens(), mask=CAUSAL, state=made.init_state(B, T), **kw)

    return read(params)


# ==================== A dense model's program ====================
def plain(model: LM, x: jax.Array) -> jax.Array:
    """The backbone as it was before layers had reports, values of their own or a flow."""
    context = Context(jnp.arange(T)[None], None, CAUSAL)
    x = model.spec.partition.constrain(model.embed(x), STREAM)
    graphdef, params = nnx.split(model.stack.period)

    def layer(x, params):
        for block in nnx.merge(graphdef, params).blocks.values():
            x = x + block.joining(block.mixer(block.mixer_norm(x), context, None)[0])
            x = x + block.joining(block.channel(block.channel_norm(x), context)[0])
            x = block.partition.constrain(x, STREAM)
        return x, None

    if REMAT[model.stack.remat] is not None:
        layer = jax.checkpoint(layer, policy=REMAT[model.stack.remat])
    return model.norm(jax.lax.scan(layer, x, params, unroll=model.stack.unroll)[0])


@pytest.mark.parametrize("changes", [{}, {"unroll": 2, "channel": "swiglu"}, {"remat": "full"}, PATTERN], ids=str)
def test_the_program_of_a_dense_model_is_the_plain_one(changes):
    """The same StableHLO, forward and backward, letter by letter: what nobody asks for costs nothing."""
    graphdef, params = nnx.split(make(**changes))

    def lowered(features):
        def loss(params):
            return jnp.sum(features(nnx.merge(graphdef, params), tokens()) ** 2)

        return jax.jit(jax.grad(loss)).lower(params).as_text()

    ours, want = lowered(lambda model, x: model(x, mask=CAUSAL).features), lowered(plain)
    assert len(want) > 1000 and ours == want


def test_a_pass_is_no_pair():
    out = run(make(), tokens())
    assert out[0] is out.features and out.state is None and out.report == {}
    with pytest.raises(ValueError, match="too many values to unpack"):
        features, state = out


# ==================== Taps, edits, values by layer ====================
# At twice the layers of its base, a branch adds half of what it gives.
HALVED = {"num_layers": L, "unroll": 2, "parametrization": "mup", "mup": {"base_width": D, "base_layers": L // 2}}


@pytest.mark.parametrize(("changes", "share"), [(HALVED, 0.5), (PATTERN, 1.0)], ids=["halved", "pattern"])
def test_taps_show_what_every_layer_adds_and_decoding_shows_the_same(changes, share):
    model = make(**changes)
    out = run(model, tokens(), taps=("mixer", "channel", "residual"))
    found = {name: np.asarray(x) for name, x in out.report.items()}
    assert {name: x.shape for name, x in found.items()} == dict.fromkeys(("mixer", "channel", "residual"), (L, B, T, D))
    x, context = np.asarray(model.embed(tokens())), Context(jnp.arange(T)[None], None, CAUSAL)
    for i, period in enumerate(model.stack.unstack().periods):
        for j, block in enumerate(period.blocks.values()):
            at = i * len(period.names) + j
            y, _ = jax.jit(lambda x, b=block: b.mixer(b.mixer_norm(x), context))(x)
            np.testing.assert_allclose(found["mixer"][at], share * y, rtol=0, atol=1e-5)
            x = x + found["mixer"][at] + found["channel"][at]
            np.testing.assert_allclose(found["residual"][at], x, rtol=0, atol=1e-5)
    np.testing.assert_allclose(out.features, model.norm(jnp.asarray(x)), rtol=0, atol=1e-5)
    again = decoded(model, taps=("mixer", "channel", "residual")).report
    for name, x in found.items():
        np.testing.assert_allclose(again[name], x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "read", [lambda model, **kw: run(model, tokens(), **kw), decoded], ids=["training", "decoding"]
)
def test_values_by_layer_reach_their_own_layer(read):
    values = jnp.asarray(np.random.default_rng(0).normal(size=(L, D)), jnp.float32)
    put = edits.patch("values", "everywhere")
    layers = {"values": values, "everywhere": jnp.ones(L, bool)}
    out = read(make(**PATTERN), layers=layers, edits={"residual": put}, taps=("residual",))
    np.testing.assert_array_equal(out.report["residual"], jnp.broadcast_to(values[:, None, None], (L, B, T, D)))


@pytest.mark.parametrize("site", ["mixer", "channel", "residual"])
def test_a_steering_vector_is_added_to_its_site_in_its_layer_alone(site):
    """Up to its layer nothing changes; there the stream moves by the vector, or by what the channel makes of it."""
    model, v = make(**PATTERN), np.zeros((L, D), np.float32)
    v[1] = np.random.default_rng(1).normal(size=D)
    before = run(model, tokens(), taps=("mixer", "channel", "residual")).report
    after = run(
        model, tokens(), layers={"v": v}, edits={site: edits.add("v")}, taps=("mixer", "channel", "residual")
    ).report
    for name in before:
        np.testing.assert_array_equal(before[name][0], after[name][0])
    np.testing.assert_allclose(after[site][1] - before[site][1], np.broadcast_to(v[1], (B, T, D)), rtol=0, atol=1e-5)
    if site == "mixer":
        block = nnx.merge(*nnx.split(model.stack.unstack().periods[0])).blocks["1_linear_attention"]
        here = jnp.asarray(before["residual"][0] + after["mixer"][1])
        want = here + block.channel(block.channel_norm(here), None)[0]
        np.testing.assert_allclose(after["residual"][1], want, rtol=0, atol=1e-5)
    assert not np.allclose(after["residual"][2], before["residual"][2], atol=1e-2)


def test_a_patched_activation_brings_the_other_run_with_it():
    """All of a layer's stream from another text: the features are that text's. One token of it: those before stay."""
    model, clean, other = make(**PATTERN), tokens(), tokens(seed=5)
    want, base = run(model, clean, taps=("residual",)), run(model, other)
    layers = {"was": want.report["residual"], "here": jnp.zeros(L, bool).at[2].set(True)}
    put = {"residual": edits.patch("was", "here")}
    np.testing.assert_allclose(run(model, other, layers=layers, edits=put).features, want.features, rtol=0, atol=1e-5)
    one = jnp.zeros((L, 1, T, 1), bool).at[2, :, 7].set(True)
    got = run(model, other, layers=layers | {"here": one}, edits=put).features
    np.testing.assert_array_equal(got[:, :7], base.features[:, :7])
    assert not np.allclose(got[:, 7:], base.features[:, 7:], atol=1e-2)


@pytest.mark.parametrize(
    ("kw", "sentence"),
    [
        ({"taps": ("output",)}, "site 'output' is unknown; use one of mixer, channel, residual"),
        ({"edits": {"residul": edits.add("v")}}, "site 'residul' is unknown"),
        ({"layers": {"v": np.zeros((2, D))}}, r"layers\['v'\] has shape \(2, 32\); give one of \(4, ...\)"),
        ({"layers": {"v": 1.0}}, r"layers\['v'\] has shape \(\); give"),
        ({"edits": {"mixer": lambda x, layers: x[:, :1]}}, r"site 'mixer' gives shape \(2, 1, 32\); it must give"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_what_fits_no_layer_is_refused(kw, sentence):
    model = nnx.eval_shape(lambda: make(num_layers=L))
    with pytest.raises(ValueError, match=sentence):
        nnx.eval_shape(lambda model: model(tokens(), mask=CAUSAL, **kw), model)


# ==================== Reports ====================
@pytest.fixture
def telling(monkeypatch):
    monkeypatch.setitem(CHANNELS, "telling", Telling)


@pytest.mark.parametrize("changes", [{"num_layers": L, "unroll": 2}, {"remat": "full", **PATTERN}], ids=str)
def test_layers_report_in_order_of_depth_and_pass_the_flow_on(changes, telling):
    model = make(channel="telling", **changes)
    for out in (run(model, tokens()), decoded(model)):
        assert set(out.report) == {"loss", "ones", "first", "wide"}  # the flow goes to the next layer and no further up
        depth = np.arange(1, L + 1)
        np.testing.assert_array_equal(out.report["loss"], np.full(L, B * T / 4))
        np.testing.assert_array_equal(out.report["first"].value, depth)
        np.testing.assert_array_equal(out.report["wide"].total, B * T * depth[:, None] * np.array([1, 2]))


def test_a_flow_of_two_shapes_and_a_report_named_after_a_site_are_refused(telling, monkeypatch):
    model = nnx.eval_shape(lambda: make(channel="telling", **PATTERN))
    model.stack.period.blocks["1_linear_attention"].channel.carries = {"depth": (3,)}
    with pytest.raises(ValueError, match=r"flow 'depth' has the shapes \(2,\) and \(3,\)"):
        nnx.eval_shape(lambda model: model(tokens(), mask=CAUSAL), model)

    class Wrong(CHANNELS["mlp"]):
        def __call__(self, x, context):
            return super().__call__(x, context)[0], {"channel": x}

    monkeypatch.setitem(CHANNELS, "wrong", Wrong)
    model = nnx.eval_shape(lambda: make(channel="wrong"))
    with pytest.raises(ValueError, match="a channel reports 'channel', which names a site"):
        nnx.eval_shape(lambda model: model(tokens(), mask=CAUSAL), model)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_objective_drops_a_report(name, telling, monkeypatch):
    """A channel reports 1 for each token of each pass that the objective makes: all of them arrive, losses too."""
    changes = {"model__channel": "telling", "model__num_layers": 2, "objective": name}
    made = program_test.program(**changes, **({"model__self_condition": True} if name == "neodiff" else {}))
    passed, others, call = [], [], LM.__call__

    def counted(self, tokens, **kw):
        if not any(self is other for other in others):  # A companion is not trained, and its report nobody's.
            passed.append(tokens.shape[0] * tokens.shape[1])
        return call(self, tokens, **kw)

    monkeypatch.setattr(LM, "__call__", counted)
    batch = next(program_test.batches(1))

    @jax.jit
    def told(params):
        drawn = made.objective.corrupt(batch, jax.random.key(0))
        beside = {name: made.merge(params) for name in objectives.companions(made.objective)}
        others.extend(beside.values())
        more = {"companions": beside} if beside else {}
        out = made.objective.loss(made.merge(params), drawn, jax.random.key(1), **more)
        return out.report, {name: mean.weight for name, mean in out.means.items()}, jnp.sum(drawn["scored"])

    report, weights, scored = told(made.init()["params"])
    assert len(passed) == (3 if name == "neodiff" else 1) and min(passed) >= program_test.B * program_test.T
    np.testing.assert_array_equal(report["ones"].total, np.full(2, sum(passed)))
    np.testing.assert_array_equal(report["loss"], np.full(2, sum(passed) / 4))
    assert "nll" in weights and set(map(int, weights.values())) == {int(scored)}


def test_means_add_before_they_are_divided():
    a, b = Mean(jnp.asarray(6.0), jnp.asarray(2.0)), Mean(jnp.asarray(1.0), jnp.asarray(3.0))
    assert reports.add(a, b).value == 7 / 5 and Mean(jnp.zeros(()), jnp.zeros(())).value == 0
    report = {
        "loss": jnp.asarray([1.0, 2.0]),
        "share": Mean(jnp.asarray([1.0, 5.0]), jnp.asarray([2.0, 4.0])),
        "same": Mean(jnp.asarray([1.0, 5.0]), jnp.asarray(2.0)),
        "wide": Mean(jnp.ones((2, 3)), jnp.ones((2, 3))),
        "residual": jnp.zeros((2, 1, 1, 1)),
    }
    assert reports.summary(report, jnp.asarray(4.0)) == {"loss": 3 / 4, "share": 6 / 6, "same": 6 / 4}
    assert reports.with_losses(jnp.asarray(10.0), report) == 13 and reports.with_losses(1, {}) == 1
