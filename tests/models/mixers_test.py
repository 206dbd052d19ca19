"""Mixers that learn along the row: cut over devices, counted, with a state that does not grow."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from configs import base, long_context
from experiments import preflight
from experiments.program import build, counting
from experiments.program.sharding import make_mesh
from kernels import masks
from models.mixers import MIXERS, Context
from models.partition import Partition
from models.spec import Spec
from tests import parts
from tests.models.lm_test import make, tokens

GROWING = tuple(name for name, mixer in MIXERS.items() if getattr(mixer, "grows", False))
LEARNING = tuple(name for name in MIXERS if name not in GROWING)


def spec(name, *, width=16, heads=4, partition=Partition(), dtype="float32", **group):  # noqa: B008 (immutable)
    config = base.get_config().model
    config.update({"width": width, "num_heads": heads, "init": "fan_in", "dtype": dtype, "param_dtype": dtype})
    config.update({name: group})
    return Spec.from_config(config.to_dict(), vocab_size=7, partition=partition)


@pytest.mark.parametrize("name", ["lact", "ttt_linear", "gated_delta"])  # the others share their regions
def test_cut_over_devices_equals_one_device(name, x64):
    """Rows forward and backward, then a ragged prompt, with rows on `data` and heads on `tensor`."""
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    rules = (("batch", ("data",)), ("heads", ("tensor",)))
    B, T = 2, 8
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, 16)))

    def run(partition):
        group = {key: 3 if key in ("chunk_size", "mini_batch") else size for key, size in parts.small(name).items()}
        made = MIXERS[name](spec(name, partition=partition, dtype="float64", **group), rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(made)

        @jax.jit
        def both(params, x):
            def loss(params, x):
                context = Context(jnp.arange(T)[None], None, masks.Causal())
                return jnp.sum(jnp.sin(nnx.merge(graphdef, params)(x, context)[0]))

            mixer = nnx.merge(graphdef, params)
            step = Context(jnp.asarray([[0, 1, 2, 3], [0, 1, -1, -1]]), None, masks.Causal())
            out, state = mixer(x[:, :4], step, mixer.init_state(B, T))
            return jax.grad(loss, argnums=(0, 1))(params, x), out[:, :2], state

        return both(params, x)

    for a, b in zip(*map(jax.tree.leaves, (run(Partition()), run(Partition(mesh, rules)))), strict=True):
        # Sums over devices in another order, in float64.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1, float(jnp.abs(a).max())))


def test_a_pattern_of_mixers_with_pattention_runs_in_bfloat16():
    changes = {"num_layers": 2, "projection": "pattention", **parts.group("lact"), **parts.group("ttt_linear")}
    graphdef, params = nnx.split(make("lact, ttt_linear", dtype="bfloat16", **changes))
    out = jax.jit(lambda p: nnx.merge(graphdef, p)(tokens(), mask=masks.Causal())[0])(params)
    assert out.dtype == jnp.bfloat16 and bool(jnp.all(jnp.isfinite(out)))


def test_rematerialised_layers_of_lact_agree():
    """A chunk scan with gradients of its own inside a checkpoint: the same gradients when all is computed again."""
    found, x, ids = {}, tokens(shape=(1, 11)), jnp.asarray([[1] * 6 + [2] * 5])
    for remat in ("none", "full"):
        graphdef, params = nnx.split(make("lact", remat=remat, **parts.group("lact")))

        def loss(params, graphdef=graphdef):
            out, *_ = nnx.merge(graphdef, params)(x, mask=masks.Causal(), segment_ids=ids)
            return jnp.sum(jnp.sin(out))

        found[remat] = jax.jit(jax.grad(loss))(params)
    for a, b in zip(*map(jax.tree.leaves, found.values()), strict=True):
        # The same operations in another program.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(1e-3, float(jnp.abs(b).max())))


@pytest.mark.parametrize("name", LEARNING)
def test_cost_grows_linearly_to_64k(name):
    """FLOPs of the program that is compiled, forward and backward, at 8k, 16k, 32k and 64k tokens, within 2%.

    The compiler counts the body of a loop once, so loops are counted here, as often as they turn. Where their turns do
    not divide into groups for the backward pass, the last ones that are skipped count too (3% at mini-batch 16).
    """
    group = {"lact": {"chunk_size": 1024, "window": 1024, "rank": 0}, "ttt_mlp": {"mini_batch": 8}}.get(name, {})
    mixer = nnx.eval_shape(lambda: MIXERS[name](spec(name, width=32, heads=2, **group), rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(mixer)
    found = {}
    for length in (8192, 16384, 32768, 65536):

        def loss(params, x, graphdef=graphdef, length=length):
            context = Context(jnp.arange(length)[None], None, masks.Causal())
            return jnp.sum(nnx.merge(graphdef, params)(x, context)[0])

        x = jax.ShapeDtypeStruct((1, length, 32), jnp.float32)
        found[length] = products(jax.make_jaxpr(jax.grad(loss))(params, x).jaxpr) / length
    first = found[8192]
    assert first > 0 and all(abs(each / first - 1) < 0.02 for each in found.values()), found


def products(jaxpr):
    """FLOPs of the matrix products of a program, loops counted as often as they turn, the dearer branch of two."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = [getattr(p, "jaxpr", p) for v in eqn.params.values() for p in (v if isinstance(v, tuple) else (v,))]
        counts = [products(j) for j in inner if hasattr(j, "eqns")]
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
        elif eqn.primitive.name == "cond":
            total += max(counts)
        elif eqn.primitive.name == "scan":
            total += eqn.params["length"] * sum(counts)
        else:
            total += sum(counts)
    return total


