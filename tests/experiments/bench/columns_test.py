"""Rows of column sums: that the row checks itself, and that only one candidate makes an array of all pairs."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import columns


def test_a_row_checks_its_sums_and_states_what_they_take(monkeypatch):
    T = 1024
    row = columns.row("columns/1024", T, "float32")
    assert row.check() == "" and {*row.candidates} == {"attention", "sums", "materialised"}
    sums = np.asarray(row.candidates["sums"]())
    # Every query's weights add up to one: two query heads read each key head. Float32 sums of a thousand numbers.
    assert sums.shape == (1, columns.K, T) and sums.sum(-1) == pytest.approx(2 * T, rel=1e-5)
    assert row.temporaries["sums"] < columns.N * T * T * 4 <= row.temporaries["materialised"]
    assert row.flops["attention"] == 2 * row.flops["sums"] == 4 * 64 * 8 * T * (T + 1) / 2
    assert "materialised" not in columns.calls(8192)
    monkeypatch.setattr(columns, "column_sums", lambda q, k, lse, mask: jnp.ones((1, columns.K, q.shape[1])))
    assert "off by" in columns.wrong(256, "float32")
