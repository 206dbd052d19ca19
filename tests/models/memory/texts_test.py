"""Policies as memories of the engine: rows do not meet, heads lie on 2 or 4 devices, and what cannot be is told."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import data
from configs import base, transformer
from experiments import preflight
from experiments.generation.decoder import Decoder
from experiments.generation.text import Generator
from experiments.program import build
from experiments.program.sharding import make_mesh
from experiments.settings import smoke
from experiments.settings.errors import ConfigError
from models.decoding import parts as sockets
from models.decoding import stream
from models.mixers.memory import MEMORIES, group
from tests.experiments.generation.generate_test import OPTIONS, PROMPTS, made
from tests.models.decoding import stream_test

SMALL = {
    "h2o": {"budget": 6.0, "recent": 2.0}, "keyformer": {"budget": 6.0, "recent": 2.0}, "tova": {"budget": 6.0},
    "streaming": {"budget": 6.0, "sinks": 2}, "snap": {"budget": 6.0, "window": 2}, "elastic": {"sinks": 1},
    "ems": {"budget": 6.0, "recent": 2.0, "window": 2}, "quest": {"budget": 4.0, "page": 2, "least": 1},
    "token_select": {"budget": 2.0, "initial": 1, "local": 2}, "a2sf": {"budget": 6.0, "recent": 2.0},
    "scissorhands": {"budget": 6.0, "recent": 2.0, "window": 4}, "random": {"budget": 6.0, "recent": 2.0},
    "pyramid": {"budget": 6.0, "window": 2}, "prefix_kv": {"sinks": 1},
    "token_select again": {"budget": 2.0, "initial": 1, "local": 2, "least": 0.5},
}  # fmt: skip
SAMPLE = ("h2o", "elastic", "ems", "quest", "token_select again")


def policies(*sample):
    """Every policy, of which the tests always run a sample."""
    rest = sorted({*SMALL} - {*sample})
    return [*sample, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in rest)]


def asked(case, **more):
    name = case.split()[0]
    options = stream_test.DEFAULTS | {"memory": name, "max_tokens": 24} | more
    return options | {group(name): options[group(name)] | SMALL[case]}


@functools.cache
def program(name):
    """A jitted `(texts, lengths) -> Progress` of eight rows, whose prompts are read in one pass."""
    options = asked(name)
    parts = sockets.make([options], stream_test.DEFAULTS, vocab_size=stream_test.V)
    graphdef, params = stream_test.model("gqa")

    @jax.jit
    def go(params, text, length, key):
        models = {"model": nnx.merge(graphdef, params).for_decoding()}
        given = (text, length, length + 8, key)
        p = stream.begin(models, parts, *given, sockets.dials([options] * 8, parts), capacity=40)
        return stream.extend(models, stream.read(models, p, parts, 17, fresh=True), parts, 100)

    return functools.partial(go, params)


def eight():
    """Prompts of different lengths, their lengths and the keys of their draws."""
    text, key = (
        jnp.concatenate([x(seed) for seed in range(3)])[:8] for x in (stream_test.prompts, stream_test.key_data)
    )
    return text, jnp.tile(jnp.asarray(stream_test.LENGTH), 3)[:8], key


@pytest.mark.parametrize("name", policies("streaming", *SAMPLE))
def test_a_row_is_the_same_bits_whatever_the_others_hold(name):
    text, length, key = eight()
    first = program(name)(text, length, key)
    order = jnp.asarray([2, 0, 1, 7, 6, 3, 4, 5])
    turned = program(name)(text[order], length[order], key[order])
    rest = jnp.arange(8) != 2
    other = program(name)(jnp.where(rest[:, None], 3, text), jnp.where(rest, 2, length), key)
    for a, b in zip(*map(jax.tree.leaves, (first, turned)), strict=True):
        np.testing.assert_array_equal(a[order], b)
    for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True):
        np.testing.assert_array_equal(a[2], b[2])
    assert (first.length == length + 8).all()


@pytest.mark.parametrize("name", policies("ems"))
def test_a_row_alone_writes_what_it_writes_among_eight(name):
    """One row goes through the loop without the row's dimension: other products, the same tokens."""
    text, length, key = eight()
    many, one = program(name)(text, length, key), program(name)(text[2:3], length[2:3], key[2:3])
    count = int(length[2]) + 8
    assert int(one.length[0]) == count
    np.testing.assert_array_equal(one.text[0, :count], many.text[2, :count])