@pytest.mark.parametrize("name", MIXERS)
def test_the_state_grows_with_the_text_only_where_the_mixer_says_so(name):
    mixer = nnx.eval_shape(lambda: MIXERS[name](spec(name, **parts.small(name)), rngs=nnx.Rngs(0)))
    short, long = (nnx.eval_shape(lambda m, n=n: m.init_state(1, n), mixer) for n in (64, 65536))
    size = lambda state: sum(x.size for x in jax.tree.leaves(state))  # noqa: E731
    if name in GROWING:
        assert size(short) < size(long)
    else:
        assert jax.tree.map(jnp.shape, short) == jax.tree.map(jnp.shape, long)


def test_state_bytes_by_hand():
    """Two layers of attention keep keys and values of every token; each token's slot also has its position."""
    for preset, each in (("attention", 2 * 2048 * 128 * 4), ("linear_attention", 4 * 32 * 32 * 4 + 4)):
        config = long_context.get_config(preset).lock()
        made = build(config, vocab_size=259, mesh=make_mesh(config, jax.devices()[:1]))
        assert counting.state_bytes(made) == 2 * each + 4 * 2048 + 4


def memory(mixer, spec):
    """Numbers in what one layer learns or accumulates: maps of a fast network, or a memory."""
    state = nnx.eval_shape(lambda: mixer(spec, rngs=nnx.Rngs(0)).init_state(1, 64))
    if hasattr(state, "fast"):
        return sum(w.size for w in state.fast.carry.main)
    return sum(w.size for w, _ in state.layers) if hasattr(state, "layers") else state.memory.size


def test_presets_for_long_context_are_equal_in_what_their_table_says():
    sizes, flops = {}, {}
    for preset in long_context.PRESETS:
        config = long_context.get_config(preset).lock()
        made = build(config, vocab_size=259, mesh=make_mesh(config, jax.devices()[:1]))
        sizes[preset], flops[preset] = counting.parameters(made)["total"], counting.flops_per_token(made)["total"]
        cells = next(line.split("|") for line in long_context.__doc__.splitlines() if line.startswith(f"| {preset} "))
        assert [int(cells[2]), int(cells[3].replace(",", ""))] == [config.model.mlp.hidden, counting.state_bytes(made)]
        assert cells[4].split()[0] == f"{flops[preset] / 1e6:.2f}"
        if preset.endswith("-state"):
            assert 1 <= memory(MIXERS[config.model.mixer], made.spec) / 128**2 < 1.01
    assert max(sizes.values()) / min(sizes.values()) < 1.001
    for mixer in long_context.EQUAL_FLOPS:
        steps = long_context.get_config(f"{mixer}-flops").train.steps
        assert steps * flops[mixer] == pytest.approx(2000 * flops["attention"], rel=1e-3)
        cells = next(line.split("|") for line in long_context.__doc__.splitlines() if line.startswith(f"| {mixer} "))
        assert int(cells[5]) == steps


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"objective": "masked_diffusion"}, "model.mixer='lact' is causal and objective='masked_diffusion' is not"),
        (
            {"model.mixer": "ttt_linear", "mesh.context": 2, "mesh.data": 1},
            "mesh.context=2: model.mixer='ttt_linear' can",
        ),
        ({"model.num_kv_heads": 2}, "model.num_kv_heads=2 is for attention, .* use model.num_kv_heads=0"),
        ({"model.lact.heads": 3}, "model.lact.heads=3 must divide the 128 channels .* model.lact.heads=2"),
        (
            {"model.lact.heads": 2, "mesh.tensor": 4, "mesh.data": 1},
            "model.lact.heads=2 .* use e.g. model.lact.heads=4",
        ),
        ({"model.lact.chunk_size": 2048}, "model.lact.chunk_size=2048 leaves no token .* model.lact.chunk_size=512"),
        ({"model.lact.window": 0}, "model.lact.window=0 must be at least 1"),
        ({"model.lact.normalize": "pots"}, "model.lact.normalize='pots' is unknown; did you mean 'post'"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_what_does_not_go_together_is_refused(changes, sentence):
    config = long_context.get_config("lact")
    for key, value in changes.items():
        config.update_from_flattened_dict({key: value})
    devices = max(1, config.mesh.context * config.mesh.tensor)
    with pytest.raises(preflight.ConfigError, match=sentence):
        preflight.check(config, num_devices=devices)
