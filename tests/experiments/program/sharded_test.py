"""Every model of the house means the same on every mesh: loss, gradients, one update and what it writes.

A part joins by being in its socket's table. One compiled step a model and mesh: Adam's first moment after one step is
the gradient, times 1 - b1.
"""

import functools

import jax
import numpy as np
import pytest

import data
from configs import base, diffusion
from experiments import generation, preflight
from experiments.program import build, global_batch
from experiments.program.sharding import make_mesh
from experiments.settings import keys
from experiments.settings.errors import ConfigError
from models.channels import CHANNELS
from models.mixers import MIXERS
from models.objectives import OBJECTIVES
from models.projections import PROJECTIONS
from models.segments.segmenters import SEGMENTERS
from tests import parts
from tests.experiments.program import program_test

B, T = 8, 16
TOKENIZER = data.ByteTokenizer()
MESHES = {
    "data4": {"data": 4},
    "fsdp4": {"fsdp": 4},
    "tensor4": {"tensor": 4},
    "context4": {"context": 4},
    "fsdp2 x tensor2 x context2": {"fsdp": 2, "tensor": 2, "context": 2},
    "data2 x fsdp2 x tensor2": {"data": 2, "fsdp": 2, "tensor": 2},
}  # With all axes together the stream is cut over tensor as well.
MODELS = {
    **{name: {"model.mixer": name} for name in MIXERS},
    **{f"channel={name}": {"model.channel": name} for name in CHANNELS if name != base.get_config().model.channel},
    **{name: {"model.projection": name} for name in PROJECTIONS if name != base.get_config().model.projection},
    **{name: keys.flatten(made.changes) for name, made in diffusion.PRESETS.items()},
}
MODELS |= {
    f"segments={name}": {
        "model.kind": "segmented", "model.segmented.segmenter": name, "model.segmented.width": 16,
        "model.segmented.window": 8, "model.segmented.least": 2, "model.segmented.documents": 2,
    }
    for name in SEGMENTERS
}  # fmt: skip
MODELS["segments=words, attention"] = MODELS["segments=words"] | {"model.segmented.pool": "attention"}
MODELS |= {
    f"hamburger={name}": {
        "model.kind": "hamburger", "model.hamburger.groups": name, "model.hamburger.documents": 2,
        "model.hamburger.layers": 1,
    }
    for name in ("confidence", "fixed")
}  # fmt: skip
# As these two are: one whose segments come with the text, and one that groups by what it predicts.
SHORT = {name for name in MODELS if name.startswith(("segments=", "hamburger="))}
SHORT -= {"segments=words", "hamburger=confidence"}
REWIRED = {"model.num_layers": 3, "model.swiftkv.layer": 1, "model.swiftkv.share": 2}
MODELS |= {"swiftkv": {"model.kind": "swiftkv", **REWIRED}}
LEARNT = {changes.get("objective", base.get_config().objective) for changes in MODELS.values()}
# Those that need no other model's word and have no preset above.
MODELS |= {
    f"objective={name}": {"objective": name}
    for name, goal in OBJECTIVES.items() if name not in LEARNT and not getattr(goal, "companions", ())
}  # fmt: skip
MODELS["objective=sorted"]["model.num_layers"] = 2  # A layer to end at, and one behind it.


def config(changes, mesh):
    """A model of one layer."""
    made = base.get_config()
    mixer, channel = (changes.get(f"model.{socket}", made.model[socket]) for socket in ("mixer", "channel"))
    # Every device holds as many tokens of a chunk of lact.
    small = parts.group(mixer, **({"chunk_size": 4} if mixer == "lact" else {})) | parts.group(channel)
    layouts = getattr(MIXERS[mixer], "layouts", ("zigzag",))
    sizes = {
        "model": {"width": 32, "num_layers": 1, "num_heads": 4, "vocab_multiple": 4, **small},
        "data": {"length": T, "batch_size": B},
        "optimizer": {"clip": 0.0, "eps": 1e-3, "warmup": 0.0, "schedule": "constant"},
        "generate": {"max_tokens": 6, "temperature": 0.0},
        "parallel": {"schedule": "zigzag" if "zigzag" in layouts else "auto"},
        "sharding": {"stream": ("tensor",) if len(mesh) > 1 else ()},
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
        "scored": (segments > 0) & (at != cut - 1) & (rng.random((B, T)) < rng.random((B, 1))),
        "positions": np.where(at < cut, at, at - cut).astype(np.int32),
        "segment_ids": segments,
    }


class Case:
    """A model on a mesh."""

    def __init__(self, model, mesh):
        self.config = config(MODELS[model], mesh)
        self.devices = int(np.prod(list(mesh.values())))

    def built(self):
        mesh = make_mesh(self.config, jax.devices()[: self.devices])
        return build(self.config, vocab_size=TOKENIZER.vocab_size, mesh=mesh)


def step(program, state):
    """State and metrics after one step from `state`, whichever mesh that lies on."""
    return jax.device_get(program.train_step()(placed(program, state), global_batch(batch(), program)))


def written(program, state):
    """A greedy continuation of two prompts of unequal length."""
    generator = generation.make(program, TOKENIZER)
    return generator(placed(program, state)["params"], ["ab", "c"], program.config.generate.to_dict())


def evaluated(program, state):
    """Each row's nats."""
    nats = jax.jit(lambda params, rows: program.objective.row_nll(program.merge(params), rows, jax.random.key(1)))
    return jax.device_get(nats(placed(program, state)["params"], global_batch(batch(), program)))


def placed(program, state):
    return jax.device_put(state, program.shardings)


@functools.cache
def alone(model):
    """A model on one device: where it starts, and what it does there, each computed when first asked for."""
    program = Case(model, {"data": 1}).built()
    state = jax.device_get(program.init())
    return state, functools.cache(lambda what: what(program, state))


def shares_sequences(model):
    """Whether the model says that devices may share a sequence of it."""
    made = config(MODELS[model], {})
    goal, mixer = OBJECTIVES[made.objective], MIXERS[made.model.mixer]
    if made.model.kind in ("segmented", "hamburger"):
        return False
    return getattr(mixer, "context_parallel", False) and getattr(goal, "context_parallel", False) and goal.copies == 1


def cases():
    """Every model on every mesh. Always run: all axes together for each model, and each alone for the first."""
    *_, with_context, without = MESHES
    for model in MODELS:
        together = with_context if shares_sequences(model) else without
        for mesh in MESHES:
            always = mesh == together or (model == next(iter(MODELS)) and mesh != without)
            yield pytest.param(model, mesh, marks=() if always else pytest.mark.exhaustive)


@pytest.mark.parametrize(("model", "mesh"), cases())
def test_sharded_equals_unsharded(request, model, mesh):
    case, together = Case(model, MESHES[mesh]), len(MESHES[mesh]) > 1
    if "context" in MESHES[mesh] and not shares_sequences(model):
        with pytest.raises(ConfigError, match="mesh.context"):
            preflight.check(case.config, num_devices=case.devices)
        return
    preflight.check(case.config, num_devices=case.devices)
    program = case.built()
    state, unsharded = alone(model)
    program_test.assert_close(unsharded(step), step(program, state), 1e-5)
    if model in SHORT and not request.config.getoption("--exhaustive"):
        return  # Steps hold all that segmenters differ in; a pass and a text take twice as long.
    if together:
        np.testing.assert_allclose(evaluated(program, state), unsharded(evaluated), rtol=1e-5)
    if together or model in MIXERS:  # Whose state is what decoding adds.
        assert written(program, state) == unsharded(written)
