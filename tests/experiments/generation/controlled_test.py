"""Controls behind the generator: on two devices they write what one writes, whatever stands beside a row; off, the
plain text; without the head that they read, a sentence."""

import functools

import jax
import numpy as np
import pytest

import data
from configs import base, transformer
from experiments.generation.text import Generator
from experiments.program import build
from experiments.program.sharding import make_mesh
from experiments.settings import smoke
from experiments.settings.errors import ConfigError

PROMPTS, OTHERS = ["a", "def main(", "\nx = "], ["a", "zz", "q" * 9]
OPTIONS = base.get_config().generate.to_dict() | {"max_tokens": 6, "temperature": 0.0}
SETTINGS = {
    "budget": {"tokens": 3},
    "where": {"predicate": "len(text) < 4"},
    "semantic": {"weight": 30.0, "length": 2},
    "superposed": {"drafts": 2, "top": 4},
    "skip": {"least": 1},
    "early_exit": {"threshold": 0.2},
    "sets": {"on": True},
    "best_of_n": {"n": 3, "choose": "majority"},
}
READS = {"budget": "remaining", "early_exit": "exits"}
HOT = ("best_of_n",)  # Draws that are greedy are all alike.


@functools.cache
def made(devices, objective):
    config = smoke.shrink(transformer.get_config("tiny"))
    config.objective = objective
    config.model.update(
        {"init": "fan_in", "init_std": 0.5, "num_layers": 3, "width": 16, "num_heads": 2, "tied": False}
    )
    config.mesh.data = devices
    program = build(config.lock(), vocab_size=259, mesh=make_mesh(config, jax.devices()[:devices]))
    params, rng = program.init()["params"], np.random.default_rng(0)
    if "heads" in params:  # Drawn: untrained ones say nothing.
        params["heads"] = jax.tree.map(
            lambda x: jax.device_put(rng.normal(size=x.shape).astype(x.dtype), x.sharding), params["heads"]
        )
    return Generator(program, data.ByteTokenizer()), params


def written(name, devices, prompts, path, **settings):
    maker, params = made(devices, READS.get(name, "next_token"))
    own = SETTINGS[name] | ({"path": path} if name == "semantic" else {}) | settings
    options = OPTIONS | {"control": name, name: OPTIONS[name] | own, "temperature": 1.0 if name in HOT else 0.0}
    return maker(params, prompts, options, seed=5)


@functools.cache
def plain(objective, temperature):
    maker, params = made(1, objective)
    return maker(params, PROMPTS, OPTIONS | {"temperature": temperature}, seed=5)


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("semantic") / "verifier.npz"
    np.savez(path, kernel=np.random.default_rng(1).normal(size=16) * 9, bias=np.zeros(()))
    return str(path)


@pytest.mark.parametrize("name", SETTINGS)
def test_two_devices_write_what_one_writes_beside_anything(name, verifier):
    asked = PROMPTS if name != "sets" else ["[[a||b]]:", "[[x||yy||z]] is", "[[1||2]]+"]
    one = written(name, 1, asked, verifier)
    assert written(name, 2, asked, verifier) == one
    beside = OTHERS if name != "sets" else [asked[0], "[[k||l]]!", "[[mm||n||o]]?"]
    assert written(name, 1, beside, verifier)[0] == one[0]
    if name not in ("sets", "best_of_n"):  # Something is done; of these their own tests say so.
        assert one != plain(READS.get(name, "next_token"), 1.0 if name in HOT else 0.0)


OFF = {
    "budget": {"tokens": 0}, "where": {"predicate": ""}, "semantic": {"weight": 0.0}, "superposed": {"drafts": 0},
    "skip": {"least": 0}, "early_exit": {"threshold": 2.0}, "sets": {"on": False}, "best_of_n": {"n": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", OFF)
def test_off_they_are_the_plain_model(name, verifier):
    want = plain(READS.get(name, "next_token"), 1.0 if name in HOT else 0.0)
    assert written(name, 1, PROMPTS, verifier, **OFF[name]) == want


def test_all_layers_is_the_plain_model_in_the_program_of_fewer():
    """Where the control is in the program and its setting is neutral: a schedule of all layers for every token."""
    assert written("skip", 1, PROMPTS, "", least=3) == plain("next_token", 0.0)


@pytest.mark.parametrize("name, says", [
    ("budget", "objective='next_token' does not train; use a run of objective='remaining'"),
    ("early_exit", "objective='next_token' does not train; use a run of objective='exits'"),
    ("r2r", "objective='next_token' does not train; use a run of objective='router'"),
])  # fmt: skip
def test_a_run_without_the_head_is_refused_in_one_sentence(name, says):
    maker, params = made(1, "next_token")
    own = SETTINGS.get(name, {"measure": "router", "threshold": 0.5})
    with pytest.raises(ConfigError, match=says) as refused:
        maker(params, PROMPTS, OPTIONS | {"control": name, name: OPTIONS[name] | own})
    assert len(refused.value.problems) == 1 and "generate." in str(refused.value)
