"""Every model of the house means the same on every mesh: loss, gradients, one update and what it writes.

A part joins by being in its socket's table. One compiled step a model and mesh: Adam's first moment after one step is
the gradient, times 1 - b1.
"""

import functools

import jax
import numpy as np
import pytest

import data
from configs import base
from experiments import denoise, preflight
from experiments.errors import ConfigError
from experiments.program import build, global_batch
from experiments.sharding import make_mesh
from models.mixers import MIXERS
from models.objectives import OBJECTIVES
from models.projections import PROJECTIONS
from tests.experiments import program_test

B, T = 8, 16
TOKENIZER = data.ByteTokenizer()
MESHES = {
    "data4": {"data": 4},
    "fsdp4": {"fsdp": 4},
    "tensor4": {"tensor": 4},
    "context4": {"context": 4},
    "fsdp2 x tensor2 x context2": {"fsdp": 2, "tensor": 2, "context": 2},
}
MODELS = {
    **{name: {"model.mixer": name} for name in MIXERS},
    **{name: {"model.projection": name} for name in PROJECTIONS if name != base.get_config().model.projection},
    **{name: {"objective": name} for name in OBJECTIVES if name != base.get_config().objective},
}


def config(changes, mesh):
    made = base.get_config()
    sizes = {
        "model": {"width": 32, "num_layers": 1, "num_heads": 4, "vocab_multiple": 4},
        "data": {"length": T, "batch_size": B},
        "optimizer": {"clip": 0.0, "eps": 1e-3, "warmup": 0.0, "schedule": "constant"},
        "generate": {"max_tokens": 6, "temperature": 0.0},
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1, "context": 1, **mesh},
    }
    made.update(sizes)
    made.update_from_flattened_dict(changes)
    return made.lock()


def batch():
    """Rows of two documents each and some padding, with unequal numbers of targets."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 255, (B, T + 1)).astype(np.int32)
    at, cut, end = np.arange(T)[None], rng.integers(1, T, (B, 1)), rng.integers(T - 3, T + 1, (B, 1))
    segments = np.where(at < end, np.where(at < cut, 1, 2), 0).astype(np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "mask": (segments > 0) & (at != cut - 1) & (rng.random((B, T)) < rng.random((B, 1))),
        "positions": np.where(at < cut, at, at - cut).astype(np.int32),
        "segment_ids": segments,
    }


def outcome(changes, mesh):
    """What one step makes of the state, its metrics, each row's nats in evaluation, and a greedy continuation."""
    made = config(changes, mesh)
    devices = jax.devices()[: int(np.prod(list(mesh.values())))]
    program = build(made, vocab_size=TOKENIZER.vocab_size, mesh=make_mesh(made, devices))
    state, placed = program.init(), global_batch(batch(), program)
    text = denoise.generator(program, TOKENIZER)(state["params"], ["ab", "c"], made.generate.to_dict())
    nats = jax.jit(lambda params: program.objective.row_nll(program.merge(params), placed, jax.random.key(1)))
    rows = jax.device_get(nats(state["params"]))
    state, metrics = program.train_step()(state, placed)
    return jax.device_get((state, metrics, rows)), text


@functools.cache
def alone(model):
    return outcome(MODELS[model], {"data": 1})


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", MODELS)
def test_sharded_equals_unsharded(model, mesh):
    try:
        preflight.check(config(MODELS[model], MESHES[mesh]), num_devices=int(np.prod(list(MESHES[mesh].values()))))
    except ConfigError as refused:
        able = getattr(MIXERS[MODELS[model].get("model.mixer", "attention")], "context_parallel", False)
        assert "context" in MESHES[mesh] and "mesh.context" in str(refused)
        assert not able or MODELS[model].get("objective") == "block_diffusion", refused
        return
    (numbers, text), (want, said) = outcome(MODELS[model], MESHES[mesh]), alone(model)
    program_test.assert_close(want, numbers, 1e-5)
    assert text == said
