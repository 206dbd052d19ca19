"""Measures of finished runs, on answers and figures that are made up."""

import math
import types

import numpy as np
import pytest

from configs.claims import small
from data.tasks import loading
from experiments import workdir as files
from experiments.claims import answers, arms, contrast, held_out, measures, places
from experiments.settings.errors import Refused
from tests.experiments.program.step_values_test import drawn, numpy
from tests.plain import tiny


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


def evaluated(folder, bits, every=10):
    """A run of 32 tokens a step over 80 tokens of text, evaluated every `every` steps."""
    lines = [{"step": 5, "tokens": 160, "train/loss": 9.0}]
    steps = [every * (k + 1) for k in range(len(bits))]
    lines += [{"step": s, "tokens": 32 * s, "eval/bits_per_byte": b} for s, b in zip(steps, bits, strict=True)]
    files.write_file(folder / files.METRICS, b"".join(map(files.line, lines)))
    files.write_json(folder / files.RUN, {"corpus": {"splits": {"train": {"tokens": 80}, "valid": {"tokens": 7}}}})
    return {"workdir": folder, "eval/bits_per_byte": bits[-1], "eval/kind": "="}


def test_a_curve_has_a_lowest_value_and_rises_from_it(tmp_path):
    row = evaluated(tmp_path / "run", [4.0, 3.5, 3.75, 4.5])
    wanted = {"lowest": 3.5, "rise": 1.0, "epochs_at_lowest": 8.0}  # 20 steps of 32 tokens, 80 an epoch
    assert measures.MEASURES["lowest"].of(row) == measures.MEASURES["rise"].of(row) == wanted
    with pytest.raises(Refused, match="has 1 evaluations and no curve; let eval.every"):
        held_out.figures(evaluated(tmp_path / "once", [4.0]))
    with pytest.raises(Refused, match="evaluated at other steps"):
        held_out.curves([row, evaluated(tmp_path / "other", [4.0, 3.5, 3.75, 4.5], every=20)])


def test_a_contrast_keeps_the_curves_that_its_claim_asks_for(tmp_path, monkeypatch):
    """One pair by the lowest value, another by the rise; curves go to the first row only."""
    bits = {"steady": ([4.0, 3.7], [4.1, 3.8]), "rising": ([3.5, 4.4], [3.4, 4.5])}
    about = {"parameters": 1e5, "tokens": 1e6, "flops": 1e9, "loss": 2.5}

    def trained(base, arms, seeds, workdir, **_):
        return {arm: [about | evaluated(tmp_path / f"{arm}{k}", bits[arm][k]) for k in seeds] for arm in arms}

    monkeypatch.setattr(contrast.arms, "train", trained)
    monkeypatch.setattr(contrast.arms, "compare", lambda *_: None)
    pair = {"statement": "s", "published": "p", "better": "steady", "worse": "rising"}
    claim = {"base": small(1, log_every=1, rows=8), "arms": {"steady": {}, "rising": {}}, "seeds": (0, 1)}
    claim |= {"score": "lowest", "pairs": [pair, pair | {"score": "rise"}], "curves": True}
    lowest, rise = contrast.run(claim, tmp_path, jobs=1, quiet=True)
    assert lowest.numbers["differences"] == pytest.approx([-0.2, -0.4])
    assert rise.numbers["differences"] == pytest.approx([0.9, 1.1])
    assert "steady = 3.750 bits per byte at its lowest, after 8 epochs" in lowest.measured
    assert lowest.numbers["curves"]["rising"] == {"epochs": [4.0, 8.0], "bits_per_byte": [[3.5, 4.4], [3.4, 4.5]]}
    assert "curves" not in rise.numbers


def test_losses_along_rows_are_those_of_their_places(monkeypatch, x64):
    """Eight places of logits by numpy in float64, one eighth each; padding and what is not scored do not count."""
    made = tiny.program(tiny.config(data__length=8, eval__rows=3, data__batch_size=3))
    params, rng = drawn(made), np.random.default_rng(0)
    tokens, scored = rng.integers(0, tiny.V, (3, 9)), rng.random((3, 8)) < 0.7
    scored[0] = True  # every place has a target
    rows = {"positions": np.tile(np.arange(8), (3, 1)), "segment_ids": np.ones((3, 8), int)}
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], **rows}
    batch = {name: x.astype(np.int32) for name, x in batch.items()} | {"scored": scored}
    model = types.SimpleNamespace(config=made.config, program=made, params=params, corpus=None)
    monkeypatch.setattr(places.trained, "load", lambda workdir: model)
    monkeypatch.setattr(places.inputs, "eval_batches", lambda config, corpus: [batch, batch])
    named, loss = numpy(params), []
    for tokens_, targets in zip(batch["tokens"], batch["targets"], strict=True):
        x = tiny.features(named, tokens_, segments=np.ones(8), positions=np.arange(8))
        loss.append(-tiny.log_probs(named, x)[np.arange(8), targets])
    wanted = [np.mean(np.array(loss)[scored[:, k], k]) for k in range(8)]
    found = measures.MEASURES["fall"].of({"workdir": "run"})
    np.testing.assert_allclose([found[f"eighth {k + 1}"] for k in range(8)], wanted, rtol=1e-9)
    assert found["fall"] == pytest.approx(wanted[1] - wanted[7], rel=1e-9)


def test_parts_of_rows_weigh_every_target_alike():
    nats, scored = np.arange(12.0).reshape(2, 6), np.ones((2, 6), bool)
    scored[0, 1] = scored[1, 5] = False
    np.testing.assert_allclose(places.by_part(nats, scored, 2), [(0 + 2 + 6 + 7 + 8) / 5, (3 + 4 + 5 + 9 + 10) / 5])
    with pytest.raises(Refused, match="data.length=6 has no 4 equal parts; use e.g. data.length=4"):
        places.by_part(nats, scored, 4)
    with pytest.raises(Refused, match="part 2 of 2 of the rows has no scored target"):
        places.by_part(nats, scored & (np.arange(6) < 3), 2)
