"""A mesh that does not fit the sizes, or a part that cannot share a sequence: one sentence, with a value that works."""

import re

import jax
import pytest

from configs import base
from experiments import preflight
from experiments.program import build
from experiments.program.sharding import make_mesh
from experiments.settings.errors import ConfigError
from models.mixers.attention import Attention


def config(**changes):
    made = base.get_config()
    made.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return made


def refusal(made) -> str:
    with pytest.raises(ConfigError) as caught:
        preflight.check(made, num_devices=8)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"mesh__context": 8, "data__length": 250},
            "data.length=250 cannot be cut over mesh.context=8 by parallel.schedule='token_ring_zigzag', which needs a "
            "multiple of 16; use e.g. data.length=256.",
        ),
        (
            {"mesh__context": 8, "data__length": 250, "parallel__schedule": "ring"},
            "by parallel.schedule='ring', which needs a multiple of 8; use e.g. data.length=256.",
        ),
        (
            {"mesh__context": 8, "parallel__schedule": "ulysses"},
            "parallel.schedule='ulysses' cannot deal the 4 heads of a device (model.num_heads over mesh.tensor) to 8 "
            "devices; use parallel.schedule='auto'.",
        ),
        (
            {"mesh__context": 8, "parallel__schedule": "usp:3"},
            "parallel.schedule='usp:3' does not cut 8 ranks into equal groups; use 'usp:1'",
        ),
        ({"mesh__context": 8, "parallel__schedule": "zigzg"}, "is unknown; did you mean 'zigzag'?"),
        (
            {"mesh__tensor": 4, "sharding__stream": ("tensor",), "mesh__context": 2, "data__length": 252},
            "data.length=252 cannot be cut over the 8 devices of sharding.stream and sharding.sequence; use e.g. "
            "data.length=256, or sharding.stream=().",
        ),
        (
            {"mesh__fsdp": 8, "sharding__stream": ("fsdp",)},
            "sharding.stream=('fsdp',): mesh axis 'fsdp' already cuts the rows or sequences of a batch",
        ),
        (
            {"mesh__tensor": 8},
            "mesh.tensor=8, the devices of sharding.heads, must divide model.num_heads=4; use e.g. model.num_heads=8, "
            "or mesh.tensor=4.",
        ),
        (
            {"mesh__tensor": 4, "model__num_kv_heads": 2},
            "must divide model.num_kv_heads=2; use e.g. model.num_kv_heads=4, or mesh.tensor=2.",
        ),
        ({"mesh__context": 4, "objective": "block_diffusion"}, "use mesh.context=1."),
        (
            {"mesh__context": 4, "model__attention__implementation": "chunked"},
            "use model.attention.implementation=''.",
        ),
        (
            {"mesh__context": 2, "model__mixer": "lact", "model__lact__chunk_size": 64, "parallel__schedule": "ring"},
            "parallel.schedule='ring' keeps tokens contiguous, which model.mixer='lact' cannot follow; use "
            "parallel.schedule='striped'.",
        ),
        (
            {"mesh__context": 4, "model__mixer": "lact, attention", "model__lact__chunk_size": 62},
            "model.lact.chunk_size=62 does not divide over mesh.context=4, whose devices share every chunk; use e.g. "
            "model.lact.chunk_size=64.",
        ),
        (
            {"mesh__context": 2, "model__mixer": "lact,linear_attention", "model__lact__chunk_size": 64},
            "share sequences in orders that exclude each other; use mesh.context=1.",
        ),
        ({"sharding__sequence": ("fsdp",)}, "sharding.sequence=('fsdp',) must be () or ('context',)"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_with_what_does(changes, told):
    made = config(**changes)
    problem = refusal(made)
    assert told in problem
    if offered := re.search(r"use (?:e\.g\. )?([a-z_.]+)=(?:'(\w*)'|(\d+))[.,]", problem):
        key, text, number = offered.groups()
        made.update_from_flattened_dict({key: int(number) if number else text})
        preflight.check(made, num_devices=8)


def test_a_mixer_that_cannot_share_a_sequence(monkeypatch):
    monkeypatch.setattr(Attention, "context_parallel", False)
    assert refusal(config(mesh__context=2)).endswith(
        "model.mixer='attention' cannot share a sequence among devices; use mesh.context=1."
    )
    preflight.check(config(mesh__context=2, sharding__sequence=()), num_devices=8)  # Whole sequences need nobody.


def test_a_vocabulary_that_tensor_does_not_divide_names_the_multiple():
    made = config(mesh__tensor=4, mesh__data=1)
    with pytest.raises(ValueError, match="sharding.vocab: 259 .* use model.vocab_multiple=4, or"):
        build(made, vocab_size=259, mesh=make_mesh(made, jax.devices()[:4]))
