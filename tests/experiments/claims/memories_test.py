"""The check `memories`: every arm read in every setting, contrasts judged by seed, one figure of all lines."""

import types

import numpy as np
import pytest

from configs.claims import small
from experiments.claims import memories

BASE = small(1, log_every=1, rows=8)
METHOD = {
    "base": BASE, "effect": 0.02, "hours": 1.0, "looks": (2,), "axis": "x", "arms": {"plain": {}, "sink": {}},
    "control": {"says": "c", "reads": ("bits_per_byte", "plain", "streaming", "4"), "most": 9.0},
}  # fmt: skip


def contrast(better, worse, measure="bits_per_byte"):
    return {"statement": "s", "published": "p", "measure": measure, "better": better, "worse": worse}


def planted(monkeypatch, bits):
    """Every run is there, and reading it under options gives `bits(arm, seed, options)`; what was asked for."""
    asked = []

    def trained(base, arms, seeds, workdir, **_):
        about = {"parameters": 1e5, "tokens": 1e6}
        return {arm: [about | {"workdir": (arm, seed)} for seed in seeds] for arm in arms}

    def load(workdir):
        config = BASE.copy_and_resolve_references()
        return types.SimpleNamespace(
            config=config, workdir=workdir, program=types.SimpleNamespace(rows=(0, 1)), params=None, corpus=None,
            tokenizer=types.SimpleNamespace(token_bytes=np.ones(3)),
        )  # fmt: skip

    def evaluate(rows, options, **kept):
        asked.append((rows, kept["about"]))
        return {f"memory/{name}": bits(*kept["folder"], options) for name in memories.MEASURES}

    monkeypatch.setattr(memories.arms, "train", trained)
    monkeypatch.setattr(memories.trained, "load", load)
    monkeypatch.setattr(memories.memories, "kept_in", lambda model, workdir: {"folder": workdir, "about": {"step": 1}})
    monkeypatch.setattr(memories.memories, "evaluate", evaluate)
    monkeypatch.setattr(
        memories.inputs, "eval_batches", lambda config, *_: iter([{"tokens": np.zeros((1, config.data.length))}])
    )
    return asked


def test_contrasts_are_paired_by_seed_and_fewer_bits_are_ahead(tmp_path, monkeypatch):
    def bits(arm, seed, options):
        sinks = options["streaming"]["sinks"] if options["memory"] == "streaming" else 9
        return 2 + seed + {0: 0.5, 4: 0.1, 9: 0.3}.get(sinks, 0.2) * (arm == "plain")

    asked = planted(monkeypatch, bits)
    keeps = lambda sinks: {"memory": "streaming", "streaming": {"budget": 48.0, "sinks": sinks}}  # noqa: E731
    lines = {"full": {"4": {"memory": "full"}}, "streaming": {str(n): keeps(n) for n in (0, 1, 2, 4)}}
    claim = METHOD | {"lines": lines, "length": 384, "prompt": 64, "seeds": (0, 1, 2)}
    four, none = (("plain", "streaming", point) for point in ("4", "0"))
    claim["contrasts"] = [
        contrast(four, none), contrast(four, ("plain", "full", "4")),
        contrast(("sink", "streaming", "0"), ("sink", "streaming", "4")),
    ]  # fmt: skip
    window, full, trained = memories.run(claim, tmp_path, jobs=1, quiet=True)
    assert window.numbers["differences"] == pytest.approx([0.4] * 3) and window.verdict == "holds"
    assert full.numbers["differences"] == pytest.approx([0.2] * 3)
    assert trained.numbers["differences"] == pytest.approx([0.0] * 3) and trained.verdict == "equal within the effect"
    assert window.numbers["bits_per_byte"]["plain"]["streaming"]["4"] == pytest.approx([2.1, 3.1, 4.1])
    assert "plain, streaming, 4: 3.1000; plain, streaming, 0: 3.5000" in window.measured
    for rows, about in asked:
        assert rows.prompt == 64 and rows.batches[0]["tokens"].shape == (1, 384) and not rows.timed
        assert about == {"step": 1, "length": 384, "prompt": 64}
    assert len(asked) == 2 * 3 * 5
    assert {path.name for path in tmp_path.iterdir()} == {
        "memories-bits_per_byte.svg", "memories-bits_per_byte.png",
    }  # fmt: skip


def test_policies_at_budgets_are_lines_and_more_right_tokens_are_ahead(tmp_path, monkeypatch):
    planted(monkeypatch, lambda arm, seed, options: {"h2o": 0.9, "random": 0.6}.get(options["memory"], 0.7) + seed / 9)
    claim = METHOD | {"policies": ("h2o", "random", "quest"), "budgets": (16, 32), "seeds": (0, 1), "arms": {"m": {}}}
    claim["contrasts"] = [contrast(("m", "h2o", "16"), ("m", "random", "16"), "accuracy")]
    lines = memories.lines_of(claim)
    assert [*lines] == ["full", *claim["policies"]]
    assert [*lines["h2o"]] == ["16", "32"] and lines["full"] == {"32": {"memory": "full"}}
    assert lines["h2o"]["16"] == {
        "memory": "h2o", "max_tokens": 64, "h2o": lines["h2o"]["16"]["h2o"] | {"budget": 16.0, "recent": 8.0},
    }  # fmt: skip
    assert "lot" in lines["random"]["16"]  # Its knobs stand under another name.
    dense = memories.lines_of(claim | {"generate": {"quest": {"dense": 1}}})
    assert [line["16"].get("quest", {}).get("dense") for line in (lines["quest"], dense["quest"])] == [0, 1]
    assert dense["h2o"] == lines["h2o"]
    (row,) = memories.run(claim, tmp_path, jobs=1, quiet=True)
    assert row.numbers["mean"] == pytest.approx(0.3) and row.verdict == "holds"
