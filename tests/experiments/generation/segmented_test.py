"""Text of models whose steps are of several tokens, by the engine: as the whole forward pass says, drafted or not."""

import jax
import numpy as np
import pytest

import data
from experiments import generation
from experiments.settings.errors import ConfigError
from kernels import masks
from tests.models import hamburger_test, segmented_test

TOKENIZER = data.ByteTokenizer()


@pytest.fixture(scope="module", params=["words", "mrt5", "hamburger"])
def made(request):
    wide = {"model.dtype": "float32", "model.param_dtype": "float32", "data.length": 48, "generate.max_tokens": 16}
    wide |= {"generate.temperature": 0.0}
    if request.param == "hamburger":
        program = hamburger_test.program(**wide, **hamburger_test.LIMITED)
    else:
        program = segmented_test.program(request.param, **wide, **segmented_test.LIMITED)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), segmented_test.drawn(program))
    return program, jax.device_put(params, program.shardings["params"])


def test_greedy_text_is_that_of_whole_passes_and_drafts_change_none(made):
    program, params = made
    generator, options = generation.make(program, TOKENIZER), program.config.generate.to_dict()
    prompts = ["ab, cd ef", "x"]
    whole = jax.jit(
        lambda params, row: program.merge(params).logits(program.merge(params)(row, mask=masks.Causal()).features)
    )
    texts = generator(params, prompts, options)
    assert generator(params, prompts, options | {"drafter": "lookup"}) == texts
    for prompt, text in zip(prompts, texts, strict=True):
        ids = [TOKENIZER.bos, *prompt.encode()]
        drawn = []
        while len(drawn) < 16 and (not drawn or drawn[-1] != TOKENIZER.eos):
            row = np.full((1, 48), TOKENIZER.pad, np.int32)
            row[0, : len(ids) + len(drawn)] = ids + drawn
            logits = np.array(whole(params, row)[0, len(ids) + len(drawn) - 1, : TOKENIZER.vocab_size])
            logits[[TOKENIZER.bos, TOKENIZER.pad]] = -np.inf
            drawn.append(int(np.argmax(logits)))
        reader = data.StreamDecoder(TOKENIZER)
        assert text == "".join(map(reader.push, drawn))


def test_parts_that_read_one_stack_are_refused(made):
    program, params = made
    generator, options = generation.make(program, TOKENIZER), program.config.generate.to_dict()
    for key, name in (("drafter", "recycling"), ("memory", "h2o")):
        with pytest.raises(
            ConfigError, match=f"generate.{key}='{name}' does not go with model.kind='{program.spec.kind}'"
        ):
            generator(params, ["a"], options | {key: name})
