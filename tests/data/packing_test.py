"""Every token of every document stands in exactly one place, told apart from its neighbours, in both packings."""

import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from data import packing

PAD = 2**20
FORMS = sorted(data.PACKINGS)
few = settings(max_examples=25, deadline=None, derandomize=True)


def make(sizes):
    sizes = np.asarray(sizes, np.int64)
    return data.Tokens(np.arange(sizes.sum(), dtype=np.uint32), np.cumsum(sizes) - sizes, 0)


def all_rows(tokens, length, form, **options):
    loader = data.Loader(tokens, batch_size=3, length=length, pad=PAD, epochs=1, packing=form, **options)
    batches = [loader.batch(step) for step in range(loader.num_steps)]
    return loader, {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}


@few
@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=30),
    st.integers(1, 17),
    st.sampled_from(FORMS),
    st.booleans(),
)
def test_nothing_is_dropped_repeated_or_mixed(sizes, length, form, shuffle):
    tokens = make(sizes)
    length = min(length, sum(sizes))
    loader, rows = all_rows(tokens, length, form, shuffle=shuffle)
    held = rows["segment_ids"] > 0
    assert np.array_equal(np.sort(rows["tokens"][held]), tokens.tokens)
    assert (rows["tokens"][~held] == PAD).all()
    # Every token but the first of a document is a target once, and stands right after the token it follows.
    follows = np.setdiff1d(tokens.tokens, tokens.starts)
    assert np.array_equal(np.sort(rows["targets"][rows["scored"]]), follows)
    assert np.array_equal(rows["targets"][rows["scored"]], rows["tokens"][rows["scored"]] + 1)
    assert (rows["targets"][~rows["scored"]] == PAD).all()
    assert rows["scored"].sum() == tokens.num_targets
    assert {key: value.dtype.name for key, value in rows.items()} == {
        "tokens": "int32", "targets": "int32", "positions": "int32", "segment_ids": "int32", "scored": "bool",
    }  # fmt: skip


@few
@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(1, 17), st.sampled_from(FORMS))
def test_segments_and_positions_row_by_row(sizes, length, form):
    tokens = make(sizes)
    _, rows = all_rows(tokens, min(length, sum(sizes)), form)
    starts = set(tokens.starts.tolist())
    for row, segments, positions in zip(rows["tokens"], rows["segment_ids"], rows["positions"], strict=True):
        segment, position, before, padded = 0, 0, None, False
        for token, s, p in zip(row.tolist(), segments.tolist(), positions.tolist(), strict=True):
            if s == 0:
                padded = True
                assert p == 0
                continue
            assert not padded  # padding only at the end of a row
            begins = token in starts or before is None or token != before + 1
            segment, position = segment + begins, 0 if begins else position + 1
            assert (s, p) == (segment, position)
            before = token


def test_stream_rows_are_windows_of_the_stream():
    tokens = make([5, 7, 4, 9])
    loader, rows = all_rows(tokens, 10, "stream", shuffle=False)
    assert loader.num_rows == 3
    assert rows["tokens"][:2].tolist() == [list(range(10)), list(range(10, 20))]
    assert rows["tokens"][2].tolist() == [20, 21, 22, 23, 24, *[PAD] * 5]
    assert rows["segment_ids"].tolist() == [[1] * 5 + [2] * 5, [1] * 2 + [2] * 4 + [3] * 4, [1] * 5 + [0] * 5]
    assert rows["positions"][1].tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 2, 3]
    assert rows["scored"][0].tolist() == [True] * 4 + [False] + [True] * 5
    assert rows["targets"][0, -1] == 10  # the row after this one begins with it


