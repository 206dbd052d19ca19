"""The check `transplants` on tiny runs: what it compares, by other means."""

import numpy as np
import pytest

from experiments.claims import transplants
from experiments.sweep import launchers
from tests.experiments import tiny
from tests.experiments.claims.claims_test import Here

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(launchers, "make", lambda *_: Here())


def test_a_model_that_keeps_its_tokenizer_loses_nothing_and_one_that_changes_it_starts_by_the_rule(tmp_path):
    """With rates of nothing what is trained is what was moved; the same tokenizer gives the same bits at once."""
    base = tiny.config(tmp_path, train__steps=2, data__length=32, eval__rows=8).unlock()
    still = {"train.steps": 1, "optimizer.learning_rate": 1e-9}
    other = {"data.tokenizer": "bpe", "data.vocab_size": 280}
    names = (("same at once", "before"), ("same", "before"), ("moved", "moved at once"), ("moved", "scratch"))
    claim = {
        "base": base, "change": still, "seeds": (0, 1), "effect": 0.05, "looks": (2,), "hours": 1.0,
        "arms": {"same": {}, "moved": other, "scratch": other | {"init.transplant": ""}},
        "contrasts": [{"statement": "s", "published": "p", "better": a, "worse": b} for a, b in names],
        "control": {"says": "c", "reads": ("bits_per_byte", "before"), "most": 20.0},
    }  # fmt: skip
    rows = transplants.run(claim, tmp_path / "claim", jobs=1, quiet=True)
    bits = rows[0].numbers["bits_per_byte"]
    assert set(bits) == {"before", "same", "same at once", "moved", "moved at once", "scratch"}
    np.testing.assert_allclose(bits["same at once"], bits["before"], rtol=1e-6)
    np.testing.assert_allclose(bits["same"], bits["before"], rtol=1e-5)
    np.testing.assert_allclose(bits["moved"], bits["moved at once"], rtol=1e-5)
    assert np.abs(np.subtract(bits["moved"], bits["scratch"])).min() > 1e-3
    np.testing.assert_allclose(rows[3].numbers["differences"], np.subtract(bits["scratch"], bits["moved"]), atol=1e-12)
