"""Decoding reads the layers where they lie: no second copy of their parameters, and a step may still have them."""

import ctypes
import gc
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.generation.engine import Engine
from experiments.generation.layers import cut, views, whole
from tests.experiments.generation.generate_test import generator


def resident():
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_the_layers_of_128_mib_take_no_room_of_their_own():
    stack = jax.block_until_ready(jax.jit(lambda: jnp.ones((8, 2048, 2048)).at[3].set(3.0))())
    params = {"stack": {"period": {"kernel": stack}}, "norm": jnp.ones(4)}
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # What earlier tests gave back is no room for copies that nobody sees.
    before = resident()
    weights = cut(params)
    total = jax.jit(lambda layers: sum(layer["kernel"].sum() for layer in layers))(weights["layers"])
    assert float(total) == (7 + 3) * 2048 * 2048 and weights["rest"]["norm"] is params["norm"]
    assert resident() - before < 32 << 20, "a fourth of a copy; the program itself takes a few MiB"
    copied = jax.block_until_ready([jnp.array(layer["kernel"], copy=True) for layer in weights["layers"]])
    assert resident() - before > 96 << 20, "copies would have been seen"
    assert len(copied) == 8


@pytest.mark.parametrize(("dtype", "devices"), [("float32", 1), ("bfloat16", 4)])
def test_views_lie_in_the_buffers_of_the_stack_on_every_device(dtype, devices):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("d",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, "d"))
    make = jax.jit(lambda: jnp.arange(3 * 64 * 128, dtype=dtype).reshape(3, 64, 128), out_shardings=sharding)
    stack = make()
    layers = views(stack)
    for i, layer in enumerate(layers):
        np.testing.assert_array_equal(np.asarray(layer, np.float32), np.asarray(make(), np.float32)[i])
        for part, of in zip(layer.addressable_shards, stack.addressable_shards, strict=True):
            at = of.data.unsafe_buffer_pointer() + i * part.data.nbytes
            assert part.data.unsafe_buffer_pointer() == at and part.device == of.device
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    after = step(stack)  # Somebody reads the old numbers: they stay.
    np.testing.assert_array_equal(np.asarray(layers[2], np.float32), np.asarray(make(), np.float32)[2])
    del layers, layer, part, of, stack
    gc.collect()
    again = views(after)
    del again
    gc.collect()
    step(after)
    assert after.is_deleted(), "once nobody looks, the buffer is given away"


def test_the_programs_of_decoding_copy_no_layer():
    """Temporaries of rounds are less than half of the layers' parameters, which are arguments."""
    maker, params = generator()
    trained = types.SimpleNamespace(
        config=maker.program.config, program=maker.program, params=params, tokenizer=maker.tokenizer
    )
    engine = Engine(trained, lanes=2, capacity=64)
    engine.generate(["a"], max_tokens=2)
    layers = sum(leaf.nbytes for leaf in jax.tree.leaves(engine.weights["model"]["layers"]))
    held = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params["stack"])}
    first = jax.tree.leaves(engine.weights["model"]["layers"][0])
    assert {leaf.unsafe_buffer_pointer() for leaf in first if leaf.nbytes >= 64} <= held
    given = (engine.weights, engine._lanes, np.int32(4), np.int32(9), np.ones(2, bool))
    compiled = engine.decoder.extend.lower(*given, parts=engine._parts).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < layers / 2
    assert jax.tree.all(jax.tree.map(np.array_equal, whole(engine.weights["model"]), dict(params)))
