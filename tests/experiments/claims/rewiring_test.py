"""The checks `rewiring` and `editing` on tiny runs: what they compare, by other means."""

import jax
import numpy as np
import pytest

from configs.claims import pie, swiftkv
from experiments.claims import editing, rewiring
from experiments.generation import memories, prompt_cost
from experiments.planning import text
from experiments.program import build, counting, inputs, sharding
from experiments.training import train
from experiments.workdir import trained
from kernels import masks
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("one_device")
METHOD = {"effect": 0.05, "looks": (2,), "hours": 1.0, "seeds": (0, 1)}


def base(folder, **changes):
    return tiny.config(folder, model__num_layers=4, train__steps=2, data__length=64, eval__rows=4, **changes)


def test_a_prompt_costs_what_the_formula_says_and_students_start_as_their_teachers(tmp_path):
    """Rates of nothing leave a student as it was rewired, so that both rows have the same bits."""
    distil = swiftkv.get_claim()["distil"] | {"train.steps": 1, "optimizer.learning_rate": 1e-9}
    contrasts = [{"statement": "s", "published": "p", "better": "shared", "worse": "shared untrained"},
                 {"statement": "s", "published": "p", "better": "teacher", "worse": "shared"}]  # fmt: skip
    control = {"says": "c", "reads": ("bits_per_byte", "teacher"), "most": 20.0}
    claim = METHOD | {
        "base": base(tmp_path), "distil": distil, "prompt": 64,
        "arms": {"shared": swiftkv.get_claim()["arms"]["shared"]},
        "cheaper": {"statement": "s", "published": "p"}, "contrasts": contrasts, "control": control,
    }  # fmt: skip
    cost, same, other = rewiring.run(claim, tmp_path / "claim", jobs=1, quiet=True)
    numbers = cost.numbers["prompt"]
    assert numbers["shared"]["formula"] < numbers["teacher"]["formula"]
    assert 0.6 < numbers["shared"]["bytes"] / numbers["teacher"]["bytes"] < 0.8  # three caches of four, and slots
    bits = same.numbers["bits_per_byte"]
    np.testing.assert_allclose(bits["shared"], bits["shared untrained"], rtol=1e-5)
    want = np.subtract(bits["shared"], bits["teacher"])
    np.testing.assert_allclose(other.numbers["differences"], want, rtol=0, atol=1e-12)
    assert "held-out bits per byte: teacher" in other.measured and np.abs(want).min() > 1e-4


def test_flops_of_a_prompt_by_hand():
    """At sizes where products are all, the compiler counts what the formula does."""
    claim = swiftkv.get_claim()
    config = claim["base"].copy_and_resolve_references().unlock()
    D, T = 256, 64
    config.model.update({"width": D, "kind": "swiftkv"})
    config.model.swiftkv.update({"layer": 2, "share": 2})
    made = build(config.lock(), vocab_size=256, mesh=sharding.make_mesh(config, jax.devices()[:1]))
    by_hand = 2 * (2 * 12 * D * D + 4 * D * T) + 2 * 2 * D * D
    assert counting.prompt_flops(made, T) == (by_hand, 4 * 2 * (12 * D * D + 2 * D * T))
    (line,) = (each for each in text.summary(made) if "of a prompt" in each)
    length = config.data.length
    own, whole = 2 * (2 * 12 * D * D + 4 * D * length) + 4 * D * D, 8 * (12 * D * D + 2 * D * length)
    assert line == f"FLOPs per token of a prompt of {length} tokens: {own:.4g}, {own / whole:.1%} of passing all layers"
    assert prompt_cost.flops(made, T) == pytest.approx(by_hand, rel=0.03)


def test_readings_of_an_edit_are_those_of_whole_passes(tmp_path):
    """One layer: the edited cache is the whole text read anew; what was ignored is a text without it."""
    folder = tmp_path
    config = tiny.config(folder, model__num_layers=1, train__steps=2, data__length=24, eval__rows=4)
    train(config, folder / "run", quiet=True)
    model = trained.load(folder / "run")
    got = editing.readings(model, prompt=16, inserted=4)
    assert got["pie"] == pytest.approx(got["full"], rel=1e-6) and got["kl"] < 1e-10
    assert abs(got["unturned"] / got["full"] - 1) > 1e-6
    nats, weight = {"full": 0.0, "ignored": 0.0}, 0.0
    script = editing.source(16, 4)
    assert script.tolist() == [*range(6), -1, -1, -1, -1, *range(6, 12)]
    for batch in inputs.eval_batches(model.config, model.corpus, model.program.rows):
        for row in range(len(batch["tokens"])):
            if batch["positions"][row, -1] != 23:
                continue
            counts = batch["scored"][row, 16:]
            tokens = batch["tokens"][row]
            for name, words in (("full", tokens), ("ignored", np.delete(tokens, range(6, 10)))):
                made = model.program.merge(model.params)
                logits = made.logits(made(words[None], mask=masks.Causal()).features)[0, -8:]
                log_p = np.asarray(jax.nn.log_softmax(logits))
                nats[name] -= (log_p[np.arange(8), batch["targets"][row, 16:]] * counts).sum()
            weight += (model.tokenizer.token_bytes[batch["targets"][row, 16:]] * counts).sum()
    for name, value in nats.items():
        assert got[name] == pytest.approx(value / np.log(2) / weight, rel=1e-4)


def test_the_row_of_what_is_saved(tmp_path):
    claim = pie.get_claim() | {"seeds": (0, 1)}
    numbers = {"saved": {"a": 0.9, "b": 0.86}, "kl": {"a": [0.1], "b": [0.2]}}
    row = editing._saved(claim, numbers, "scale")
    assert row.verdict == "holds" and "a: 90.0%, KL 0.1 nats a token" in row.measured
    assert editing._saved(claim, numbers | {"saved": {"a": 0.9, "b": 0.8}}, "scale").verdict == "does not"
    config = claim["base"].lock()
    made = build(config, vocab_size=256, mesh=sharding.make_mesh(config, jax.devices()[:1]))
    assert editing.share_saved(made, editing.source(96, 8)) == pytest.approx(1 - 8 / 96, abs=0.01)


def test_a_model_without_attention_is_read_by_the_full_cache(tmp_path):
    """LoCoCo keeps no cache that could be watched: bits are there, kept attention is 0."""
    config = tiny.config(tmp_path, model__mixer="lococo", train__steps=2, eval__rows=4)
    train(config, tmp_path / "run", quiet=True)
    model = trained.load(tmp_path / "run")
    rows = memories.Rows(model.program, model.params, list(inputs.eval_batches(model.config, model.corpus)),
                         model.tokenizer.token_bytes, timed=False)  # fmt: skip
    found = memories.evaluate(rows, model.config.generate.to_dict())
    assert found["memory/bits_per_byte"] == found["memory/full_bits_per_byte"] and found["memory/kept_mass"] == 0
