"""Log-probabilities against a plain form, and which token is told when: no half characters, no stop strings."""

import types

import numpy as np
import pytest

import data
from experiments.generation.request import Result
from experiments.serving.answers import Answer, shown
from experiments.serving.asked import completion
from experiments.serving.reading import Prompt
from experiments.serving.scores import Scores, log_probabilities
from experiments.serving.tracks import Places, Track


def test_scores_are_those_of_the_token_before():
    rng = np.random.default_rng(0)
    logits, tokens, size = rng.normal(size=(5, 8)) * 3, np.array([2, 0, 5, 5, 1]), 6
    made = log_probabilities(np.float32(logits), tokens, size, 4)
    assert made.own[0] == 0
    for t in range(1, 5):
        law = [float(np.exp(value)) for value in logits[t - 1, :size]]
        law = [np.log(value / sum(law)) for value in law]
        order = sorted(range(size), key=lambda v: -law[v])
        assert made.own[t] == pytest.approx(law[tokens[t]], abs=1e-5)
        assert list(made.ids[t]) == order[:4]
        assert list(made.best[t]) == pytest.approx([law[v] for v in order[:4]], abs=1e-5)


TEXT = "aé€😀b"


def track(**more):
    tokenizer = data.ByteTokenizer()
    request = types.SimpleNamespace(tokens=[], text=[], found=0, options={"stop": more.pop("stop", ())})
    return Track("1", Prompt(np.array([256, 65]), 1, "A"), tokenizer, request, **more)


def scored(ids):
    """Scores that say the place: own[t] = -t."""
    places = np.arange(len(ids), dtype=np.float32)
    return Scores(-places, np.stack([np.asarray(ids), np.zeros_like(ids)], 1), np.stack([-places, -places - 1], 1))


def test_a_token_is_told_with_its_character_wherever_the_stream_is_cut():
    raw = TEXT.encode()
    places = Places(data.ByteTokenizer())
    places.push(raw)
    assert places.begin == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4] and places.text == TEXT
    for first in range(1, len(raw)):
        made = track(alternatives=1, streams=True, echo=True)
        told, marks = "", []
        for end in (first, len(raw)):
            made.request.tokens = list(raw[:end])
            whole = raw[:end].decode("utf-8", "ignore")
            made.request.text = [whole[: len(told)], whole[len(told) :]] if told else [whole]
            made._pieces = int(bool(told))
            result = Result(1, TEXT, tuple(raw), "limit", 9) if end == len(raw) else None
            event = made.event(result, scored)
            if event is None:
                assert raw[:end].decode("utf-8", "ignore") == told
                continue
            text = event["text"].removeprefix("A") if not told else event["text"]
            told += text
            marks += event["marks"]
            assert made.text == told
        assert told == TEXT and [mark[0].encode("latin-1")[0] for mark in marks] == [65, *raw]
        assert [mark[1] for mark in marks] == [-1.0 - i for i in range(len(raw) + 1)]
        assert [mark[3] for mark in marks] == [0, *(1 + at for at in places.begin)]


def test_tokens_of_a_stop_string_are_told_to_nobody():
    made = track(alternatives=0, streams=False, stop=("cd",))
    made.request.tokens = list(b"abcdef")
    assert made.event(None, scored) is None
    made.request.text = ["ab"]
    event = made.event(Result(1, "ab", tuple(b"abcdef"), "stop", 6), scored)
    assert [mark[0] for mark in event["marks"]] == ["a", "b"] and event["counts"] == [2, 2, 0]
    made = track(alternatives=0, streams=False)
    made.request.tokens, made.request.text, made.request.found = [*b"ab", 257], ["ab"], 1
    event = made.event(Result(1, "ab", (97, 98, 257), "end", 3), scored)
    assert [mark[0] for mark in event["marks"]] == ["a", "b", "<|eos|>"] and event["counts"] == [2, 3, 1]


def test_drafts_are_all_but_the_last_token_of_a_round():
    made = track(drafts=True, streams=True)
    for tokens in ([1], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6]):
        made.request.tokens = tokens
        made.looked()
    assert made.drafted == [False, True, True, False, True, False]


def test_what_is_no_character_is_shown_as_bytes_and_no_number_is_infinite():
    assert [shown("a"), shown("\xc3\xa9"), shown("\xe2\x82")] == ["a", "é", "bytes:\\xe2\\x82"]
    answer = Answer(completion({"prompt": "a", "logprobs": 2}), "m")
    mark = ["b", -float("inf"), [["c", -0.5], ["\xe2", -2.0]], 0, False]
    answer.take(
        {"choice": 0, "text": "b", "marks": [["x", None, None, 0, False], mark], "end": "end", "counts": [2, 1, 0]}
    )
    found = answer.whole()["choices"][0]["logprobs"]
    assert found["token_logprobs"] == [None, -9999.0]
    assert found["top_logprobs"] == [None, {"c": -0.5, "bytes:\\xe2": -2.0, "b": -9999.0}]
