"""Fields of requests: what they become, and that docs/server.md has all of them."""

import inspect
import re

import pytest

from experiments.serving import asked, scores
from experiments.serving.wrong import Wrong
from tests.environment import ROOT

PAGE = (ROOT / "docs" / "server.md").read_text()


def test_the_page_names_every_field_and_no_other():
    table = PAGE.split("| field | |")[1].split("\n\n")[0]
    named = {word.split("=")[0] for word in re.findall(r"`([^`]+)`", table)} - {"extra_body", "drafted", "n"}
    known = (asked.COMPLETION | asked.CHAT).keys() - {"model", "prompt", "messages", "stream_options", "tool_choice"}
    named = {name.removesuffix(".include_usage").replace("stream_options", "stream") for name in named}
    assert named | {"n", "function_call"} == known


def test_the_page_has_the_formula_as_the_code_has_it():
    signature = ", ".join(inspect.signature(scores.log_probabilities).parameters)
    assert f"experiments.serving.scores.log_probabilities({signature})" in PAGE


def test_a_body_becomes_settings_of_generate():
    said = {
        "prompt": ["a", [5, 6]], "n": 2, "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1,
        "stop": "x", "presence_penalty": 1, "frequency_penalty": 2, "repetition_penalty": 3,
        "logit_bias": {"7": -1.5, "8": 100}, "seed": 4, "logprobs": 2, "suffix": "", "best_of": 2, "user": "u",
        "stream": None,
    }  # fmt: skip
    made = asked.completion(said)
    assert made.prompts == ({"text": "a"}, {"ids": [5, 6]}) and made.choices == 4 and made.seed == 4
    assert (made.alternatives, made.stream, made.echo, made.usage) == (2, False, False, False)
    assert made.settings.generate() == {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "stop": ("x",),
        "penalties": {"presence": 1.0, "frequency": 2.0, "repetition": 3.0}, "logit_bias": {"ids": "7:-1.5, 8:100.0"},
    }  # fmt: skip
    assert asked.completion({"prompt": [1, 2]}).prompts == ({"ids": [1, 2]},)
    assert (
        asked.completion({"prompt": "a"}).settings.generate() == {} and asked.completion({"prompt": "a"}).seed is None
    )
    with pytest.raises(Wrong, match="2 prompts with n=100 are 200 texts; at most 128."):
        asked.completion({"prompt": ["a", "b"], "n": 100})


def test_a_chat_becomes_messages():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    told = [{"role": "developer", "content": "d"}, {"role": "user", "content": parts, "name": "me"}]
    made = asked.chat({"messages": told, "max_completion_tokens": 5, "max_tokens": 7, "logprobs": True, "tools": []})
    (prompt,) = made.prompts
    assert prompt["messages"] == [{"role": "system", "content": "d"}, {"role": "user", "content": "ab"}]
    assert made.settings.max_tokens == 5 and made.alternatives == 0
    assert asked.chat({"messages": told, "logprobs": True, "top_logprobs": 3}).alternatives == 3
    assert asked.chat({"messages": told}).alternatives is None