def test_first_fit_keeps_short_documents_whole_and_fills_the_first_gap():
    tokens = make([6, 7, 4, 3, 25, 10])
    loader, rows = all_rows(tokens, 10, "first_fit", shuffle=False)
    # 6+4 and 7+3 fill two rows; 25 is cut into 10, 10 and a rest of 5 that opens the third row; 10 is a row by itself.
    assert loader.num_rows == 6
    assert rows["tokens"][0].tolist() == [*range(6), *range(13, 17)]
    assert rows["tokens"][1].tolist() == [*range(6, 13), *range(17, 20)]
    assert rows["tokens"][2].tolist() == [*range(40, 45), *[PAD] * 5]
    assert rows["tokens"][3].tolist() == list(range(20, 30))
    assert rows["scored"][3].all() and rows["scored"][4].all()  # a cut document goes on in another row
    assert rows["scored"][5].tolist() == [True] * 9 + [False]


@few
@given(st.lists(st.integers(1, 12), min_size=1, max_size=60))
def test_first_fit_is_first_fit(sizes):
    placed, room = [], []
    for size in sizes:
        row = next((k for k, left in enumerate(room) if left >= size), len(room))
        if row == len(room):
            room.append(12)
        room[row] -= size
        placed.append(row)
    assert packing._place(sizes, 12).tolist() == placed


def test_first_fit_index_is_cached_and_a_damaged_one_is_made_again(book):
    corpus = data.load(**book)
    first = packing.first_fit(corpus.train, 64)
    path = next(p for p in pathlib.Path(corpus.train.folder).glob("train.first_fit.64.npz"))
    written = path.stat().st_mtime_ns
    assert np.array_equal(packing.first_fit(corpus.train, 64).begin, first.begin)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(path.read_bytes()[:-40])
    again = packing.first_fit(corpus.train, 64)
    for field in ("begin", "size", "ends", "row_first"):
        assert np.array_equal(getattr(again, field), getattr(first, field))
    assert path.stat().st_mtime_ns != written
    assert data.load(**book).hash == corpus.hash  # the index beside the tokens does not count as damage


def test_a_flipped_bit_of_a_kept_index_changes_no_row(book):
    corpus = data.load(**book)
    first = packing.first_fit(corpus.train, 64)
    path = pathlib.Path(corpus.train.folder) / "train.first_fit.64.npz"
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, 8 * len(whole), 150).tolist():
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        again = packing.first_fit(corpus.train, 64)
        assert all(np.array_equal(getattr(again, name), getattr(first, name)) for name in packing._PIECE_FIELDS)


@pytest.mark.parametrize(
    "change",
    [
        {"begin": lambda a: a + 1},
        {"begin": lambda a: a.astype(np.int32)},
        {"begin": lambda a: a[:, None]},
        {"size": lambda a: a[::-1]},
        {"ends": lambda a: ~a},
        {"row_first": lambda a: np.array([0, len(a)])},
        {"row_first": lambda a: a[:-1]},
        {"row_first": lambda a: np.where(a == a[1], 0, a)},
        {name: lambda a: a[:0] for name in packing._PIECE_FIELDS},
    ],
)
def test_an_index_that_is_whole_and_wrong_is_made_again(book, change):
    corpus = data.load(**book)
    first = packing.first_fit(corpus.train, 64)
    path = pathlib.Path(corpus.train.folder) / "train.first_fit.64.npz"
    kept = {name: getattr(first, name) for name in packing._PIECE_FIELDS}
    np.savez(path, **kept | {name: make(kept[name]) for name, make in change.items()})
    again = packing.first_fit(corpus.train, 64)
    assert all(np.array_equal(getattr(again, name), kept[name]) for name in kept)


@pytest.mark.parametrize("form", FORMS)
def test_without_isolation_a_row_is_one_segment(form):
    tokens = make([5, 7, 4])
    _, apart = all_rows(tokens, 6, form)
    _, joined = all_rows(tokens, 6, form, isolate=False)
    held = apart["segment_ids"] > 0
    assert np.array_equal(joined["segment_ids"], held.astype(np.int32))
    assert np.array_equal(joined["positions"][held], np.tile(np.arange(6), (len(held), 1))[held])
    for key in ("tokens", "targets", "scored"):
        assert np.array_equal(joined[key], apart[key])
