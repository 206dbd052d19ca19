"""What parts say of options that do not go with the rest of a config, called as the preflight calls them."""

import dataclasses

import pytest

from configs import base
from models.facts import Facts, largest_divisor, nearest_multiple
from models.mixers import MIXERS
from models.objectives import OBJECTIVES
from models.pattention import Pattention

GROUPS = base.get_config().to_dict()
FACTS = Facts(*(GROUPS[name] for name in ("model", "data", "mesh", "sharding", "objective")))


def told(part, options, **changes):
    """The keys that `part` complains of; `changes`: groups of the facts, whole or as dicts of what differs."""
    merged = {
        name: getattr(FACTS, name) | value if isinstance(value, dict) else value for name, value in changes.items()
    }
    facts = dataclasses.replace(FACTS, **merged)
    problems = list(part.problems(options, facts))
    assert all(problem.endswith(".") and "; use " in problem for problem in problems)
    return [problem.split("=")[0] for problem in problems]


@pytest.mark.parametrize("name", ["masked_diffusion", "block_diffusion", "score_entropy"])
def test_times_may_be_one_time_but_not_end_before_they_begin(name):
    options = GROUPS[name]
    for first, last, keys in ((0.2, 0.8, []), (0.5, 0.5, []), (0.6, 0.5, [f"{name}.t_min"])):
        assert told(OBJECTIVES[name], options | {"t_min": first, "t_max": last}, objective=name) == keys


def test_what_objectives_ask_of_rows_and_models():
    subset, blocks = GROUPS["any_subset"], GROUPS["block_diffusion"]
    assert told(OBJECTIVES["any_subset"], subset | {"rate_min": 0.9, "rate_max": 0.9}) == []
    assert told(OBJECTIVES["any_subset"], subset | {"rate_min": 0.91, "rate_max": 0.9}) == ["any_subset.rate_min"]
    for block, length, keys in ((1, 7, []), (64, 64, []), (96, 64, ["block_diffusion.block"])):
        assert told(OBJECTIVES["block_diffusion"], blocks | {"block": block}, data={"length": length}) == keys
    assert told(OBJECTIVES["insertion"], {}, data={"isolate": False}) == []
    assert told(OBJECTIVES["insertion"], {}, data={"isolate": True}) == ["data.isolate"]
    assert told(OBJECTIVES["neodiff"], {}, model={"time_features": 2}) == []
    assert told(OBJECTIVES["neodiff"], {}, model={"time_features": 0}) == ["model.time_features"]


def test_fast_weights_divide_what_they_share():
    options = GROUPS["model"]["lact"] | {"heads": 4, "chunk_size": 64}
    lact, small = MIXERS["lact"], {"data": {"length": 65}}
    assert told(lact, options, **small) == []
    assert told(lact, options, data={"length": 64}) == ["model.lact.chunk_size"]
    assert told(lact, options | {"heads": 3}, **small) == ["model.lact.heads"]  # of 256 channels
    assert told(lact, options | {"heads": 3}, model={"head_dim": 3}, **small) == []  # of 12
    assert told(lact, options, mesh={"tensor": 4}, **small) == []
    assert told(lact, options, mesh={"tensor": 8}, **small) == ["model.lact.heads"]
    assert told(lact, options, mesh={"tensor": 8}, sharding={"heads": ()}, **small) == []
    assert told(lact, options | {"chunk_size": 63}, mesh={"context": 2}, **small) == ["model.lact.chunk_size"]
    assert told(lact, options | {"chunk_size": 63}, mesh={"context": 2}, sharding={"sequence": ()}, **small) == []


def test_parameter_tokens_divide_over_their_devices():
    options = GROUPS["model"]["pattention"] | {"tokens": 6, "q_tokens": 8}
    key = "model.pattention."
    assert told(Pattention, options) == [] == told(Pattention, options | {"top_r": 6})
    assert told(Pattention, options | {"top_r": 7}) == [f"{key}top_r"]
    assert told(Pattention, options, mesh={"tensor": 2}) == []
    assert told(Pattention, options, mesh={"tensor": 4}) == [f"{key}tokens"]  # 6; 24 and 8 divide.
    assert told(Pattention, options, mesh={"tensor": 4}, sharding={"tokens": ()}) == []
    assert told(Pattention, options | {"q_tokens": 9}, mesh={"tensor": 3}) == []
    assert told(Pattention, options | {"q_tokens": 8}, mesh={"tensor": 3}) == [f"{key}q_tokens"]
    assert told(Pattention, options, mesh={"tensor": 2, "fsdp": 3}, sharding={"tokens": ("tensor", "fsdp")}) == [
        f"{key}q_tokens"
    ]  # 6 devices share 6, 24 and 8.


def test_numbers_that_are_offered():
    for value in range(1, 60):
        for other in range(1, 60):
            assert largest_divisor(value, other) == max(k for k in range(1, other + 1) if value % k == 0)
            near = nearest_multiple(value, other)
            assert near > 0 and near % other == 0
            assert abs(near - value) == min(abs(k * other - value) for k in range(1, 61))
