"""Evaluation under a policy: bits per byte against the whole forward pass, what is kept, bytes, and going on."""

import functools
import json
import math
import pathlib
import types

import jax
import numpy as np
import pytest

from experiments.generation import memories
from experiments.report import kept
from experiments.settings.errors import Refused
from kernels import masks
from tests.experiments.generation.generate_test import OPTIONS, made

T, CUT = 24, 10
BYTES = np.full(259, 1)


def batches():
    rng = np.random.default_rng(0)
    for i in range(2):
        text = rng.integers(0, 256, (2, T + 1)).astype(np.int32)
        scored = np.ones((2, T), bool)
        if i == 1:
            scored[1] = False  # a row of padding
        yield {"tokens": text[:, :-1], "targets": text[:, 1:], "scored": scored}


def asked(name, **options):
    return OPTIONS | {"memory": name, name: OPTIONS[name] | options}


@functools.cache
def full_bits():
    """Of the targets behind the prompts, by one forward pass and numpy."""
    program, params = made()

    @jax.jit
    def logits(tokens):
        model = program.merge(params)
        return model.logits(model(tokens, mask=masks.Causal()).features)

    nats = count = 0
    for batch in batches():
        x = np.asarray(logits(batch["tokens"]), np.float64)
        x = x - x.max(-1, keepdims=True)
        law = x - np.log(np.exp(x).sum(-1, keepdims=True))
        each = -np.take_along_axis(law, batch["targets"][..., None], axis=-1)[:, CUT:, 0]
        nats += each[batch["scored"][:, CUT:]].sum()
        count += batch["scored"][:, CUT:].sum()
    return nats / math.log(2) / count


def test_a_policy_is_compared_with_the_full_cache_and_an_evaluation_goes_on(tmp_path):
    program, params = made()

    def run(batches, **more):
        return memories.evaluate(memories.Rows(program, params, batches, BYTES, CUT), **more)

    options = asked("h2o", budget=4.0, recent=2.0)
    whole = run(batches=batches(), generate=options)
    # 42 logits of float32 sums of width 32: far below a thousandth of a bit
    assert whole["memory/full_bits_per_byte"] == pytest.approx(full_bits(), abs=1e-4)
    assert abs(whole["memory/bits_per_byte"] - full_bits()) > 1e-3
    assert 0.1 < whole["memory/kept_mass"] < whole["memory/best_mass"] < 1
    assert whole["memory/rows"] == 3 and whole["memory/prompt"] == CUT
    assert whole["memory/state_bytes"] < whole["memory/full_state_bytes"]

    def killed():
        yield next(batches())
        raise KeyboardInterrupt

    folder = tmp_path / "memories"
    with pytest.raises(KeyboardInterrupt):
        run(batches=killed(), generate=options, folder=folder)
    (path,) = folder.glob("*.jsonl")
    path.write_text(path.read_text() + '{"batch": 1, "nats": [')  # the line that it was writing
    first = path.read_bytes().index(b'"nats": [') + len(b'"nats": [')
    with_another_digit = path.read_bytes()
    digit = bytes([with_another_digit[first] ^ 1])
    path.write_bytes(with_another_digit[:first] + digit + with_another_digit[first + 1 :])  # Its batch is made again.
    again = run(batches=batches(), generate=options, folder=folder)
    for name in ("bits_per_byte", "full_bits_per_byte", "kept_mass", "best_mass", "difference_se", "rows"):
        assert again[f"memory/{name}"] == whole[f"memory/{name}"], name
    assert len(path.read_text().splitlines()) == 3
    assert json.loads(path.with_suffix(".json").read_text())["seen"] == whole["seen"]
    page = "".join(kept.section(tmp_path))
    assert page.count("<figure>") == 1 and "h2o: " in page and page.count("layer ") == len(whole["seen"])


def test_a_budget_of_the_whole_text_costs_nothing():
    program, params = made()
    found = memories.evaluate(
        memories.Rows(program, params, batches(), BYTES, CUT), asked("h2o", budget=64.0, recent=2.0)
    )  # fmt: skip
    assert found["memory/bits_per_byte"] == pytest.approx(full_bits(), abs=1e-4)
    assert found["memory/kept_mass"] == pytest.approx(1, abs=1e-5) == found["memory/best_mass"]
    assert all(share == 1 for layer in found["seen"] for share in layer)


def test_a_window_shows_its_last_tokens():
    program, params = made()
    found = memories.evaluate(memories.Rows(program, params, batches(), BYTES, CUT), asked("window", size=5))
    assert all(layer == [0] * (T - 5) + [1] * 5 for layer in found["seen"])
    assert 0 < found["memory/kept_mass"] < found["memory/best_mass"] < 1


def test_a_picture_has_a_rectangle_for_each_run_of_equal_shares():
    drawn = kept.picture([[0, 1, 1, 0.5, 0], [1, 1, 1, 1, 1]], prompt=2)
    assert drawn.count("<rect") == 3 and drawn.count("<text") == 2
    assert 'x="192.00" y="1" width="264.00"' in drawn and 'opacity="0.5"' in drawn
    assert kept.section(pathlib.Path("nowhere")) == []


def test_results_are_of_these_parameters_and_of_this_text(monkeypatch):
    """A run begun anew in its folder comes to the same step with other parameters: what was kept is of the old one."""
    program, params = made()
    asked_about = []
    monkeypatch.setattr(memories, "evaluate", lambda *_, about, **kw: asked_about.append(about))
    monkeypatch.setattr(memories, "said", lambda *_: "")
    monkeypatch.setattr(memories.inputs, "eval_batches", lambda *_: ())
    config = program.config.copy_and_resolve_references().unlock()
    config.generate.memory = "h2o"
    for scale, corpus in ((1, "a"), (1, "a"), (1.001, "a"), (1, "b")):
        model = types.SimpleNamespace(
            config=config, program=program, params=jax.tree.map(lambda x, s=scale: x * s, params), step=3,
            tokenizer=types.SimpleNamespace(token_bytes=BYTES), corpus=types.SimpleNamespace(hash=corpus),
        )  # fmt: skip
        memories.of_run(model, None)
    assert asked_about[0] == asked_about[1] and asked_about[0]["step"] == 3
    assert len({json.dumps(about) for about in asked_about}) == 3


def test_numbers_that_are_not_finite_are_no_result(tmp_path):
    program, params = made()
    broken = jax.tree.map(lambda x: x * np.float32("nan"), params)
    with pytest.raises(Refused, match="generate.memory=h2o: bits per byte are not finite"):
        memories.evaluate(memories.Rows(program, broken, batches(), BYTES, CUT), asked("h2o"), folder=tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_a_line_that_lacks_what_is_added_up_is_made_again():
    """Its checksum is right: somebody made it so."""
    row = {"batch": 0, **{name: [1.0] for name in memories.SUMS}, "seen": [[1]]}
    assert memories._whole(memories._line(row)) == row
    for key in row:
        assert memories._whole(memories._line({k: v for k, v in row.items() if k != key})) is None, key
    assert memories._whole(memories._line(row | {"nats": 1.0})) is None
