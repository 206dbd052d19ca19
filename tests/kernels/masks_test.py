"""Masks: dense == oracle == tiles == evaluate, and the strings that name them."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import masks
from kernels.mask_algebra import _static_tiles

T = 62
GENERATOR = np.random.default_rng(3)
IDS = np.sort(GENERATOR.integers(1, 5, (2, T)))
IDS[:, -5:] = 0
PARENTS = np.array([-1] + [int(GENERATOR.integers(-1, i)) for i in range(1, T)])
ORDER = GENERATOR.permutation(T)
SLOTS = np.where(GENERATOR.random(T) < 0.2, -1, GENERATOR.permutation(T))
SQUARE = GENERATOR.random((2, 1, T, T)) < 0.05

STATIC = [
    masks.Full(), masks.Causal(), masks.Causal(-1), masks.Causal(3), masks.Window(5), masks.Window(9, 2),
    masks.Prefix(7), masks.Sinks(3), masks.BlockCausal(8), masks.BlockCausal(7), masks.BlockDiffusion(31, 4),
    masks.BlockDiffusion(31, 5),
]  # fmt: skip
WITH_ARRAYS = {
    "segments": masks.Segments(IDS),
    "positions": masks.Positions(ORDER, SLOTS, "causal"),
    "positions_window": masks.Positions(ORDER, SLOTS, "causal & window(9)"),
    "any_order": masks.AnyOrder(ORDER),
    "any_order_strict": masks.AnyOrder(np.stack([ORDER, ORDER[::-1]]), strict=True),
    "tree": masks.Tree(PARENTS),
    "dense": masks.Dense(SQUARE),
    "lengths": masks.Prefix(np.array([4, 0])),
}
ALL = [*STATIC, *WITH_ARRAYS.values()]


def classify(dense, block_q, block_k):
    """Tile classes straight from the dense mask."""
    *lead, rows, columns = dense.shape
    kinds = np.zeros((*lead, -(-rows // block_q), -(-columns // block_k)), np.int8)
    for i, j in np.ndindex(kinds.shape[-2:]):
        tile = dense[..., i * block_q : (i + 1) * block_q, j * block_k : (j + 1) * block_k]
        kinds[..., i, j] = tile.any((-2, -1)).astype(np.int8) + tile.all((-2, -1))
    return kinds


def oracle(q, k):
    """The definition of each mask on single indices, as in the papers, written without vectors."""
    ancestors = {q}
    while PARENTS[min(ancestors)] >= 0:
        ancestors.add(int(PARENTS[min(ancestors)]))
    bq, bk, q_noisy, k_noisy = q % 31 // 4, k % 31 // 4, q < 31, k < 31
    return {
        "causal": k <= q,
        "causal(-1)": k < q,
        "window(9, 2)": -9 <= k - q <= 2,
        "prefix(7)": k < 7,
        "blockcausal(7)": k // 7 <= q // 7,
        "blockdiffusion(31, 4)": (q_noisy and k_noisy and bq == bk)
        or (q_noisy and not k_noisy and bk < bq)
        or (not q_noisy and not k_noisy and bk <= bq),
        "segments": IDS[0][q] == IDS[0][k] != 0,
        "positions": 0 <= SLOTS[k] <= ORDER[q],
        "any_order": ORDER[k] <= ORDER[q],
        "any_order_strict": ORDER[k] < ORDER[q],
        "tree": k in ancestors,
        "lengths": k < 4,
    }


def test_dense_is_the_definition():
    wanted = [[oracle(q, k) for k in range(T)] for q in range(T)]
    for name in wanted[0][0]:
        mask = WITH_ARRAYS.get(name) or masks.parse(name)
        dense = np.asarray(mask.dense(T, T))
        dense = dense if mask.is_static else dense[0, 0]
        np.testing.assert_array_equal(dense, [[bool(cell[name]) for cell in row] for row in wanted], err_msg=name)


@pytest.mark.parametrize("size", [3, 4])
def test_queries_before_the_first_key_see_no_block(size):
    """Seven queries are the last of four positions: the first three stand at -3..-1, in the block before the first."""
    wanted = [[k // size <= (q + 4 - 7) // size for k in range(4)] for q in range(7)]
    np.testing.assert_array_equal(masks.BlockCausal(size).dense(7, 4), wanted)
    assert not np.any(wanted[:3])


def test_block_diffusion_counts():
    length, size = 64, 8
    assert masks.BlockDiffusion(length, size).dense(128, 128).sum() == length**2 + length * size


@pytest.mark.parametrize("mask", ALL, ids=str)
@pytest.mark.parametrize("blocks", [(16, 8), (7, 31), (128, 128), (4, 3)], ids=str)  # Windows fill small tiles alone.
def test_tiles_of_single_masks(mask, blocks):
    dense, tiles = np.asarray(mask.dense(T, T)), np.asarray(mask.tiles(T, T, *blocks))
    wanted = classify(dense, *blocks)
    assert tiles.dtype == np.int8
    if isinstance(mask, masks.Tree) or str(mask.__dict__.get("rule", "")).startswith("("):
        assert not np.any((tiles == masks.EMPTY) & (wanted != masks.EMPTY))
        assert not np.any((tiles == masks.FULL) & (wanted != masks.FULL))
    else:
        np.testing.assert_array_equal(tiles, wanted)


def combine(parts, joins, turned):
    mask = ~parts[0] if turned[0] else parts[0]
    for part, join, turn in zip(parts[1:], joins, turned[1:], strict=True):
        part = ~part if turn else part
        mask = mask & part if join else mask | part
    return mask


triples = st.tuples(
    st.lists(st.sampled_from(ALL), min_size=3, max_size=3),
    st.lists(st.booleans(), min_size=2, max_size=2),
    st.lists(st.booleans(), min_size=3, max_size=3),
)


@given(triples)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_tiles_of_combinations(triple):
    """Static combinations are exact; with arrays what is called empty is empty, what is called full is full."""
    mask = combine(*triple)
    parts = [~part.dense(T, T) if turn else part.dense(T, T) for part, turn in zip(triple[0], triple[2], strict=True)]
    wanted = np.asarray(parts[0])
    for part, join in zip(parts[1:], triple[1], strict=True):
        wanted = wanted & np.asarray(part) if join else wanted | np.asarray(part)
    dense = np.asarray(mask.dense(T, T))
    np.testing.assert_array_equal(np.broadcast_to(dense, wanted.shape), wanted)
    tiles, exact = np.asarray(mask.tiles(T, T, 16, 8)), classify(dense, 16, 8)
    if mask.is_static:
        np.testing.assert_array_equal(tiles, exact)
    assert not np.any((tiles == masks.EMPTY) & (exact != masks.EMPTY))
    assert not np.any((tiles == masks.FULL) & (exact != masks.FULL))


def test_bottom_right_alignment():
    for mask in (masks.Causal(), masks.Window(3, 1), masks.BlockCausal(4), masks.AnyOrder(ORDER)):
        whole, last = np.asarray(mask.dense(T, T)), np.asarray(mask.dense(9, T))
        np.testing.assert_array_equal(last, whole[..., -9:, :])
    more_queries = masks.Causal().dense(5, 3)
    np.testing.assert_array_equal(more_queries.sum(1), [0, 0, 1, 2, 3])


def test_tree_sees_its_context():
    dense = np.asarray(masks.Tree([-1, 0, 0, 1]).dense(4, 6))[0, 0]
    np.testing.assert_array_equal(dense[:, :2], True)
    np.testing.assert_array_equal(dense[:, 2:], [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]])


@pytest.mark.parametrize("mask", STATIC, ids=str)
def test_strings_parse_back(mask):
    for form in (mask, ~mask, (mask & masks.Causal(2)) | masks.Sinks(1)):
        again = masks.parse(str(form))
        assert again == form and hash(again) == hash(form)
    assert masks.parse("causal & (window(1024) | ~Sinks(n=4))") == masks.Causal() & (
        masks.Window(1024) | ~masks.Sinks(4)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("causl", "did you mean 'causal'"),
        ("causal & windw(3)", "did you mean 'window'"),
        ("segments", "masks.Segments"),
        ("window", r"window\(left, right\)"),
        ("window(-1)", "at least 0"),
        ("causal &", "lacks a mask"),
        ("(causal", "closing parenthesis"),
        ("causal window(2)", "join masks"),
        ("causal & !x", "cannot be read"),
        ("window(__import__('os'))", "integers|join masks|cannot be read"),
    ],
)
def test_bad_strings_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        masks.parse(text)


def test_wrong_arrays_are_named():
    with pytest.raises(ValueError, match="q_ids has shape"):
        masks.Segments(IDS).operands(T + 1, T + 1)
    with pytest.raises(ValueError, match="T = S = 62"):
        masks.BlockDiffusion(31, 4).tiles(60, 60, 16, 16)
    with pytest.raises(ValueError, match="rule="):
        masks.Positions(ORDER, ORDER, masks.Segments(IDS))


def test_arrays_are_arguments_and_statics_are_constants():
    """New arrays do not recompile; another static mask does; static tiles are classified once."""
    traces = []

    @jax.jit
    def dense(mask):
        traces.append(mask)
        return mask.dense(T, T)

    dense(masks.Causal() & masks.Segments(IDS))
    dense(masks.Causal() & masks.Segments(IDS + 1))
    assert len(traces) == 1
    dense(masks.Causal(1) & masks.Segments(IDS))
    assert len(traces) == 2
    mask = masks.Causal() & masks.Window(5)
    before = _static_tiles.cache_info().hits
    mask.tiles(T, T, 16, 16), masks.parse("causal & window(5)").tiles(T, T, 16, 16)
    assert _static_tiles.cache_info().hits > before
    with pytest.raises(ValueError, match="read-only"):
        mask.tiles(T, T, 16, 16)[0, 0] = 1


def test_long_static_tables_are_quick_and_exact():
    mask = masks.parse("causal & (window(1024) | sinks(4))")
    tiles = mask.tiles(131072, 131072, 512, 512)
    assert tiles.shape == (256, 256)
    # A causal window of 1024 touches its own block, two before it and the corner of a third never: 1024 = 2 * 512.
    needed = np.array([min(i + 1, 3) + (i > 2) for i in range(256)])
    np.testing.assert_array_equal((tiles > 0).sum(1), needed)
