"""Mixtures of experts that cannot be are refused in one sentence, and the value that it offers works."""

import re

import pytest

from configs import base
from experiments import preflight
from experiments.settings import keys
from experiments.settings.errors import ConfigError

TWO = {"model.mixer": "attention,attention"}
WRONG = [
    ({"k": 9}, "model.moe.k=9 is more than the 8 experts there are; use e.g. model.moe.k=8."),
    ({"router": "moge", "groups": 3, "k": 6}, "groups=3 does not divide the 8 experts; use e.g. model.moe.groups=2"),
    ({"router": "moge", "groups": 4}, "model.moe.groups=4 does not divide model.moe.k=2, and each group has as"),
    ({"router": "group_sigmoid", "groups": 4, "kept_groups": 5}, "kept_groups=5 is more than model.moe.groups=4"),
    ({"router": "group_softmax", "groups": 4, "k": 3}, "model.moe.k=3 is more than the 2 experts of 1 kept groups"),
    ({"capacity": 0.5}, "model.moe.capacity=0.5 drops tokens where the load is even, too; use e.g. model.moe.capacity"),
    ({"router": "relu", "capacity": 1.5}, "model.moe.router='relu' gives a token any number; use model.moe.capacity=0"),
    ({"router": "expert_choice"}, "model.moe.router='expert_choice' looks at later tokens, and objective="),
    ({"router": "graph"}, "model.moe.router='graph' looks at later tokens"),
    ({"router": "duo"}, "model.moe.k=2: model.moe.router='duo' chooses one module for a token; use model.moe.k=1."),
    ({"router": "duo_chance"}, "model.moe.k=2: model.moe.router='duo_chance' chooses one module for a token;"),
    ({"null": 2}, "model.moe.null=2 is for model.moe.router='null'; use model.moe.null=0"),
    ({"router": "moepp"}, "model.moe.zero=0: model.moe.router='moepp' sets the gate of the last"),
    ({"router": "relu", "sparsity": 0.05, "chunk": 60}, "chunk=60 does not divide data.length=256; use e.g."),
    ({"mesh.expert": 4, "experts": 6}, "model.moe.experts=6 does not divide over the 4 devices of sharding.experts;"),
    ({"mesh.expert": 2, "dispatch": "dense"}, "model.moe.dispatch='dense' needs all experts on every device"),
    ({"share": "tokens", "dispatch": "einsum"}, "model.moe.share='tokens' divides the tokens of a row"),
    ({"mesh.context": 2, "capacity": 1.25}, "model.moe.capacity=1.25 reads the tokens of a row in their order"),
    ({"train.accumulation": 2}, "'global' is of all of it; use model.moe.balance_scope='accumulated'."),
    (
        {"model.channel": "mlp,moe,mlp"},
        "model.channel has 3 names and model.mixer 1; give one for all, or one",
    ),
    ({"model.channel": "mlp,moi", **TWO}, "model.channel='moi' is unknown"),
    (
        {"model.channel": "mlp,moe", **TWO, "k": 9},
        "is more than the 8 experts there are",
    ),
    (
        {
            "model.channel": "moe",
            **TWO,
            "model.by_position": ({"moe": {"experts": 4}}, {}),
        },
        "model.by_position gives model.moe.experts two values; layers report one, give all the same.",
    ),
    (
        {
            "model.channel": "mlp,moe",
            **TWO,
            "model.by_position": ({"moe": {"k": 1}}, {}),
        },
        "model.by_position[0] has 'moe', which is no part of that layer; use 'attention' or 'mlp'.",
    ),
    ({"model.parametrization": "mup"}, "has no rule for the rates of model.channel='moe'"),
]


def changed(changes):
    config = base.get_config()
    config.model.channel = "moe"
    for key, value in changes.items():
        keys.assign(config, key if "." in key else f"model.moe.{key}", value)
    return config


@pytest.mark.parametrize(("changes", "sentence"), WRONG, ids=[" ".join(changes) for changes, _ in WRONG])
def test_it_is_told_and_the_offer_works(changes, sentence):
    config = changed(changes)
    with pytest.raises(ConfigError) as caught:
        preflight.check(config, num_devices=8)
    assert sentence in str(caught.value) and len(caught.value.problems) == 1
    offered = re.search(r"use (?:e\.g\. )?([a-z_.]+)=('?)([\w.]+?)\2(?:[,.;]| or|$)", str(caught.value))
    if offered:
        key, quote, value = offered.groups()
        keys.assign(config, key, value if quote else float(value) if "." in value else int(value))
        preflight.check(config, num_devices=8)


def test_rows_are_counted_over_devices_with_experts():
    config = changed({"mesh.expert": 4, "data.batch_size": 12})
    with pytest.raises(ConfigError, match="devices of mesh.data, mesh.fsdp and mesh.expert"):
        preflight.check(config, num_devices=8)