@functools.cache
def generator(tensor):
    config = smoke.shrink(transformer.get_config("tiny"))
    config.model.init, config.model.init_std, config.mesh.data, config.mesh.tensor = "fan_in", 0.5, 1, tensor
    config.model.vocab_multiple, config.model.num_heads = 4, 4
    ready = build(config.lock(), vocab_size=259, mesh=make_mesh(config, jax.devices()[:tensor]))
    return Generator(ready, data.ByteTokenizer()), ready.init()["params"]


@pytest.mark.parametrize("devices", [4, pytest.param(2, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", policies("h2o", "prefix_kv", "token_select again"))
def test_heads_on_several_devices_give_the_same_text(name, devices):
    options = asked(name, temperature=0.0, max_tokens=16)
    one, many = (maker(params, PROMPTS[:2], options, seed=5) for maker, params in map(generator, (1, devices)))
    assert one == many and any(one)


def test_heads_on_two_devices_choose_their_own_pages():
    options = asked("quest", temperature=0.0, max_tokens=16)
    one, two = (maker(params, PROMPTS[:2], options, seed=5) for maker, params in map(generator, (1, 2)))
    assert one == two and any(one)


def test_what_cannot_be_is_told_in_a_sentence():
    def told(name, group, **options):
        asked = base.get_config().generate.to_dict() | {"memory": name} | options
        asked[name] = asked[name] | group
        with pytest.raises(ConfigError) as error:
            preflight.check_generation(asked, tables=True)
        return str(error.value)

    assert "generate.h2o.budget=8.0 is less than the sinks and recent tokens" in told("h2o", {"budget": 8.0})
    assert "use e.g. generate.h2o.budget=34" in told("h2o", {"budget": 33.0, "sinks": 2})
    assert "generate.tova.budget=1.5 is neither a number of tokens nor a share" in told("tova", {"budget": 1.5})
    assert "are a share and a number of tokens" in told("h2o", {"budget": 0.2})
    assert "generate.snap.kernel=4 has no middle; use generate.snap.kernel=5" in told("snap", {"kernel": 4})
    assert "generate.a2sf.alpha=1.5" in told("a2sf", {"alpha": 1.5})
    assert "generate.streaming.budget=3.0 is less than the sinks" in told("streaming", {"budget": 3.0})
    assert "generate.prefix_kv.ratio=1.5" in told("prefix_kv", {"ratio": 1.5})


def test_a_model_without_keys_and_sizes_that_do_not_fit_are_refused():
    options = OPTIONS | {"memory": "h2o"}
    assert "model.mixer='gated_delta' keeps none; use generate.memory='full'" in " ".join(
        preflight.memory_problems(options, "gated_delta")
    )
    assert not list(preflight.memory_problems(options, "gated_delta, attention"))
    decoder = Decoder(made()[0], None)
    with pytest.raises(ConfigError, match="generate.h2o.bytes leaves 0 tokens a layer, and 32 always stay"):
        decoder.parts([options | {"h2o": options["h2o"] | {"bytes": 100}}])
    with pytest.raises(ConfigError, match="generate.prefix_kv.shares has 3 numbers and the model"):
        decoder.parts([
            options | {"memory": "prefix_kv", "prefix_kv": options["prefix_kv"] | {"shares": "0.1,0.2,0.3"}}
        ])  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(MEMORIES) - {"full", "window"}))
def test_a_state_has_the_batch_in_front_of_every_leaf(name):
    options = asked(name) if name in SMALL else stream_test.DEFAULTS | {"memory": name}
    parts = sockets.make([options], stream_test.DEFAULTS, vocab_size=stream_test.V)
    graphdef, params = stream_test.model("gqa")
    state = jax.eval_shape(lambda p: nnx.merge(graphdef, p).for_decoding().init_state(5, 40, parts.memory), params)
    assert {x.shape[0] for x in jax.tree.leaves(state)} == {5}
