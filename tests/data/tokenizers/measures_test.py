"""Measures of tokenizers and rules for patches, by hand and by loops."""

import math

import numpy as np
import pytest

from data.tokenizers import measures, patches


def test_renyi_by_hand():
    counts = [4, 2, 1, 1, 0]
    assert measures.renyi_entropy(counts, 1) == pytest.approx(1.75)
    assert measures.renyi_entropy(counts, 2) == pytest.approx(-math.log2(0.25 + 0.0625 + 2 / 64))
    order = 2.5
    plain = math.log(sum((c / 8) ** order for c in counts)) / (1 - order)
    assert measures.renyi_entropy(counts, order, math.e) == pytest.approx(plain)
    assert measures.renyi_efficiency(counts) == pytest.approx(plain / math.log(4))
    assert measures.renyi_efficiency(counts, vocab_size=5) == pytest.approx(plain / math.log(5))
    assert measures.renyi_efficiency([3, 3, 3]) == pytest.approx(1)
    assert measures.renyi_entropy(counts, 1 + 1e-7) == pytest.approx(1.75, abs=1e-6)


def test_ratios_and_agreement():
    assert measures.bytes_per_token([10, 20], [4, 6]) == 3
    assert measures.fertility([1, 1, 4]) == 2
    assert measures.parity({"en": [10, 20], "tr": [20, 30]}, "en") == {"en": 1.0, "tr": 1.75}
    got = measures.boundary_agreement([1, 2, 5, 9], [2, 5, 7])
    assert (got["precision"], got["recall"]) == (0.5, 2 / 3) and got["f1"] == pytest.approx(4 / 7)
    assert measures.boundary_agreement([], []) == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert measures.boundary_agreement([1], [2])["f1"] == 0 == measures.boundary_agreement([], [2])["f1"]
    assert measures.ends([b"ab", b"c", b"def"]) == [2, 3, 6]
    got = measures.shares([" ev", "ler", "Evler", "xq", " "], {"ev", "evler"}, {"ev", "ler"})
    assert got == {"words": pytest.approx(200 / 4), "pure": pytest.approx(200 / 4)}
    assert measures.coverage([0, 3, 0, 1]) == 0.5


def test_every_piece_has_one_class():
    classes = {b"the": "latin", "дом".encode(): "cyrillic", "日本".encode(): "cjk", " λ".encode(): "greek",
               b" 12": "digit", b"!?": "symbol", b" \n": "blank", b"\xe6\x97": "bytes", "aж".encode(): "mixed",
               b"a1!": "latin", b"": "special"}  # fmt: skip
    counted = measures.scripts([*classes, b"of", b"\xff"])
    assert sum(counted.values()) == len(classes) + 2
    for piece, want in classes.items():
        assert (measures.script(piece) if piece else "special") == want
    assert counted["latin"] == 3 and counted["bytes"] == 2


def test_an_interval_covers_and_shrinks():
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(60):
        tokens = rng.integers(5, 50, 40)
        sizes = tokens * 3 + rng.normal(0, 10, 40)
        low, high = measures.interval(sizes, tokens, draws=300, seed=seed)
        hits += low <= 3 <= high
        assert low < high
    assert hits >= 48, "95 of 100 are promised; 48 of 60 is 5 standard deviations below"
    assert measures.interval([6, 3], [2, 1]) == (3, 3)
    sizes, tokens = rng.normal(100, 15, 900), np.full(900, 10)
    # Of many documents the ratio of sums is normal: mean -+ 1.96 deviations. The quantile of 4,000 draws at 2.5% has an
    # error of sqrt(0.025 x 0.975 / 4000) / 0.058 = 0.042 deviations, and 1.645, of one tail, is 7 of these away.
    deviation = sizes.std() / 10 / 30
    for end, side in zip(measures.interval(sizes, tokens, draws=4000), (-1.96, 1.96), strict=True):
        assert abs((end - sizes.mean() / 10) / deviation - side) < 4 * 0.042


def test_entropies_and_where_patches_begin():
    logits = np.array([[[0.0, 0.0, 0.0, 0.0], [30.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, -1.0]]])
    p = np.exp(logits[0, 2]) / np.exp(logits[0, 2]).sum()
    np.testing.assert_allclose(patches.entropies(logits)[0, [0, 2]], [math.log(4), -(p * np.log(p)).sum()])
    H = np.array([[0.1, 2.0, 0.5, 1.5, 1.6, 0.2]])
    starts = lambda *a, **k: np.flatnonzero(patches.entropy_starts(H, *a, **k)[0]).tolist()  # noqa: E731
    assert starts(1.0) == [0, 1, 3, 4]
    assert starts(1.0, rule="monotonic") == [0, 1]
    assert starts(0.8, rule="monotonic") == [0, 1, 3]
    assert starts(1.0, rule="both", rise=0.05) == [0, 3, 4]
    assert starts(1.55, rule="both", rise=0.05) == [0, 4]
    released = patches.released_patch_starts(H, 1.0)
    assert np.flatnonzero(released[0]).tolist() == [0, 1, 2, 4, 5]
    assert np.flatnonzero(patches.released_patch_starts(H, 0.9, "monotonic")[0]).tolist() == [0, 1, 2, 4]
    assert patches.lengths(patches.entropy_starts(H, 1.0)[0]).tolist() == [1, 2, 1, 2]
    with pytest.raises(ValueError, match="use 'global'"):
        patches.entropy_starts(H, 1.0, rule="local")


def test_blanks_end_patches():
    row = list(b"ab, cd \xc3\xa9x\n")
    parts, at = [], [*np.flatnonzero(patches.space_starts(row)).tolist(), len(row)]
    parts = [bytes(row[a:b]) for a, b in zip(at, at[1:], strict=False)]
    assert parts == [b"ab,", b" cd ", b"\xc3\xa9x\n"]


@pytest.mark.parametrize(
    ("strategy", "want"),
    [
        ("sliding", [1, 1, 4, 2, 2]),
        ("decreasing", [2, 4, 2, 1, 1]),
        ("decreasing_v2", [2, 4, 2, 2]),
        ("small_group", [1, 1, 1, 4, 1, 1, 1]),
    ],
)
def test_groups_of_tokens(strategy, want):
    values = [2.0, 0.5, 0.9, 0.1, 0.2, 0.04, 0.3, 0.02, 0.9, 0.3]
    assert patches.token_groups(values, strategy, most=4, threshold=0.35, ratio=0.3) == want
