"""Tile lists: every tile that is needed once, in order, and no other; the same from numpy and on the device."""

import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import schedule
from kernels.masks import BlockCausal, BlockDiffusion, Causal, Segments, Window
from tests.kernels.attention_cases import segment_ids


def _table(seed: int, batch: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    table = rng.choice(3, p=(0.5, 0.3, 0.2), size=(batch, 7, 11)).astype(np.int8)
    table[0, 2], table[1, :, 4], table[2, 6] = 0, 0, 2
    return table


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_walk_visits_each_tile_once_in_order(seed, xp):
    table = _table(seed)
    codes, length = schedule.walk(xp.asarray(table))
    for one, code in zip(table, np.asarray(codes), strict=True):
        row, column = schedule.decode(code)
        kind, first, last = schedule.tile_class(code), schedule.is_first(code), schedule.is_last(code)
        some = kind != schedule.EMPTY
        assert list(zip(row[some], column[some], strict=True)) == list(map(tuple, np.argwhere(one)))
        assert (kind[some] == one[one > 0]).all()
        # Each row opens once and closes once, the empty ones too, and nothing happens behind the end.
        assert row[first].tolist() == row[last].tolist() == list(range(7))
        end = np.flatnonzero(last)[-1]
        assert not some[end + 1 :].any() and (row[end:] == 6).all() and (column[end:] == column[end]).all()
        assert end < length
    assert int(length) == max((one > 0).sum() + (~(one > 0).any(1)).sum() for one in table)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_runs_cover_each_tile_once(seed, xp):
    table = _table(seed)
    bounds, counts = map(np.asarray, schedule.runs(xp.asarray(table)))
    for b, row in np.ndindex(*table.shape[:2]):
        rebuilt = np.zeros(table.shape[2], np.int8)
        for i in range(counts[b, row, 1]):
            begin, end = bounds[b, row, i]
            assert begin < end and not rebuilt[begin:end].any()
            rebuilt[begin:end] = schedule.FULL if i < counts[b, row, 0] else schedule.PARTIAL
        np.testing.assert_array_equal(rebuilt, table[b, row])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_spans_cover_each_tile_once_from_left_to_right(seed, xp):
    table = _table(seed)
    bounds, counts = map(np.asarray, schedule.spans(xp.asarray(table)))
    for b, row in np.ndindex(*table.shape[:2]):
        rebuilt, before = np.zeros(table.shape[2], np.int8), 0
        for first, end, kind in bounds[b, row, : counts[b, row, 0]]:
            assert before <= first < end and kind != schedule.EMPTY
            rebuilt[first:end], before = kind, end
        np.testing.assert_array_equal(rebuilt, table[b, row])
        assert counts[b, row, 1] == (table[b, row] > 0).sum()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_turns_number_the_tiles_of_each_row(seed, xp):
    seen = _table(seed) > 0
    turns = np.asarray(schedule.turns(xp.asarray(_table(seed))))
    for row, mine in zip(seen.reshape(-1, seen.shape[2]), turns.reshape(-1, seen.shape[2]), strict=True):
        assert mine[row].tolist() == list(range(row.sum()))


@pytest.mark.parametrize("resident", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_programs_that_start_in_order_take_their_turns_and_none_waits_for_ever(seed, resident):
    """As the Hopper backward kernel does: a program a column, its tiles from the last row to the first."""
    rng, table = np.random.default_rng(seed), _table(seed)[:1]
    turns, (bounds, counts) = np.asarray(schedule.turns(table))[0], schedule.spans(schedule.transpose(table))
    walks = [
        [row for first, end, _ in bounds[0, column, : counts[0, column, 0]] for row in range(first, end)]
        for column in range(table.shape[2])
    ]
    waiting, running, taken = list(range(len(walks))), [], [[] for _ in range(table.shape[1])]
    while waiting or running:
        while waiting and len(running) < resident:
            running.append(waiting.pop(0))
        ready = [c for c in running if not walks[c] or turns[walks[c][-1], c] == len(taken[walks[c][-1]])]
        assert ready, "all wait"
        column = rng.choice(ready)
        if walks[column]:
            taken[walks[column].pop()].append(column)
        else:
            running.remove(column)
    assert taken == [np.flatnonzero(row).tolist() for row in table[0]]


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_empty_table(xp):
    table = xp.zeros((1, 3, 2), np.int8)
    codes, length = schedule.walk(table)
    assert int(length) == 3 and not np.asarray(schedule.tile_class(np.asarray(codes))).any()
    assert not np.asarray(schedule.runs(table).counts).any() and not np.asarray(schedule.spans(table).counts).any()


MASKS = {
    "causal": Causal(),
    "causal_shorter": Causal(-100),
    "window": Causal() & Window(100),
    "block_causal": BlockCausal(96),
    "block_diffusion": BlockDiffusion(500, 40),
    "segments": Segments(segment_ids(2, 1000)),
    "causal_segments": Causal() & Segments(segment_ids(2, 1000)),
}


@pytest.mark.parametrize("name", MASKS)
def test_no_tile_is_computed_without_need(name):
    dense = np.asarray(MASKS[name].dense(1000, 1000))
    dense = dense.reshape(-1, 1000, 1000)
    padded = np.pad(dense, ((0, 0), (0, 24), (0, 24)))
    needed = padded.reshape(-1, 16, 64, 8, 128).any((2, 4))
    counted = schedule.count(MASKS[name], 1000, 1000, 64, 128)
    # Ids are compared by range, so a causal diagonal tile between two documents may be visited in vain: one a row.
    spare = 16 * len(dense) if name == "causal_segments" else 0
    assert needed.sum() <= counted <= needed.sum() + spare < needed.size


def test_padding_is_never_full():
    table = schedule.classes(Causal(1000), 200, 200, 128, 128)
    np.testing.assert_array_equal(table, [[[2, 1], [2, 1]]])
