"""Tasks under objectives that see both sides: answers are hidden, prompts never are, and all score the same symbols."""

import jax
import numpy as np
import pytest

from data import tasks
from experiments import generation
from experiments.program import inputs
from experiments.settings.errors import ConfigError
from experiments.training import train
from models import objectives
from tests.experiments import tiny
from tests.experiments.program import program_test
from tests.experiments.training import diffusion_test

pytestmark = pytest.mark.usefixtures("one_device")

SETTINGS = {"data__source": "task:arithmetic", "data__name": "digits=2, room=5, pads=2", "data__length": 12}


def batch_of(preset):
    kw = diffusion_test.PRESETS[preset] if preset else {}
    config = program_test.config(**kw | SETTINGS)
    corpus = inputs.load(config)
    return config, corpus, inputs.prepare(config, corpus, inputs.train_loader(config, corpus).batch(3))


@pytest.mark.parametrize("preset", diffusion_test.PRESETS)
def test_only_answers_are_hidden_and_scored(preset):
    _, _, control = batch_of(None)
    config, corpus, batch = batch_of(preset)
    assert batch["tokens"].shape == control["tokens"].shape == (32, 12)
    want = [list(row[mask]) for row, mask in zip(control["targets"], control["scored"], strict=True)]
    assert [list(row[mask]) for row, mask in zip(batch["targets"], batch["scored"], strict=True)] == want
    assert all(len(answer) == 5 for answer in want)
    goal = objectives.make(config.objective, config.to_dict()[config.objective], vocab_size=corpus.tokenizer.vocab_size)
    noised, prompt = jax.device_get(goal.corrupt(batch, jax.random.key(0))), ~batch["scored"]
    hidden = {
        "insertion": lambda: noised["dropped"],
        "neodiff": lambda: noised["tau"] > 0,
        "any_subset": lambda: noised["rank"] >= noised["prompt_length"][:, None],
    }.get(config.objective, lambda: noised["noised"] != batch["tokens"])()
    assert hidden.any() and not hidden[prompt].any()


def test_answers_are_drawn_behind_their_prompts():
    config, corpus, batch = batch_of("any_subset")
    mesh = program_test.make_mesh(config, jax.devices()[:1])
    program = program_test.build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=mesh)
    generator = generation.make(program, corpus.tokenizer)
    tokens, calls = generator.answers(program.init()["params"], batch, config.generate.to_dict())
    np.testing.assert_array_equal(tokens[~batch["scored"]], batch["tokens"][~batch["scored"]])
    assert (tokens < 13 + 2 + 3).all() and (calls > 0).all() and (calls <= 5).all()
    scored = tasks.score(batch, predicted=tokens)
    assert scored["rows"] == 32 and scored["exact"] < 0.5 < tasks.score(batch, predicted=batch["tokens"])["exact"]


def test_a_task_trains_and_is_evaluated_on_its_answers(tmp_path):
    task = {"data__source": "task:infilling", "data__name": "in_place=true, gap=3", "data__path": ""}
    result = train(tiny.config(tmp_path, objective="masked_diffusion", **task), tmp_path / "run", quiet=True)
    assert 16 <= result["eval/tokens"] <= 3 * 16  # Two batches of eight, one to three each.
    assert 0 < result["eval/loss"] < 10 and result["eval/kind"] == "<="


def test_a_row_that_does_not_fit_names_a_length_that_does():
    for preset, least in (("mdlm", 11), (None, 10)):
        kw = (diffusion_test.PRESETS[preset] if preset else {}) | SETTINGS
        config = program_test.config(**kw | {"data__length": least - 1})
        with pytest.raises(ConfigError, match=f"data.length={least - 1} is too short .*; use {least} or more"):
            inputs.check_splits(config, inputs.load(config))
        config = program_test.config(**kw | {"data__length": least})
        inputs.check_splits(config, inputs.load(config))
