"""A real model, read from its file: its logits and text are what they should be, and what decoding has runs on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import finetune, pretrained
from experiments import generation
from experiments.generation import chatting
from experiments.pretrained import loaded
from kernels import masks
from tests.experiments.pretrained import real

pytestmark = real.needed


@functools.cache
def model():
    return loaded.load(pretrained.get_config(real.path()))


def test_logits_are_those_of_transformers():
    def logits(params, ids):
        made = model().program.merge(params)
        return made.logits(made(ids, mask=masks.Causal()).features)

    kept, got = np.load(real.LOGITS), jax.jit(logits)(model().params, jnp.asarray(real.IDS))
    got = np.asarray(got)[0, list(real.PLACES), real.COLUMNS]
    np.testing.assert_allclose(got, kept["logits"], rtol=0, atol=5e-5 * kept["most"])


def written(prompt, **options):
    made = generation.make(model().program, model().tokenizer)
    settings = model().config.generate.to_dict() | {"max_tokens": 24, "temperature": 0.0} | options
    return made(model().params, [prompt], settings, seed=0)[0]


def test_it_knows_the_capital_of_germany():
    assert written("The capital of Germany is", max_tokens=3).startswith(" Berlin.")


@pytest.mark.exhaustive
def test_greedy_tokens_are_those_of_transformers():
    """64 tokens behind 16, one at a time on the cache; transformers wrote its own with one, too."""
    made = generation.make(model().program, model().tokenizer)
    made.tokenizer = real.Fixed(model().tokenizer, real.IDS[0, :16])
    settings = model().config.generate.to_dict() | {"max_tokens": 64, "temperature": 0.0}
    kept = np.load(real.LOGITS)["greedy"]
    assert len(kept) == 64 and made(model().params, ["x"], settings, seed=0)[0] == model().tokenizer.decode(kept)


@pytest.mark.exhaustive
def test_control_holds_it_to_what_is_asked():
    prompt, choices = "Berlin is a city in", " France| Germany| Norway"
    asked = model().config.generate.constraint.to_dict() | {"choices": choices, "states": 64}
    assert written(prompt, control="constraint", constraint=asked) == " Germany"


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [{"drafter": "lookup"}, {"memory": "window"}])
def test_drafts_and_memories_leave_greedy_text_as_it_is(options):
    """A window of 1,024 tokens holds all of this text, and checked drafts change nothing."""
    prompt = "one two three four one two three four one two three"
    assert written(prompt, **options) == written(prompt)


def test_it_is_tuned_with_its_own_template(tmp_path):
    config = finetune.get_config(real.path())
    config.generate.chat = True
    made = generation.make(model().program, model().tokenizer)
    assert made.encode("a")[0] != model().tokenizer.encode("<")[0]
    chat = chatting.Chat(model().tokenizer, "")
    said = "".join(chat.decode([i]) or f"[{i}]" for i in chat.encode("What is 2 + 2?"))
    assert said.endswith("user\nWhat is 2 + 2?[2]\n[1]assistant\n") and not chat.add_bos
