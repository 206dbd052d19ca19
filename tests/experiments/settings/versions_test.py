"""Versions that do not go together are told plainly; a shrunk config keeps its parts."""

import types

import pytest

from configs import transformer
from experiments import preflight
from experiments.settings import keys, smoke, versions

GOOD = {"jax": (0, 10, 2), "jaxlib": (0, 10, 2)}


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        (GOOD, ""),
        (GOOD | {"jaxlib": (0, 10, 1)}, ""),  # A jaxlib may trail by a patch release,
        (GOOD | {"jaxlib": (0, 10, 3)}, 'jaxlib 0.10.3 does not go with jax 0.10.2; run `pip install -U "jax==0.10.2"'),
        (GOOD | {"jaxlib": (0, 9, 2)}, "jaxlib 0.9.2 does not go with jax 0.10.2"),
        (GOOD | {"jax": (0, 12, 0), "jaxlib": (0, 12, 0), "jax-cuda12-plugin": (0, 12, 0)}, ""),
        (GOOD | {"jax-cuda12-plugin": (0, 9, 0)}, '"jax-cuda12-plugin==0.10.2"'),
        (GOOD | {"jax-cuda13-pjrt": (0, 11, 0)}, "jax-cuda13-pjrt 0.11.0 does not go with jax 0.10.2"),
        (
            {"jax": (0, 9, 1), "jaxlib": (0, 9, 1)},
            "jax 0.9.1 is outside the tested range 0.10 to 0.12; run `pip install",
        ),
        ({"jax": (0, 13, 0), "jaxlib": (0, 13, 0)}, "jax 0.13.0 is outside the tested range"),
        ({"jax": None}, "jax is not installed; run `pip install -r requirements.txt`."),
        ({"jax": (0, 10, 2), "jaxlib": None}, "jaxlib is not installed; run `pip install jaxlib==0.10.2`."),
    ],
)
def test_disagreements(installed, told):
    found = versions.disagreement(dict.fromkeys(versions.FOLLOWERS) | installed)
    assert found.startswith(told) or told in found
    assert bool(found) == bool(told) and (not found or found.endswith("."))


def test_what_was_replaced_while_it_is_loaded_is_told(monkeypatch):
    """As by pip in a notebook's kernel; a local build's suffix is no other version."""
    there = {"numpy": "2.3.1", "jax": "0.10.2+local"}
    monkeypatch.setattr(versions.importlib.metadata, "version", lambda name: there[name])
    modules = {"numpy": types.SimpleNamespace(__version__="2.0.2"), "jax": types.SimpleNamespace(__version__="0.10.2")}
    assert versions.outdated(modules).startswith("numpy 2.0.2 is loaded and another one installed; restart the runtime")
    there["numpy"] = "2.0.2"
    assert versions.outdated(modules) == versions.outdated({}) == ""
    monkeypatch.undo()
    assert versions.outdated() == ""


def test_what_is_installed_here_agrees():
    assert versions.disagreement() == ""


@pytest.mark.parametrize("preset", transformer.PRESETS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_heads": 8, "num_kv_heads": 2, "channel": "swiglu", "norm": "layernorm", "tied": False},
        {"mixer": "attention,attention,attention", "num_layers": 24, "attention": {"window": 64, "sinks": 4}},
    ],
)
def test_a_smoke_config_keeps_its_parts_and_is_small(preset, changes):
    config = transformer.get_config(preset)
    config.model.update(changes)
    config.train.accumulation = 4
    before = config.to_dict()
    small = smoke.shrink(config)
    assert config.to_dict() == before  # A copy.
    for key in ("mixer", "channel", "norm", "final_norm", "projection", "tied", "dtype", "remat", "init"):
        assert small.model[key] == config.model[key], key
    for key in (
        "objective",
        "optimizer.name",
        "optimizer.schedule",
        "train.accumulation",
        "data.source",
        "data.tokenizer",
    ):
        assert keys.flatten(small.to_dict())[key] == keys.flatten(before)[key], key
    grouped = 0 < config.model.num_kv_heads < config.model.num_heads
    assert grouped == (0 < small.model.num_kv_heads < small.model.num_heads)
    assert bool(small.model.attention.window) == bool(config.model.attention.window)
    assert small.model.num_layers % len(small.model.mixer.split(",")) == 0
    assert small.model.width <= 64 and small.train.steps <= 4 and small.data.length <= 32
    preflight.check(small, num_devices=1)
    assert smoke.shrink(small).to_dict() == small.to_dict()
