"""FLOPs of every part of every socket, against what the compiler counts in the same program."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from configs import transformer
from experiments.program import build, counting, sharding
from kernels import masks
from models.channels import CHANNELS
from models.mixers import MIXERS
from models.norms import NORMS
from models.objectives import OBJECTIVES
from models.objectives import companions as companions_of
from models.projections import PROJECTIONS
from models.spec import Spec
from tests import parts
from tests.models.toy_channels import OneOfTwo

D, T, C = 512, 96, 64  # A chunk that is learned from and half a one, so that no loop of the program turns twice
MORE = {
    "lact": {"window": T, "rank": 0, "newton_schulz_steps": 1, "heads": 8},  # A loop, of which the compiler counts one.
    # All experts on every token, without a loop; tests/models/experts/flops_test.py counts the sorted form's.
    "moe": {"experts": 4, "k": 4, "dispatch": "dense"},
}
CHUNKS = {"chunk_size", "mini_batch"}  # knobs of mixers that say how many tokens a chunk has
PARTS = [("mixer", name) for name in MIXERS] + [("channel", name) for name in CHANNELS]
PARTS += [("projection", name) for name in PROJECTIONS if name != "dense"] + [("norm", name) for name in NORMS]


@pytest.fixture(autouse=True)
def half_active(monkeypatch):
    monkeypatch.setitem(CHANNELS, "one_of_two", OneOfTwo)


@pytest.mark.parametrize(("socket", "name"), [*PARTS, ("channel", "one_of_two")])
def test_flops_agree_with_the_compiler(socket, name):
    """Forward, and forward with backward, within 3%: a model of one layer, before XLA rewrites anything."""
    config = transformer.get_config("tiny")
    config.model.update({"width": D, "num_heads": 8, "num_layers": 1, socket: name})
    if socket == "mixer" and (chunks := dict.fromkeys(parts.small(name).keys() & CHUNKS, C) | MORE.get(name, {})):
        config.model[name].update(chunks)
    if socket == "channel" and name in MORE:
        config.model[name].update(MORE[name])
    for part in ("attention", "pattention"):
        config.model[part].implementation = "reference"
    mixer = MIXERS[config.model.mixer]
    block = nnx.eval_shape(lambda: mixer(Spec.from_config(config.model.to_dict(), vocab_size=256), rngs=nnx.Rngs(0)))
    kinds = {kind for kind, flops in block.context_flops(T, True).items() if flops}
    length = C if kinds == {"recurrent"} else T  # A memory is counted over one whole chunk.
    config.data.length = length
    made = build(config.lock(), vocab_size=256, mesh=sharding.make_mesh(config, jax.devices()[:1]))

    def loss(params):
        model = made.merge(params)
        features, *_ = model(jnp.zeros((1, length), jnp.int32), mask=masks.Causal())
        return jnp.sum(model.logits(features) ** 2)

    flops = counting.flops_per_token(made)
    forward, context = flops["total"] / 3, flops["context"] / 3
    assert {kind for kind in counting.MIXING if flops[kind]} == kinds
    assert flops["context"] == pytest.approx(sum(flops[kind] for kind in kinds))
    # The reference attention computes the scores that a causal mask hides: T keys instead of (T + 1) / 2.
    hidden = 4 * D * (length - (length + 1) / 2) if "attention" in kinds else 0
    shapes = made.abstract["params"]
    counted = jax.jit(loss).lower(shapes).cost_analysis()["flops"] / length
    assert 1.0 <= counted / (forward + hidden) < 1.03
    counted = jax.jit(jax.grad(loss)).lower(shapes).cost_analysis()["flops"] / length
    # What the backward pass computes again instead of keeping it is left out, as for remat.
    again = getattr(mixer, "computed_again", 0) * (context + hidden)
    assert 1.0 <= counted / (3 * (forward + hidden)) and counted < 1.03 * (3 * (forward + hidden) + again)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_flops_of_an_objective_agree_with_the_compiler(name):
    """A gradient within 3%, with companions, heads of its own and copies of the row: before XLA rewrites anything."""
    config = transformer.get_config("tiny")
    config.model.update({"width": D, "num_heads": 8, "num_layers": 1})
    config.model.attention.implementation = "reference"
    config.data.length, config.objective = T, name
    made = build(config.lock(), vocab_size=256, mesh=sharding.make_mesh(config, jax.devices()[:1]))
    beside = {role: made for role in companions_of(made.objective)}
    made = dataclasses.replace(made, companions=beside)
    kinds = {"tokens": int, "targets": int, "positions": int, "segment_ids": int, "scored": bool}
    rows = {key: jax.ShapeDtypeStruct((1, T), kind) for key, kind in kinds.items()}
    noised = jax.eval_shape(lambda rows: made.objective.corrupt(rows, jax.random.key(0)), rows)

    def loss(params, batch, taught):
        models = {role: made.merge(taught) for role in beside}
        told = {"companions": models} if models else {}
        return made.objective.loss(made.merge(params), batch, jax.random.key(1), **told).total

    shapes, flops = made.abstract["params"], counting.flops_per_token(made)
    counted = jax.jit(jax.grad(loss)).lower(shapes, noised, shapes).cost_analysis()["flops"] / T
    # The reference attention computes every score of the copies of a row, whatever the mask hides.
    passes, tokens = 3 + len(beside), made.objective.copies * T
    whole = passes * 4 * D * made.objective.copies * tokens
    assert 1.0 <= counted / (flops["matmul"] + whole) < 1.03
