"""The check `steered`: what is scored and written is what passes over whole texts say; the rows of a claim by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.claims import steered
from experiments.program import build, inputs, sharding
from kernels import masks
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("one_device")


def model(folder, **settings):
    """An untrained model with sharp laws, and its corpus."""
    settings = {"model__init": "fan_in", "model__init_std": 0.5, "model__num_layers": 3, "eval__rows": 4, **settings}
    config = tiny.config(folder, **settings)
    corpus = inputs.load(config)
    program = build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=sharding.make_mesh(config, jax.devices()[:1]))
    params = program.init()["params"]
    return types.SimpleNamespace(
        config=config, corpus=corpus, program=program, params=params, tokenizer=corpus.tokenizer
    )


def laws(model, tokens):
    """log p `[T, V]` of the token behind each, in float64, without those that are never drawn."""
    made = model.program.merge(model.params)
    features, *_ = made(jnp.asarray(tokens)[None], mask=masks.Causal())
    logits = np.array(made.logits(features)[0], np.float64)
    logits[:, [model.tokenizer.bos, model.tokenizer.pad]] = -np.inf
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def test_text_is_scored_by_the_law_of_each_setting(tmp_path):
    """All layers: passes over whole rows. A schedule of one layer at the end: as many calls as its formula has."""
    made = model(tmp_path)
    reader = steered.Reader(made, 20)
    options = made.config.generate.to_dict() | {"temperature": 1.0}
    nats, drawn = [], sum(map(len, reader.rows.wanted))
    for ids, wanted, counts in zip(*reader.rows, strict=True):
        law = laws(made, np.concatenate([ids, wanted]))
        nats += [-law[at, token] for at, (token, some) in enumerate(zip(wanted, counts, strict=True), 19) if some]
    found = reader.figures(options)
    np.testing.assert_allclose(found["loss"], np.mean(nats), rtol=1e-5)  # float32 sums of some thousand terms.
    assert found["layers"] == 3.0
    skipped = reader.figures(options | {"control": "skip", "skip": {"least": 1, "warm_up": 1}})
    length, more = 20, drawn // len(reader.rows.ids)
    n = [round(3 - 2 * min(1, max(0, (t - length) / (more - 1)))) for t in range(length - 1, length + more - 1)]
    np.testing.assert_allclose(skipped["layers"], np.mean(n))
    assert abs(skipped["loss"] - found["loss"]) > 1e-3


def test_answers_are_written_up_to_the_end_symbol_and_compared_whole(tmp_path):
    made = model(tmp_path, data__source="task:arithmetic", data__name="digits=1", data__path="", data__length=8)
    reader, options = steered.Reader(made, 0), made.config.generate.to_dict()
    greedy = []
    for ids, wanted in zip(reader.rows.ids, reader.rows.wanted, strict=True):
        assert ids[-1] == 11 and wanted[-1] == 12
        tokens = ids.tolist()
        while len(tokens) < len(ids) + 3 and tokens[-1] != 12:
            tokens.append(int(np.argmax(laws(made, tokens)[-1])))
        greedy.append(tokens[len(ids) :])
    p = reader.progress(options | {"temperature": 0.0})
    text = [np.asarray(p.text)[i, len(ids) : p.length[i]].tolist() for i, ids in enumerate(reader.rows.ids)]
    assert text == greedy
    reader.rows.wanted[1] = np.asarray(greedy[1], np.int32)
    reader.rows.wanted[2] = np.asarray(greedy[2][:-1], np.int32)  # What is written begins so, and is not right.
    found = reader.figures(options | {"temperature": 0.0})
    right = np.mean([list(want) == got for want, got in zip(reader.rows.wanted, greedy, strict=True)])
    assert found == {"exact": right, "any_of": right, "calls": np.mean([len(got) for got in greedy])} and right > 0


def test_rows_of_a_claim_by_hand(monkeypatch, tmp_path):
    """Two seeds, a curve that is read where it costs what a cell does, and a gain for the control."""
    told = {  # by seed, line and point
        (0, "a", "1"): (0.5, 3.0), (1, "a", "1"): (0.7, 5.0), (0, "b", "1"): (0.2, 1.0), (1, "b", "1"): (0.4, 1.0),
        (0, "b", "5"): (0.6, 5.0), (1, "b", "5"): (0.6, 5.0),
    }  # fmt: skip
    lines = {"a": {"1": {"seed_of": "a1"}}, "b": {"1": {"seed_of": "b1"}, "5": {"seed_of": "b5"}}}

    class Fake:
        def __init__(self, model, prompt):
            self.seed = model.seed

        def figures(self, options, draws):
            exact, calls = told[self.seed, *options["seed_of"]]
            return {"exact": exact, "any_of": exact + draws, "calls": calls}

    options = types.SimpleNamespace(to_dict=lambda: {"seed_of": ""})
    loaded = lambda seed: types.SimpleNamespace(seed=seed, config=types.SimpleNamespace(generate=options))  # noqa: E731
    trained = {"m": [{"workdir": seed, "parameters": 1e6, "tokens": 1e6} for seed in (0, 1)]}
    monkeypatch.setattr(steered, "Reader", Fake)
    monkeypatch.setattr(steered.arms, "train", lambda *_, **__: trained)
    monkeypatch.setattr(steered.trained, "load", loaded)
    both = {"statement": "s", "published": "p", "measure": "exact", "better": ("m", "a", "1")}
    claim = {
        "base": types.SimpleNamespace(eval=types.SimpleNamespace(rows=4)), "arms": {"m": {}}, "lines": lines,
        "seeds": (0, 1), "draws": {"b": 2}, "gain": {"g": (("any_of", ("m", "b", "1")), ("exact", ("m", "a", "1")))},
        "contrasts": [both | {"worse": ("m", "b", "1")}, both | {"worse": ("m", "b"), "at": "calls"}],
    }  # fmt: skip
    plain, at = steered.run(claim, tmp_path, jobs=1, quiet=True)
    np.testing.assert_allclose(plain.numbers["differences"], [0.3, 0.3])
    np.testing.assert_allclose(at.numbers["differences"], [0.5 - 0.4, 0.7 - 0.6])
    np.testing.assert_allclose(plain.numbers["gain"]["g"], [2.2 - 0.5, 2.4 - 0.7])
    assert plain.numbers["calls"]["m"]["b"]["5"] == [5.0, 5.0] and "4.00 passes" in at.measured
    assert steered.at_cost([[1.0], [5.0]], [[0.0], [1.0]], [9.0]) == [1.0]  # Level beyond its points.
