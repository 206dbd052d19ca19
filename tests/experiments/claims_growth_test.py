"""The growth claim runs from end to end when shrunk, spends equal FLOPs, and its interval is Student's."""

import numpy as np
import pytest

from configs.claims import tokenformer_growth as claim
from experiments import smoke
from experiments.claims import tokenformer_growth as runner
from tests.experiments import tiny


def test_the_interval_is_students():
    mean, half = runner.interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    with pytest.raises(ValueError, match="use at least 2"):
        runner.interval([1.0])


@pytest.mark.slow
def test_the_claim_runs_and_compares_at_equal_flops(tmp_path):
    texts = str(tiny.corpus(tmp_path))

    def arm(name):
        config = smoke.shrink(claim.get_config(name))
        config.data.update({"source": "text", "path": texts, "cache_dir": str(tmp_path / "cache"), "max_files": 0})
        if name != "transformer":
            tokens = {"small": 16, "large": 32}[name]
            config.model.pattention.update({"tokens": tokens, "channel_tokens": 4 * tokens})
        return config

    record = runner.run(tmp_path / "claim", seeds=(0, 1), steps=(6, 6), arm=arm, quiet=True)
    assert record["change_of_loss_by_growth"] < 1e-6
    for name, share in record["flops_over_grown"].items():
        assert abs(share - 1) < 0.06, (name, share)  # whole steps: half of one in ten
    for row in record["rows"]:
        assert row["low"] < row["mean"] < row["high"]
        assert (row["verdict"] == "holds") == (row["high"] < 0)
    assert all(len(values) == 2 and np.all(np.isfinite(values)) for values in record["losses"].values())
    assert len((tmp_path / "claim/row.md").read_text().splitlines()) == 2
    assert (tmp_path / "claim/comparison.html").stat().st_size > 1000
