"""Packed prompts: rows by hand, masks by loops, and attention over a packed row equal to attention over each prompt."""

import numpy as np

from experiments.generation.serving import prepacking

LENGTHS = [3, 9, 5, 4, 2, 1]


def test_the_longest_prompt_first_into_the_fullest_or_the_emptiest_row():
    """Capacity 9: 9 | 5, then 4 beside it; 3, 2 and 1 open a third row together."""
    assert prepacking.bins(LENGTHS) == [[1], [2, 3], [0, 4, 5]]
    # Capacity 10: 9; 5 4 in the second; 3 in a third; 2 beside it; 1: the first and the second are equally full.
    assert prepacking.bins(LENGTHS, 10) == [[1, 5], [2, 3], [0, 4]]
    assert prepacking.bins(LENGTHS, 10, fullest=False) == [[1], [2, 3], [0, 4, 5]]
    assert prepacking.bins([2, 2, 2], 2) == [[0], [1], [2]] and prepacking.bins([]) == []
    # 6 | 5; the 3 goes to the 6, and the 2 has room beside 5 alone; or the 3 to the 5, and the 2 to the 6.
    assert prepacking.bins([6, 5, 3, 2], 10) == [[0, 2], [1, 3]]
    assert prepacking.bins([6, 5, 3, 2], 10, fullest=False) == [[0, 3], [1, 2]]


def test_rows_are_filled_as_one_would_by_hand():
    rng = np.random.default_rng(0)
    for fullest in (True, False):
        for _ in range(100):
            lengths = rng.integers(1, 30, rng.integers(1, 20)).tolist()
            capacity = max(lengths) + int(rng.integers(0, 12))
            rows = prepacking.bins(lengths, capacity, fullest=fullest)
            assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
            placed = [[] for _ in rows]
            for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
                here = next(r for r, row in enumerate(rows) if i in row)
                full = [sum(lengths[j] for j in row) for row in placed]
                room = [f for r, f in enumerate(full) if placed[r] and f + lengths[i] <= capacity]
                if room:
                    assert full[here] == (max(room) if fullest else min(room))
                else:
                    assert not placed[here]
                placed[here].append(i)
            assert placed == rows


def test_a_packed_batch_by_hand():
    prompts = [[1, 2, 3], [4, 5, 6, 7], [8, 9], [5]]
    packed = prepacking.pack(prompts, [[1], [0, 2, 3]], pad=99)
    np.testing.assert_array_equal(packed.tokens, [[4, 5, 6], [1, 2, 8]])
    np.testing.assert_array_equal(packed.positions, [[0, 1, 2], [0, 1, 0]])
    np.testing.assert_array_equal(packed.mask[0], np.tri(3))
    np.testing.assert_array_equal(packed.mask[1], [[1, 0, 0], [1, 1, 0], [0, 0, 1]])
    assert packed.row.tolist() == [1, 0, 1, 1] and packed.start.tolist() == [0, 0, 2, 3]
    assert packed.end.tolist() == [2, 3, 3, 3]
    short = prepacking.pack(prompts, [[1], [2, 0], [3]], pad=99)
    assert short.tokens.tolist() == [[4, 5, 6], [8, 1, 2], [99, 99, 99]]
    assert short.positions.tolist() == [[0, 1, 2], [0, 0, 1], [1, 1, 1]] and not short.mask[2].any()
    whole = prepacking.pack(prompts, [[2, 3], [0], [1]], last=True, pad=-1)
    assert whole.tokens.tolist() == [[8, 9, 5, -1], [1, 2, 3, -1], [4, 5, 6, 7]]
    assert (
        prepacking.padded_tokens([3, 4, 2, 1]) == 16 and prepacking.packed_tokens([3, 4, 2, 1], [[1], [0, 2, 3]]) == 6
    )


def attention(q, k, v, mask):
    """softmax(q k^T) v over the keys of a mask, query by query."""
    out = np.zeros_like(v)
    for i in range(len(q)):
        weight = np.array([np.exp(q[i] @ k[j]) if mask[i, j] else 0.0 for j in range(len(k))])
        if weight.any():
            out[i] = weight @ v / weight.sum()
    return out


def test_cut_apart_it_is_what_each_prompt_gives_alone():
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 20, n).tolist() for n in (4, 7, 3, 2, 6)]
    rows = prepacking.bins([len(p) for p in prompts])
    packed = prepacking.pack(prompts, rows)
    table, place = rng.normal(size=(20, 8)), rng.normal(size=(9, 8))
    x = table[packed.tokens] + place[packed.positions]
    y = np.stack([attention(x[r], x[r], x[r], packed.mask[r]) for r in range(len(rows))])
    for left in (True, False):
        cut, there = prepacking.cut_apart(y.reshape(*y.shape[:2], 2, 4), packed, left=left)
        assert cut.shape == (5, 6, 2, 4)
        for i, prompt in enumerate(prompts):
            n = len(prompt) - 1
            alone = table[prompt[:-1]] + place[:n]
            want = attention(alone, alone, alone, np.tri(n, dtype=bool))
            span = slice(6 - n, 6) if left else slice(0, n)
            np.testing.assert_allclose(cut[i, span].reshape(n, 8), want, rtol=0, atol=1e-14)
            assert there[i].sum() == n and there[i, span].all() and not cut[i][~there[i]].any()


def test_one_row_of_prompts_is_the_packed_row_without_its_padding():
    prompts = [[5, 6, 7], [8], [9, 9, 9, 9]]
    tokens, positions, segments = prepacking.side_by_side(prompts, 11, pad=3)
    packed = prepacking.pack(prompts, [[0, 1, 2]], last=True)
    assert tokens.tolist() == [[*packed.tokens[0], 3, 3, 3]] and tokens.dtype == positions.dtype == np.int32
    assert positions.tolist() == [[*packed.positions[0], -1, -1, -1]]
    assert segments.tolist() == [[1, 1, 1, 2, 3, 3, 3, 3, 0, 0, 0]]
    order = np.arange(11)
    seen = (segments[0][:, None] == segments[0]) & (segments[0] > 0) & (order[:, None] >= order)
    np.testing.assert_array_equal(seen[:8, :8], packed.mask[0])
