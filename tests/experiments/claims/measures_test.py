"""Measures of finished runs, on answers and figures that are made up."""

import math
import types

import numpy as np
import pytest

from configs.claims import small
from data.tasks import loading
from experiments.claims import answers, arms, measures


@pytest.mark.parametrize(("differ", "wrong"), [(True, "exact_apart"), (False, "exact_alike")])
def test_sums_are_told_apart_by_their_lengths(monkeypatch, differ, wrong):
    """A model that is right but for the last answered token of each sum whose lengths, read as text, differ."""
    corpus = loading.corpus("arithmetic", "digits=4, group=2, from_left=true")
    config = small(1, log_every=1, rows=96)
    config.data.update({"length": 10, "batch_size": 40})
    model = types.SimpleNamespace(config=config.lock(), corpus=corpus)
    symbols = [str(k) for k in range(10)] + [f"{k:02}" for k in range(100)] + ["+", "=", "."]
    counts = {True: 0, False: 0}

    def answer(batch):
        predicted = np.where(batch["scored"], batch["targets"], 0)
        for tokens, asked, row in zip(batch["tokens"], batch["scored"], predicted, strict=True):
            if not asked.any():  # a row that fills up the last batch
                continue
            text = "".join(symbols[k] for k in tokens if k < len(symbols))
            a, b = map(int, text.split("=")[0].split("+"))
            apart = len({len(str(number)) % 2 for number in (a, b, a + b)}) > 1
            counts[apart] += 1
            row[np.flatnonzero(asked)[-1]] += apart == differ
        return predicted, None

    monkeypatch.setattr(answers.trained, "load", lambda workdir: model)
    monkeypatch.setattr(answers, "following", lambda model: answer)
    right = {"exact_alike", "exact_apart"} - {wrong}
    assert answers.by_lengths("run") == {wrong: 0.0, right.pop(): 1.0}
    assert sum(counts.values()) == 96 and min(counts.values()) > 10
    assert measures.MEASURES[wrong].of({"workdir": "run"}) == {wrong: 0.0}


def test_bytes_of_a_token_follow_from_both_losses():
    row = {"loss": 3 * math.log(2), "eval/bits_per_byte": 1.2}
    assert measures.MEASURES["bytes_per_token"].of(row)["bytes_per_token"] == pytest.approx(3 / 1.2)


def test_an_arm_that_says_its_steps_keeps_them(monkeypatch):
    monkeypatch.setattr(arms, "flops_per_step", lambda config: config.model.width)
    given = {"one": {}, "twice": {"model.width": 128}, "own": {"model.width": 256, "train.steps": 9}}
    arms.equalise(small(10, log_every=1, rows=8), given, "one")
    assert {arm: values["train.steps"] for arm, values in given.items()} == {"one": 10, "twice": 5, "own": 9}
