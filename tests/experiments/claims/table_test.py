"""The check `table`: every cell measured, contrasts judged, figures drawn."""

import pytest

from configs.claims import lact_chunk_size, recall
from experiments.claims import measures, table
from tests.experiments.claims.claims_test import small


def test_a_table_measures_every_cell_and_judges_the_contrasts(tmp_path, monkeypatch):
    """Planted losses and answers; states and shares of the machine as they are."""
    claim = lact_chunk_size.get_claim()
    claim["base"], claim["seeds"] = small(recall.get_claim()["base"], tmp_path), (0, 1)
    claim["lines"] = {"window": {"model.attention.window": 2}, "linear, 1 head": {"model.mixer": "linear_attention"}}
    claim["lines"]["linear, 1 head"]["model.num_heads"] = 1
    claim["points"] = {"4": {"data.name": "pairs=4, queries=4, keys=16, values=16, noise=4", "data.length": 64}}
    contrast = {"statement": "s", "published": "p", "better": ("window", "4"), "worse": ("linear, 1 head", "4")}
    claim["contrasts"] = [{**contrast, "measure": measure} for measure in ("accuracy", "loss", "share")]
    loss = {"window, 4": 1.0, "linear, 1 head, 4": 2.0}

    def trained(base, arms, seeds, workdir, **_):
        assert arms["window, 4"] == {**claim["lines"]["window"], **claim["points"]["4"]}
        about = {"parameters": 1e5, "tokens": 1e6}
        return {a: [about | {"loss": loss[a] + s, "workdir": workdir / f"{a} {s}"} for s in seeds] for a in arms}

    monkeypatch.setattr(table.arms, "train", trained)
    monkeypatch.setattr(table.arms, "compare", lambda *_: None)
    monkeypatch.setattr(measures.answers, "score", lambda workdir: {"accuracy": 0.4 + 0.5 * ("linear" in str(workdir))})
    monkeypatch.setattr(measures, "ROUNDS", 2)
    accuracy, better, share = table.run(claim, tmp_path, jobs=1, quiet=True)
    assert accuracy.verdict == "does not" and accuracy.numbers["mean"] == pytest.approx(-0.5)
    assert better.verdict == "holds" and better.numbers["mean"] == pytest.approx(1.0)  # A lower loss is ahead.
    assert better.numbers["loss"] == {"window": {"4": [1.0, 2.0]}, "linear, 1 head": {"4": [2.0, 3.0]}}
    assert "ahead of linear, 1 head, 4 by +1.000 [+1.000, +1.000]" in better.measured
    assert all(value > 0 for line in share.numbers["share"].values() for value in line["4"])
    states = share.numbers[
        "state_bytes"
    ]  # A memory of H x H does not grow; keys and values of a layer of attention do.
    assert states["linear, 1 head"]["4"] < states["window"]["4"]
    assert {p.name for p in tmp_path.glob("*.png")} == {f"table-{m}.png" for m in ("accuracy", "loss", "share")}
