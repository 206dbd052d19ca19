"""Greedy text is what it was before the engine came: tokens of every mixer, kept in `fixtures/greedy.json`.

The file was written by the decoder of that time, from the models of `lm_test` with seed 0, init_std 0.5 and a free
head: prompts of 7, 13 and 18 tokens, 16 tokens each. Texts at other temperatures are not what they were: their keys are
folded from the request, the position and the purpose since.
"""

import json
import pathlib

import numpy as np
import pytest

from tests.models.decoding import stream_test
from tests.models.lm_test import VARIANTS

BEFORE = json.loads((pathlib.Path(__file__).parents[2] / "fixtures" / "greedy.json").read_text())


@pytest.mark.parametrize("name", BEFORE)
def test_greedy_tokens_are_those_of_the_decoder_before(name, monkeypatch):
    changes = stream_test.MODELS.get(name) or VARIANTS[name]
    if "gated_delta" in changes:  # There was no convolution before it.
        changes = changes | {"gated_delta": changes["gated_delta"] | {"conv": 0}}
    monkeypatch.setitem(stream_test.MODELS, f"untied {name}", changes | {"tied": False})
    monkeypatch.setattr(stream_test, "LIMIT", stream_test.LENGTH + 16)
    monkeypatch.setattr(stream_test, "prompts", prompts)
    texts, calls = stream_test.run(f"untied {name}", (17,), settings=[{"temperature": 0.0}] * 3)
    assert [text[n:] for text, n in zip(texts, stream_test.LENGTH, strict=True)] == BEFORE[name]
    assert calls == [16] * 3


def prompts():
    """The prompts, with room for their texts."""
    rng = np.random.default_rng(0)
    text = np.tile(rng.integers(0, stream_test.V, (3, 8)), (1, 5)).astype(np.int32)
    return np.where(np.arange(40) < stream_test.LENGTH[:, None], text, 0)
