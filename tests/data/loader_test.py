import hashlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import data

ROOT = pathlib.Path(__file__).parents[2]
KEYS = ("tokens", "targets", "positions", "segment_ids", "scored")
SIZES = [5, 30, 2, 17, 9, 44, 3, 3, 21]


def same(a, b):
    return set(a) == set(b) == set(KEYS) and all(np.array_equal(a[k], b[k]) for k in KEYS)


@pytest.fixture(params=["stream", "first_fit", "mixture"])
def options(request, numbered):
    if request.param == "mixture":
        tokens = data.Mixture((numbered(SIZES), numbered(SIZES[::-1], 1000)), (3, 1), ("a", "b"))
        return {"tokens": tokens, "length": 8, "pad": 5000, "seed": 7}
    return {"tokens": numbered(SIZES), "length": 8, "pad": 5000, "seed": 7, "packing": request.param}


@pytest.mark.parametrize("count", [2, 4])
def test_global_order_does_not_depend_on_the_number_of_processes(options, count):
    whole = data.Loader(**options, batch_size=8)
    parts = [data.Loader(**options, batch_size=8, process_index=p, process_count=count) for p in range(count)]
    for step in (0, 1, 5, 1000):
        slices = [part.batch(step) for part in parts]
        assert all(s["tokens"].shape == (8 // count, 8) for s in slices)
        assert same(whole.batch(step), {k: np.concatenate([s[k] for s in slices]) for k in KEYS})


def test_a_batch_depends_on_its_step_and_seed_only(options):
    one, other = data.Loader(**options, batch_size=4), data.Loader(**options, batch_size=4)
    [one.batch(step) for step in range(7)]
    assert same(one.batch(3), other.batch(3))
    reseeded = data.Loader(**{**options, "seed": 8}, batch_size=4)
    assert not all(same(one.batch(step), reseeded.batch(step)) for step in range(3))


@pytest.mark.parametrize("packing", sorted(data.PACKINGS))
def test_each_epoch_reads_every_row_once_in_another_order(numbered, packing):
    loader = data.Loader(numbered(SIZES), batch_size=1, length=8, pad=5000, packing=packing)
    rows = loader.num_rows
    epochs = [[tuple(loader.batch(e * rows + i)["tokens"][0].tolist()) for i in range(rows)] for e in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len(set(epochs[0])) == rows
    assert epochs[0] != epochs[1] != epochs[2]


def test_rows_across_the_border_of_a_block_of_the_order(numbered):
    small = data.Loader(numbered([6000]), batch_size=1, length=1, pad=9000)
    large = data.Loader(numbered([6000]), batch_size=5000, length=1, pad=9000)
    one_by_one = [small.batch(g)["tokens"][0, 0] for g in range(4000, 10000, 997)]
    assert [large.batch(g // 5000)["tokens"][g % 5000, 0] for g in range(4000, 10000, 997)] == one_by_one


def test_evaluation_ends_after_the_last_padded_batch(numbered):
    tokens = numbered(SIZES)
    loader = data.Loader(tokens, batch_size=8, length=8, pad=5000, epochs=1, shuffle=False)
    assert loader.num_rows == 17 and loader.steps_per_epoch == loader.num_steps == 3
    batches = list(loader.iterate())
    assert len(batches) == 3
    assert sum(b["scored"].sum() for b in batches) == tokens.num_targets
    past = {k: batches[-1][k][1:] for k in KEYS}
    assert not past["scored"].any() and not past["segment_ids"].any() and (past["tokens"] == 5000).all()
    with pytest.raises(IndexError, match="step=3"):
        loader.batch(3)


def test_two_processes_end_evaluation_at_the_same_step(numbered):
    loaders = [
        data.Loader(numbered([9]), batch_size=8, length=8, pad=50, epochs=1, process_index=p, process_count=2)
        for p in (0, 1)
    ]
    assert [loader.num_steps for loader in loaders] == [1, 1]
    assert not loaders[1].batch(0)["scored"].any()


def test_several_epochs_end_together(numbered):
    loader = data.Loader(numbered(SIZES), batch_size=8, length=8, pad=5000, epochs=3)
    targets = np.concatenate([b["targets"][b["scored"]] for b in map(loader.batch, range(loader.num_steps))])
    assert (np.unique(targets, return_counts=True)[1] == 3).all()


def test_bits_per_byte_counts_every_byte_once(book):
    corpus = data.load(**book, tokenizer="bpe", vocab_size=300)
    for split in (corpus.train, corpus.valid):
        loader = data.Loader(split, batch_size=4, length=16, pad=corpus.tokenizer.pad, epochs=1, shuffle=False)
        batches = [loader.batch(step) for step in range(loader.num_steps)]
        counted = [int(corpus.tokenizer.token_bytes[b["targets"]][b["scored"]].sum()) for b in batches]
        assert sum(counted) == split.num_bytes
        assert all(counted[:-1])


def test_mixture_counts_and_epochs_of_parts(numbered):
    mixture = data.Mixture((numbered([40]), numbered([24], 1000)), (7, 3), ("a", "b"))
    loader = data.Loader(mixture, batch_size=10, length=8, pad=5000)
    rows = np.concatenate([loader.batch(step)["tokens"] for step in range(30)])
    second = rows[:, 0] >= 1000
    assert np.abs(np.cumsum(second) - 0.3 * np.arange(1, 301)).max() < 1
    for part, size in ((rows[~second], 5), (rows[second], 3)):
        whole = part[: len(part) // size * size].reshape(-1, size * 8)
        assert all(len(set(epoch)) == size * 8 for epoch in whole.tolist())


def test_mixture_is_read_once_in_evaluation(numbered):
    mixture = data.Mixture((numbered([40, 3]), numbered([24], 1000)), (7, 3), ("a", "b"))
    loader = data.Loader(mixture, batch_size=4, length=8, pad=5000, epochs=1, shuffle=False)
    batches = [loader.batch(step) for step in range(loader.num_steps)]
    held = np.concatenate([b["tokens"][b["segment_ids"] > 0] for b in batches])
    assert held.tolist() == [*range(43), *range(1000, 1024)]
    assert sum(b["scored"].sum() for b in batches) == mixture.num_targets


def test_iterator_state_is_the_step_and_resumes_anywhere(options):
    loader = data.Loader(**options, batch_size=4)
    iterator = loader.iterate()
    [next(iterator) for _ in range(5)]
    state = json.loads(json.dumps(iterator.get_state()))
    assert state == {"next_index": 5}
    expected = [next(iterator) for _ in range(4)]
    assert same(expected[0], loader.batch(5))
    again = loader.iterate(start_step=5)
    assert all(same(next(again), e) for e in expected)
    again.set_state(state)
    assert same(next(again), expected[0])
    halves = [data.Loader(**options, batch_size=4, process_index=p, process_count=2).iterate() for p in (0, 1)]
    for half in halves:
        half.set_state(state)
    for whole in expected:
        parts = [next(half) for half in halves]
        assert same(whole, {k: np.concatenate([p[k] for p in parts]) for k in KEYS})


RESUME = """
import hashlib, json, sys
import data
arguments, state = json.loads(sys.argv[1]), json.loads(sys.argv[2])
corpus = data.load(**arguments)
iterator = data.Loader(corpus.train, batch_size=4, length=32, pad=corpus.tokenizer.pad, seed=3).iterate()
iterator.set_state(state)
batch = next(iterator)
print(corpus.hash, hashlib.sha256(b"".join(batch[k].tobytes() for k in sorted(batch))).hexdigest())
"""


def test_a_new_process_continues_with_the_same_batch(book):
    corpus = data.load(**book)
    loader = data.Loader(corpus.train, batch_size=4, length=32, pad=corpus.tokenizer.pad, seed=3)
    batch = loader.batch(11)
    command = [sys.executable, "-c", RESUME, json.dumps(book), json.dumps({"next_index": 11})]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    digest = hashlib.sha256(b"".join(batch[k].tobytes() for k in sorted(batch))).hexdigest()
    assert out.stdout.split() == [corpus.hash, digest]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 200}, "length=200 is longer than the whole split; use 134 or less"),
        ({"length": 0}, "length=0 is not a number of tokens"),
        ({"batch_size": 6, "process_count": 4}, "batch_size=6 does not divide among 4 processes; use 8"),
        ({"batch_size": 0}, "batch_size=0 .* use 1"),
        ({"process_index": 2, "process_count": 2}, "process_index=2 is not one of process_count=2"),
        ({"epochs": 0}, "epochs=0 is not a number of passes"),
        ({"packing": "first-fit"}, "packing='first-fit' is not known; did you mean 'first_fit'"),
    ],
)
def test_refusals_name_the_argument_the_value_and_one_that_works(numbered, change, message):
    with pytest.raises(ValueError, match=message):
        data.Loader(numbered(SIZES), **{"batch_size": 4, "length": 8, "pad": 0, **change})


def test_the_short_part_of_a_mixture_is_named(numbered):
    mixture = data.Mixture((numbered([40]), numbered([5])), (1, 1), ("a", "b"))
    with pytest.raises(ValueError, match=r"length=8 is longer than the whole split of components\[1\]; use 5 or less"):
        data.Loader(mixture, batch_size=4, length=8, pad=0)


def test_measure_reads_what_it_says(numbered):
    loader = data.Loader(numbered(SIZES), batch_size=4, length=8, pad=5000)
    for through in ("batch", "iterator"):
        result = data.measure(loader, batches=10, through=through, warmup=2)
        assert result["tokens_per_second"] == pytest.approx(32 / (result["us_per_batch"] * 1e-6))
    with pytest.raises(ValueError, match="through='grain'"):
        data.measure(loader, through="grain")
    ended = data.Loader(numbered(SIZES), batch_size=4, length=8, pad=5000, epochs=1)
    with pytest.raises(ValueError, match="batches=10 and warmup=2 are more than the 5 steps"):
        data.measure(ended, batches=10, warmup=2)
