"""The same prompt and seed give the same text in any batch: for every generator, whatever stands beside it."""

import functools

import jax
import numpy as np
import pytest

import data
from experiments import generation
from experiments.generation import requests
from experiments.workdir.trained import Trained
from tests.experiments.program import program_test
from tests.experiments.training.diffusion_test import PRESETS

pytestmark = pytest.mark.usefixtures("one_device")
SHORT, LONG = "ab", "a long prompt that pushes the canvas to another width"

# Objective (or preset) and what differs in the model; settings of generation.
CASES = {
    "next_token": ("next_token", {}, {}),
    "any_subset": ("any_subset", {}, {"draft": 4}),
    "insertion": ("insertion", {}, {"insertion": {"stop": "never"}}),
    "neodiff": ("neodiff", {}, {"diffusion": {"steps": 4}}),
    "block diffusion": ("block", {}, {}),
    "block diffusion, free": ("block", {"block_diffusion__block": 32, "data__length": 32}, {
        "diffusion": {"method": "max_prob", "cache": "free"},
    }),
    "one block for all": ("block", {"block_diffusion__block": 100}, {"diffusion": {"steps": 5}}),
    "score": ("sedd", {}, {}),
    "uniform": ("uniform", {}, {}),
    "ancestral, remasking": ("mdlm", {}, {"diffusion": {"remask": 0.5, "steps": 6}}),
    "first hitting": ("mdlm", {}, {"diffusion": {"method": "first_hitting"}}),
    "time told": ("mdlm", {"model__time_features": 8}, {"diffusion": {"method": "drawn"}}),
    "random places": ("mdlm", {}, {"diffusion": {"method": "random", "guidance": 0.5}}),
    "a block wider than a canvas": ("mdlm", {}, {"diffusion": {"method": "margin", "block": 100}}),
    "blocks": ("mdlm", {}, {"diffusion": {"method": "entropy", "block": 5}}),
    "blocks of the answer": ("mdlm", {}, {"diffusion": {"method": "candidate", "block": 5, "block_from": "prompt"}}),
    "prefix": ("mdlm", {}, {"diffusion": {"method": "max_prob", "cache": "prefix", "block": 100}}),
    "dual": ("mdlm", {}, {"diffusion": {"method": "max_prob", "cache": "dual", "block": 62, "block_from": "prompt"}}),
    "free": ("mdlm", {}, {"diffusion": {"method": "random", "cache": "free", "block": 62}}),
    "adaptive": ("mdlm", {}, {"diffusion": {
        "method": "max_prob", "cache": "adaptive", "adaptive": {"prompt_every": 5, "answer_every": 3, "share": 0.3},
    }}),
    "guided": ("mdlm", {}, {"diffusion": {"method": "guided", "guide": "given", "rule": "sample", "block": 62}}),
}  # fmt: skip


def merged(options, changes):
    return {k: merged(v, changes[k]) if isinstance(v, dict) and k in changes else changes.get(k, v)
            for k, v in options.items()}  # fmt: skip


@functools.cache
def model(name, changes=()):
    """A model whose parameters are far from uniform, so that a wrong key or a wrong mask shows in its text."""
    changes = dict(changes)
    config = program_test.config(**PRESETS.get(name, {"objective": name}), **changes)
    tokenizer = data.ByteTokenizer()
    made = program_test.build(
        config, vocab_size=tokenizer.vocab_size, mesh=program_test.make_mesh(config, jax.devices()[:1])
    )
    params = jax.tree.map(lambda p: 6 * p if p.ndim > 2 else p, made.init()["params"])
    return Trained(config, made, params, tokenizer, None, 0, {})


@pytest.mark.parametrize("case", CASES)
def test_text_does_not_depend_on_the_batch(case):
    """A short prompt alone, on a canvas of 64, and behind a long one, on a canvas of 128: tokens, calls and text."""
    name, changes, settings = CASES[case]
    trained = model(name, tuple(changes.items()))
    writer = generation.make(trained.program, trained.tokenizer)
    if case == "guided":
        writer.guide = model("next_token")
    options = merged(trained.config.generate.to_dict(), {"max_tokens": 12, "temperature": 1.0, **settings})
    if name == "next_token":
        write = lambda *prompts: writer(trained.params, prompts, options, seed=3)  # noqa: E731
        assert write(SHORT) == write(LONG, SHORT)[1:]
        return
    alone, beside = (writer.fill(trained.params, prompts, options, seed=3) for prompts in ((SHORT,), (LONG, SHORT)))
    np.testing.assert_array_equal(alone[0][0], beside[0][1])
    assert alone[1][0] == beside[1][1] > 0, "calls of the model"
    assert len(set(alone[0][0])) > 3, "there is something to get wrong"


def test_a_prompt_asked_twice_is_answered_twice():
    assert len(set(requests.rows([SHORT, SHORT, LONG]).tolist())) == 3
    assert requests.rows([LONG, SHORT, SHORT]).tolist()[1:] == requests.rows([SHORT, SHORT]).tolist()
