"""Pattention as a part: its sizes, its frozen tau, its router, and the whole layer against the formulas in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from configs import base, tokenformer, transformer
from experiments.program import build, counting, optimizers
from experiments.program.sharding import make_mesh
from kernels import masks
from models.block import Block
from models.channels import PattentionChannel
from models.mixers import Context
from models.partition import Partition
from models.pattention import Pattention, top_mask
from models.spec import Spec
from tests.experiments.program import program_test

V = 17


def spec(partition=Partition(), **changes):  # noqa: B008 (immutable)
    config = base.get_config().model
    config.update({"width": 32, "num_layers": 2, "num_heads": 4, "projection": "pattention", "channel": "pattention"})
    config.update(changes)
    return Spec.from_config(config.to_dict(), vocab_size=V, partition=partition)


def test_tokens_follow_the_role_of_the_map():
    def counts(module):
        names = ("q", "k", "v", "out", "map", "up", "down")
        return {name: getattr(module, name).keys.shape[0] for name in names if hasattr(module, name)}

    block = Block(spec(pattention={"tokens": 24}), "attention", rngs=nnx.Rngs(0))
    assert counts(block.mixer) == {"q": 24, "k": 24, "v": 24, "out": 24} and counts(block.channel) == {"map": 96}
    block = Block(spec(channel="mlp", pattention={"channel_tokens": 40}), "attention", rngs=nnx.Rngs(0))
    assert counts(block.mixer)["q"] == 32, "0 = the width"
    assert counts(block.channel) == {"up": 40, "down": 40}
    assert isinstance(Block(spec(projection="dense"), "attention", rngs=nnx.Rngs(0)).channel, PattentionChannel)


def test_initial_values_are_the_published_ones():
    made = Pattention(spec(width=256, num_layers=3), 256, 256, axes=("embed", "heads"), rngs=nnx.Rngs(0))
    keys, values, count = made.keys[...], made.values[...], 256 * 256
    for array, std in ((keys, 0.02), (values, 2 / (3 * 16))):  # a standard deviation's own is std / sqrt(2 count)
        assert abs(float(jnp.std(array)) / std - 1) < 5 / math.sqrt(2 * count)
    assert float(made.tau[...]) == 16.0


def test_a_whole_layer_equals_the_formulas(x64):
    """LayerNorm without parameters, four maps, partial rotation by halves, causal softmax, one map with 4 P tokens."""
    made = spec(
        norm="layernorm", norm_scale=False, norm_eps=1e-5, dtype="float64", param_dtype="float64",
        attention={"rope_fraction": 0.5}, pattention={"tokens": 20},
    )  # fmt: skip
    T, N, H = 7, 4, 8
    block = Block(made, "attention", rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(1, T, 32))
    got, *_ = block(jnp.asarray(x), Context(jnp.arange(T)[None], None, masks.Causal()))

    erf = np.vectorize(math.erf)

    def patt(part, x):
        a = x @ np.asarray(part.keys[...]).T
        z = a * math.sqrt(a.shape[-1]) / np.linalg.norm(a, axis=-1, keepdims=True)
        return (z * (1 + erf(z / math.sqrt(2))) / 2) @ np.asarray(part.values[...])

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def rotate(x):  # [T, N, H], the first half of H
        angle = np.arange(T)[:, None, None] * 10000.0 ** (-np.arange(0, 4, 2) / 4)
        a, b, rest = x[..., :2], x[..., 2:4], x[..., 4:]
        return np.concatenate(
            [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle), rest], axis=-1
        )

    h = norm(x[0])
    q, k, v = (patt(part, h).reshape(T, N, H) for part in (block.mixer.q, block.mixer.k, block.mixer.v))
    scores = np.einsum("tnh,snh->nts", rotate(q), rotate(k)) / math.sqrt(H)
    scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("nts,snh->tnh", p / p.sum(-1, keepdims=True), v).reshape(T, N * H)
    y = x[0] + patt(block.mixer.out, mixed)
    want = y + patt(block.channel.map, norm(y))
    np.testing.assert_allclose(got[0], want, rtol=0, atol=1e-12 * np.abs(want).max())


def assert_only_tau_stays(roles, before, *after):
    """Bit for bit; the maps q, k, v, o and of the channel, each with all layers."""
    roles = jax.tree.leaves(roles)
    assert roles.count("frozen") == 5
    for role, old, *new in zip(roles, *map(jax.tree.leaves, (before, *after)), strict=True):
        assert {np.array_equal(old, n) for n in new} == {role == "frozen"}, role


SIZES = {"tokens": 11, "channel_tokens": 40, "q_tokens": 5, "k_tokens": 6, "v_tokens": 7, "o_tokens": 8,
         "up_tokens": 30, "down_tokens": 20}  # fmt: skip


@pytest.mark.parametrize("channel", ["mlp", "swiglu", "pattention"])
@pytest.mark.parametrize("mixer", ["attention", "ttt_linear", "linear_attention", "gated_delta", "lact"])
def test_every_map_has_the_tokens_that_its_key_says(mixer, channel):
    """The released layer has other numbers for q, k, v than for the map back; 0 is one number for all, as before."""
    changes = {"model__projection": "pattention", "model__channel": channel, "model__mixer": mixer}
    keys = {f"model__pattention__{name}": P for name, P in SIZES.items()}
    one = {"model__pattention__tokens": 11, "model__pattention__channel_tokens": 40}
    gated = {"model__ttt_linear__gate": True}

    def counts(**sizes):
        params = program_test.program(**changes, **gated, **sizes).abstract["params"]
        block = params["stack"]["period"][f"0_{mixer}"]
        is_map = lambda part: isinstance(part, dict) and "keys" in part  # noqa: E731
        shapes = ({k: v["keys"].shape[1] for k, v in block[part].items() if is_map(v)} for part in ("mixer", "channel"))
        return tuple(shapes)

    of_mixer, of_channel = counts(**keys)
    assert of_mixer.pop("gate", 11) == 11 and of_mixer == {"q": 5, "k": 6, "v": 7, "out": 8}
    want = {"mlp": {"up": 30, "down": 20}, "swiglu": {"gate": 30, "up": 30, "down": 20}, "pattention": {"map": 40}}
    assert of_channel == want[channel]
    of_mixer, of_channel = counts(**one)
    assert set(of_mixer.values()) == {11} and set(of_channel.values()) == {40}


PARTS = {"model__projection": "pattention", "model__channel": "pattention", "model__pattention__tokens": 11}


def test_training_and_averaging_leave_tau_alone():
    made = program_test.program(**PARTS, optimizer__weight_decay=0.5, optimizer__ema=0.9)
    before = made.init()["params"]
    after, _ = program_test.run(made, 3)
    assert_only_tau_stays(made.roles, before, after["params"], after["ema"])


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_no_optimizer_moves_tau(name):
    """Whatever gradient it is given."""
    made = program_test.program(**PARTS, optimizer__name=name, optimizer__weight_decay=0.5)
    params = jax.tree.map(lambda p: jnp.full(p.shape, 0.37, p.dtype), made.abstract["params"])

    @jax.jit
    def step(params, state):
        updates, state = made.optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    after, state = params, made.optimizer.init(params)
    for _ in range(3):
        after, state = step(after, state)
    assert_only_tau_stays(made.roles, params, after, made.evaluation_params({"optimizer": state, "params": after}))


@pytest.mark.parametrize("by", ["score", "magnitude"])
def test_the_router_keeps_the_top_r(by):
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    keys = jax.random.normal(jax.random.key(1), (30, 8))
    mask = np.asarray(top_mask(x, keys, 7, by=by))
    assert (mask.sum(-1) == 7).all()
    scores = np.asarray(x @ keys.T)
    scores = np.abs(scores) if by == "magnitude" else scores
    assert (np.where(mask, scores, np.inf).min(-1) > np.where(mask, -np.inf, scores).max(-1)).all()


def test_a_router_that_keeps_all_is_none_and_a_dropped_token_is_as_if_absent():
    x = jax.random.normal(jax.random.key(0), (2, 5, 32))

    def make(**options):
        made = spec(pattention={"tokens": 24, **options})
        return Pattention(made, 32, 16, axes=("embed", "heads"), rngs=nnx.Rngs(0))

    every, all_of_them, routed = make(), make(top_r=24), make(top_r=10)
    np.testing.assert_array_equal(every(x), all_of_them(x))
    assert not np.allclose(every(x), routed(x))
    for b, t in ((0, 0), (1, 3)):
        mask = top_mask(x[b, t], every.keys[...], 10)
        alone = make()
        alone.keys, alone.values = (nnx.Param(a[...][mask]) for a in (every.keys, every.values))  # tau of all 24
        np.testing.assert_allclose(routed(x)[b, t], alone(x)[b, t], rtol=0, atol=24 * 2.0**-23)


@pytest.mark.parametrize(
    "options", [{}, {"top_r": 12}, {"normalization": "gelu_l2"}, {"normalization": "softmax"}], ids=str
)
@pytest.mark.parametrize("shape", [(1, 1, 4), (2, 2, 2)], ids=str)
def test_cut_over_devices_equals_one_device(shape, options, x64):
    """Values and gradients with P on `tensor`, widths on `fsdp`, rows on `data` and `fsdp`."""
    mesh = Mesh(np.asarray(jax.devices()[: math.prod(shape)]).reshape(shape), ("data", "fsdp", "tensor"))
    rules = (("batch", ("data", "fsdp")), ("sequence", ()), ("embed", ("fsdp",)), ("tokens", ("tensor",)))
    double = {"dtype": "float64", "param_dtype": "float64", "pattention": {"tokens": 24, **options}}
    x = jax.random.normal(jax.random.key(0), (4, 6, 32), jnp.float64)

    def grads(partition):
        made = Pattention(spec(partition, **double), 32, 16, axes=("embed", "heads"), rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(made)

        @jax.jit
        def run(params, x):
            loss = lambda params, x: jnp.sum(jnp.sin(nnx.merge(graphdef, params)(x)))  # noqa: E731
            return jax.value_and_grad(loss, argnums=(0, 1))(params, x)

        return run(params, x)

    for a, b in zip(*map(jax.tree.leaves, (grads(Partition()), grads(Partition(mesh, rules)))), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * max(1, float(jnp.abs(a).max())))


def test_an_axis_that_cuts_tokens_and_batch_is_refused():
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("fsdp",))
    with pytest.raises(ValueError, match="sharding.tokens.*'fsdp' already cuts the batch; use sharding.tokens="):
        PattentionChannel(spec(Partition(mesh, (("batch", ("fsdp",)), ("tokens", ("fsdp",))))), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("preset", tokenformer.PRESETS)
def test_presets_have_the_parameters_of_the_formula_and_of_the_table(preset):
    L, D, _, n = tokenformer.PRESETS[preset].changes
    formula = 2 * L * D * (4 * n + 4 * n)
    config = tokenformer.get_config(preset).lock()
    made = build(config, vocab_size=259, mesh=make_mesh(config, jax.devices()[:1]))
    assert counting.parameters(made)["non_embedding"] == formula + 2 * D  # the last norm's weight and bias
    flops = counting.flops_per_token(made)
    assert flops["matmul"] == 6 * (formula + made.spec.V * D)
    T = config.data.length
    assert flops["context"] == pytest.approx(3 * 4 * L * D * (T + 1) / 2)
    cells = next(line.split("|") for line in tokenformer.__doc__.splitlines() if line.startswith(f"| {preset} "))
    assert [int(c) for c in cells[2:7]] == [L, D, config.model.num_heads, n, T]
    digits = len(cells[7].split()[0].split(".")[1])
    assert cells[7].split()[0] == f"{formula / 1e6:.{digits}f}"


def test_tiny_is_of_the_size_of_the_tiny_transformer():
    sizes = []
    for config in (tokenformer.get_config("tiny").lock(), transformer.get_config("tiny").lock()):
        made = build(config, vocab_size=259, mesh=make_mesh(config, jax.devices()[:1]))
        sizes.append(counting.parameters(made)["total"])
        assert config.train.steps == 2000 and config.data.length == 128 and config.data.batch_size == 16
    assert abs(sizes[0] / sizes[1] - 1) < 0.02
