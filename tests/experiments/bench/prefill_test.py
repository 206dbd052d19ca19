"""Rows of sparse prefill: what is counted, and that the row checks itself."""

from experiments.bench import prefill
from kernels.attention import patterns


def test_a_row_counts_pairs_and_checks_a_shape():
    row = prefill.row("prefill/256", 256, heads=2)
    assert row.check() == ""
    pairs = row.counted[1]
    assert pairs["dense"] == 2 * 256 * 257 / 2 and row.flops["dense"] == 4 * 64 * pairs["dense"]
    assert {*row.candidates} == {*pairs} == {"dense", *prefill.PATTERNS}
    # Whole tiles of the causal triangle where everything is seen: 4 rows of 1, 2, 3, 4 tiles, of each of two heads.
    assert pairs["block_sparse 16 64"] == 2 * 10 * 64 * 64 > 2 * patterns.a_shape_pairs(256, 100, 800)
