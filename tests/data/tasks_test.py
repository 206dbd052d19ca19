"""Synthetic tasks: rows by number, answers by solvers that read only what stands before, losses by enumeration."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats

import data
from data import tasks
from data.tasks import draws, loading

KEYS = ("tokens", "targets", "positions", "segment_ids", "scored")
CASES = {
    "recall": ("recall", "pairs=6, queries=5, keys=9, values=7, noise=3", 40),
    "recall-again": ("recall", "pairs=3, queries=8, keys=5, values=4, noise=1", 30),
    "copying": ("copying", "symbols=5", 30),
    "copying-gap": ("copying", "symbols=5, payload=6, reverse=true", 40),
    "list": ("copying", "symbols=5, payload=6, item_length=3", 40),
    "needle": ("threading", "symbols=6, width=2", 40),
    "thread": ("threading", "hops=4, symbols=6, width=2, direction=forward", 60),
    "threads": ("threading", "hops=3, threads=2, symbols=8, width=2, direction=backward", 70),
    "branches": ("threading", "hops=3, branches=2, threads=2, symbols=8, width=2", 80),
    "automata": ("automata", "states=4, symbols=5, degree=2, string_length=6", 50),
    "markov": ("markov", "order=2, symbols=3", 40),
    "programs": ("programs", "statements=3, back=2", 30),
    "switching": ("markov", "order=3, symbols=3, kind=switching, flip=0.2", 40),
    "sums": ("arithmetic", "digits=3", 14),
    "groups": ("arithmetic", "digits=4, group=2, from_left=true", 12),
    "products": ("arithmetic", "digits=2, operation=multiply, reverse=true, room=8, pads=3", 20),
    "stars": ("star_graph", "arms=3, least=2, most=4, nodes=15, room=6", 40),
    "sudoku": ("sudoku", "", 34),
    "infilling": ("infilling", "gap=4, room=7, pads=2", 20),
    "infilling-in-place": ("infilling", "side=2, in_place=true", 12),
    "disjoint": ("disjointness", "universe=20, small=3, large=6, noise=4", 30),
    "shared": ("disjointness", "universe=12, small=3, large=6, noise=2, order=large_first, asks=element", 24),
    "sorting": ("sorting", "items=4, symbols=9", 30),
    "middle-first": ("sorting", "items=5, symbols=12, order=median", 25),
    "twice": ("disjointness", "universe=20, small=3, large=6, overlap=2, order=large_first, repeats=2", 40),
}


@pytest.fixture(params=CASES)
def case(request):
    name, settings, length = CASES[request.param]
    return tasks.make(name, settings), length


def same(a, b):
    return set(a) == set(b) == set(KEYS) and all(np.array_equal(a[k], b[k]) for k in KEYS)


def loader_of(task, *, seed=0, split="train", rows=0, **options):
    """Batches of one split of a task, or of the task of that name."""
    task = tasks.make(task) if isinstance(task, str) else task
    count = rows or {"train": loading.ROWS, "valid": loading.VALIDATION_ROWS}[split]
    made = loading.Split(task, draws.derive(seed, split), count)
    return data.Loader(made, pad=task.num_symbols + 2, seed=seed, **options)


def rows_of(task, length, count=64, seed=3):
    return task.sample(seed, np.arange(count), length)


def test_batches_have_the_loaders_shape_and_mask_only_answers(case):
    task, length = case
    batch = loader_of(task, batch_size=4, length=length).batch(7)
    pad = task.num_symbols + 2
    assert {k: (v.shape, v.dtype.kind) for k, v in batch.items()} == {
        k: ((4, length), "b" if k == "scored" else "i") for k in KEYS
    }
    held, mask = batch["segment_ids"] == 1, batch["scored"]
    assert mask.any(axis=1).all() and not (mask & ~held).any()
    assert (batch["targets"][:, :-1][mask[:, :-1]] == batch["tokens"][:, 1:][mask[:, :-1]]).all()
    assert (batch["targets"][~mask] == pad).all() and (batch["tokens"][~held] == pad).all()
    assert (batch["tokens"][held] < task.num_symbols).all() and (batch["tokens"] >= 0).all()
    assert (batch["positions"] == np.where(held, np.arange(length), 0)).all()


def test_a_row_depends_on_its_number_and_seed_only(case):
    task, length = case
    whole = task.sample(3, np.arange(20), length)
    for picked in ([7], [19, 0, 7], [2**39, 5]):
        some = task.sample(3, np.array(picked), length)
        for k, row in enumerate(picked):
            if row < 20:
                assert all(np.array_equal(s[k], w[row]) for s, w in zip(some, whole, strict=True))
    assert not np.array_equal(task.sample(4, np.arange(20), length)[0], whole[0])
    assert len(np.unique(whole[0], axis=0)) > 10  # rows differ from each other


def test_the_global_order_does_not_depend_on_processes(case):
    task, length = case
    whole = loader_of(task, batch_size=8, length=length, seed=5)
    parts = [loader_of(task, batch_size=8, length=length, seed=5, process_index=p, process_count=2) for p in range(2)]
    for step in (0, 10**6):
        slices = [part.batch(step) for part in parts]
        assert same(whole.batch(step), {k: np.concatenate([s[k] for s in slices]) for k in KEYS})


def test_iterate_resumes_at_a_step():
    loader = loader_of("recall", batch_size=2, length=80)
    iterator = loader.iterate(3)
    first = next(iterator)
    state = iterator.get_state()
    assert same(first, loader.batch(3)) and state["next_index"] == 4
    again = loader.iterate()
    again.set_state(state)
    assert same(next(again), loader.batch(4))


def test_finite_rows_come_once_per_epoch_and_validation_is_apart():
    loader = loader_of("markov", batch_size=4, length=30, rows=10, epochs=1)
    assert (loader.num_rows, loader.steps_per_epoch, len(loader)) == (10, 3, 3)
    batches = [loader.batch(s) for s in range(3)]
    rows = np.concatenate([b["tokens"] for b in batches])
    assert len(np.unique(rows[:10], axis=0)) == 10 and (rows[10:] == 6).all()  # ids 0..3 are symbols, 6 is pad
    assert not batches[2]["scored"][2:].any() and not batches[2]["segment_ids"][2:].any()
    other = loader_of("markov", batch_size=10, length=30, rows=10, split="valid", epochs=1).batch(0)["tokens"]
    assert not set(map(bytes, rows[:10])) & set(map(bytes, other))
    assert loader_of("markov", batch_size=4, length=30, split="valid").num_rows == 4096
    with pytest.raises(IndexError, match="step=3"):
        loader.batch(3)


def test_recall_by_dictionary():
    for key in ("recall", "recall-again"):
        name, settings, length = CASES[key]
        task = tasks.make(name, settings)
        for sequence, answers in zip(*rows_of(task, length), strict=True):
            pairs = sequence[: 2 * task.pairs]
            known = dict(zip(pairs[::2].tolist(), pairs[1::2].tolist(), strict=True))
            assert len(known) == task.pairs and max(known) < task.keys <= min(known.values())
            at = np.flatnonzero(answers)
            assert len(at) == task.queries
            assert [known[k] for k in sequence[at - 1].tolist()] == sequence[at].tolist()
            if task.queries <= task.pairs:
                assert len(set(sequence[at - 1].tolist())) == task.queries
            rest = np.delete(sequence, np.concatenate([np.arange(2 * task.pairs), at, at - 1]))
            assert (rest >= task.keys + task.values).all()


def test_copying_by_reading_the_first_list():
    for key in ("copying", "copying-gap", "list"):
        name, settings, length = CASES[key]
        task = tasks.make(name, settings)
        separator = task.symbols + 2
        for sequence, answers in zip(*rows_of(task, length), strict=True):
            copy = int(np.flatnonzero(sequence == task.symbols + 1)[0])
            noise = np.flatnonzero(sequence[:copy] > separator)
            listed = sequence[1 : (noise[0] if len(noise) else copy)]
            payload = listed[listed < task.symbols]
            assert len(payload) == (task.payload or (length - 1) // 2)
            expected = payload[::-1] if task.reverse else payload
            assert sequence[answers].tolist() == expected.tolist()
            assert np.flatnonzero(answers).min() > copy
            if task.item_length:
                assert (np.diff(np.flatnonzero(listed == separator)) == task.item_length + 1).all()


def test_threads_by_search():
    for key in ("needle", "thread", "threads", "branches"):
        name, settings, length = CASES[key]
        task = tasks.make(name, settings)
        w = task.width
        for sequence, answers in zip(*rows_of(task, length), strict=True):
            begin = int(np.flatnonzero(sequence == task.symbols)[0])
            hay = [tuple(s) for s in sequence[:begin].reshape(-1, w).tolist()]
            follows, place = {}, {}
            for k, (name_, value) in enumerate(zip(hay[::2], hay[1::2], strict=True)):
                follows.setdefault(name_, []).append(value)
                place[name_, value] = k

            def ways(node, follows=follows):
                """All ways from `node` to where they end."""
                if node not in follows:
                    return [[node]]
                return [[node, *way] for value in follows[node] for way in ways(value)]

            asked = sequence[begin:][sequence[begin:] >= 0].reshape(task.threads, 2 * w + 2)
            found = []
            for query in asked:
                every = sorted(ways(tuple(query[1 : w + 1].tolist())), key=len)
                longest = every[-1]
                assert len(longest) == task.hops + 1
                assert len(every) == 1 + (task.hops - 1) * task.branches
                assert len(every) == 1 or len(every[-2]) < len(longest)  # the answer is unique
                found += longest[-1]
                order = [place[a, b] for a, b in itertools.pairwise(longest)]
                if task.direction != "random":
                    assert order == sorted(order, reverse=task.direction == "backward")
            assert sequence[answers].tolist() == found
            assert begin // (2 * w) == (length + 1 - task.threads * (2 * w + 2)) // (
                2 * w
            )  # the haystack fills the row


def test_sets_by_sorting():
    expected = {
        "ascending": lambda s: s, "descending": lambda s: s[::-1],
        "extremes": lambda s: [s.pop(-(k % 2)) for k in range(len(s))],
        "median": lambda s: [s.pop(-(k % 2)) for k in range(len(s))][::-1],
    }  # fmt: skip
    for order, solve in expected.items():
        task = tasks.make("sorting", f"items=5, symbols=12, order={order}")
        sequence, answers = rows_of(task, 21)
        for problem, answer in zip(sequence[:, :22].reshape(-1, 11), answers[:, :22].reshape(-1, 11), strict=True):
            assert len(set(problem[:5].tolist())) == 5 and problem[5] == 12
            assert answer.tolist() == [False] * 6 + [True] * 5
            assert problem[6:].tolist() == solve(sorted(problem[:5].tolist()))
    # Every one of the 12 symbols is in 5 / 12 of the sets: a binomial share of 128 sets.
    share = np.stack([(sequence[:, :5] == symbol).any(axis=1) for symbol in range(12)]).mean(axis=1)
    assert np.abs(share - 5 / 12).max() < 4.5 * math.sqrt(5 / 12 * 7 / 12 / len(sequence))


def test_disjointness_by_sets():
    for key in ("disjoint", "twice", "shared"):
        name, settings, length = CASES[key]
        task = tasks.make(name, settings)
        separator, ask, yes, no = range(task.universe, task.universe + 4)
        sequences, answers = rows_of(task, length, 400)
        verdicts = []
        for sequence, answer in zip(sequences, answers, strict=True):
            assert np.flatnonzero(answer).tolist() == [length] and sequence[-2] == ask
            context = sequence[sequence <= separator]
            sets = np.split(context, np.flatnonzero(context == separator) + 1)[:-1]
            sets = [set(s[s < separator].tolist()) for s in sets]
            assert len(sets) == 2 * task.repeats and sets[:2] * task.repeats == sets
            sizes = [task.small, task.large]
            assert [len(s) for s in sets[:2]] == (sizes if task.order == "small_first" else sizes[::-1])
            shared = sets[0] & sets[1]
            if task.asks == "element":
                assert shared == {sequence[-1]}
                verdicts.append(context[task.large + 1 : -1].tolist().index(sequence[-1]))
                continue
            assert len(shared) == (0 if sequence[-1] == yes else task.overlap) and sequence[-1] in (yes, no)
            verdicts.append(int(sequence[-1] == yes))
        # A fair coin, or any element of the small set, 400 times.
        counts = np.bincount(verdicts)
        assert stats.chisquare(counts).pvalue > 1e-4 and task.chance_loss == math.log(len(counts))


def test_answers_are_uniform_where_chance_says_so():
    for name, settings, length, low, count in (
        ("recall", "pairs=4, queries=2, keys=6, values=5", 20, 6, 5),
        ("copying", "symbols=5, payload=3", 20, 0, 5),
    ):
        task = tasks.make(name, settings)
        sequence, answers = rows_of(task, length, 1000)
        counts = np.bincount(sequence[answers] - low, minlength=count)
        assert len(counts) == count and stats.chisquare(counts).pvalue > 1e-4
        assert task.chance_loss == pytest.approx(math.log(count))


def test_who_has_not_read_a_set_guesses_it_among_all_sets():
    every = [*itertools.combinations(range(6), 4)]
    task = tasks.make("sorting", "items=4, symbols=6")
    sequence, answers = rows_of(task, 8, 1500)
    written = sequence[answers].reshape(-1, 4).tolist()
    counts = np.bincount([every.index(tuple(each)) for each in written], minlength=len(every))
    assert stats.chisquare(counts).pvalue > 1e-4
    assert task.chance_loss == pytest.approx(math.log(len(every)) / 4)  # nats of each of the four


def test_draws_are_distinct_uniform_and_apart():
    row = np.arange(3000)
    drawn = draws.distinct(1, row, "a", 4, 7)
    assert all(len(set(d)) == 4 for d in drawn.tolist()) and drawn.max() == 6
    for k in range(4):
        assert stats.chisquare(np.bincount(drawn[:, k], minlength=7)).pvalue > 1e-4
    shuffled = draws.permutation(1, row, "b", 3)
    _, counts = np.unique(shuffled, axis=0, return_counts=True)
    assert len(counts) == 6 and stats.chisquare(counts).pvalue > 1e-4
    # Neighbouring rows, purposes and seeds are unrelated: 3,000 pairs correlate by chance within 4 / sqrt(3000).
    base = draws.uniforms(1, row, "a", 2)
    others = (base[:, 1], draws.uniforms(1, row + 1, "a", 1)[:, 0], draws.uniforms(2, row, "a", 1)[:, 0],
              draws.uniforms(1, row, "b", 1)[:, 0])  # fmt: skip
    for other in others:
        assert abs(np.corrcoef(base[:, 0], other)[0, 1]) < 4 / math.sqrt(3000)
    assert stats.kstest(base.ravel(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("name", tasks.TASKS)
def test_rows_of_a_million_tokens(name):
    settings = {"threading": "hops=5, width=5", "disjointness": "universe=4096, small=64, large=2048"}.get(name, "")
    batch = loader_of(tasks.make(name, settings), batch_size=1, length=1 << 20).batch(0)
    assert batch["tokens"].shape == (1, 1 << 20) and batch["scored"].any()


@pytest.mark.parametrize("name", tasks.TASKS)
def test_tasks_are_corpora(name):
    corpus = data.load(f"task:{name}", seed=4)
    task = tasks.TASKS[name]()
    assert corpus.info["best_loss"] == task.best_loss and corpus.info["source"] == f"task:{name}"
    assert corpus.tokenizer.vocab_size == task.num_symbols + 3
    length = max(64, task.least_length())
    loaders = [
        data.Loader(split, batch_size=2, length=length, pad=corpus.tokenizer.pad, seed=4, **kw)
        for split, kw in ((corpus.train, {}), (corpus.valid, {"epochs": 1}))
    ]
    assert len(loaders[1]) == 2048
    assert same(loaders[0].batch(1), loader_of(task, batch_size=2, length=length, seed=4).batch(1))
    assert not np.array_equal(loaders[0].batch(0)["tokens"], loaders[1].batch(0)["tokens"])
    again = data.load(f"task:{name}", seed=4)
    assert again.hash == corpus.hash != data.load(f"task:{name}", seed=5).hash


def test_settings_reach_the_task():
    corpus = data.load("task:recall", name="pairs=2, queries=3, keys=4, values=5, noise=1", size=12)
    assert corpus.info["settings"] == {"pairs": 2, "queries": 3, "keys": 4, "values": 5, "noise": 1}
    assert corpus.info["splits"]["train"]["documents"] == 12 and corpus.tokenizer.vocab_size == 13
    assert tasks.make("copying", {"reverse": True, "symbols": 9}) == tasks.Copying(symbols=9, reverse=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.load("task:recal"), "did you mean 'recall'"),
        (lambda: data.load("task:recall", name="pair=2"), "did you mean 'pairs'"),
        (lambda: data.load("task:recall", name="pairs"), "use settings like pairs=16"),
        (lambda: data.load("task:recall", name="pairs=two"), "pairs='two'"),
        (lambda: data.load("task:recall", name="pairs=0"), "pairs='0'"),
        (lambda: data.load("task:recall", name="pairs=100"), "use keys=100"),
        (lambda: data.load("task:recall", tokenizer="bpe"), "tokenizer='bpe'"),
        (lambda: data.load("task:recall", vocab_size=7), "vocab_size=7"),
        (lambda: tasks.make("copying", {"payload": 7, "item_length": 3}), "use 6"),
        (lambda: tasks.make("threading", "branches=1"), "use hops=2"),
        (lambda: tasks.make("threading", "direction=up"), "direction='up'"),
        (lambda: tasks.make("automata", "degree=9"), "use 8 or less"),
        (lambda: tasks.make("automata", "burn_in=1"), "burn_in=1.0"),
        (lambda: tasks.make("sorting", "symbols=5"), "use symbols=8"),
        (lambda: tasks.make("sorting", "order=up"), "order='up'"),
        (lambda: tasks.make("markov", "order=9"), "use order=6"),
        (lambda: tasks.make("markov", "kind=switching, flip=0"), "flip=0.0"),
        (lambda: tasks.make("disjointness", "universe=9"), "use universe=40"),
        (lambda: tasks.make("disjointness", "asks=elements"), "did you mean 'element'"),
        (lambda: tasks.make("disjointness", "asks=element, overlap=2"), "use overlap=1"),
        (lambda: loader_of("recall", batch_size=1, length=10), "use 63 or more"),
        (lambda: loader_of("threading", batch_size=1, length=1 << 20).batch(0), "use width=5"),
    ],
)
def test_refusals_are_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_least_length_is_enough_and_one_less_is_refused(case):
    task, _ = case
    least = task.least_length()
    loader = loader_of(task, batch_size=2, length=least)
    assert loader.batch(0)["scored"].any() or isinstance(task, tasks.Automata)
    if least > 1:
        with pytest.raises(ValueError, match=f"use {least} or more"):
            loader_of(task, batch_size=2, length=least - 1)


def test_scores():
    batch = {
        "targets": np.array([[1, 2, 3], [4, 5, 6], [7, 7, 7]]),
        "scored": np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]]) > 0,
    }
    predicted = np.array([[1, 9, 9], [9, 5, 9], [9, 9, 9]])
    nats = np.where(batch["scored"], math.log(2) * np.array([[1, 0, 2], [0, 3, 0], [0, 0, 0]]), 1e9)
    found = tasks.score(batch, predicted=predicted, nats=nats)
    assert found == pytest.approx(
        {"answers": 3, "rows": 2, "accuracy": 2 / 3, "exact": 0.5, "loss": 2 * math.log(2), "bits": 2.0}
    )
    assert set(tasks.score(batch)) == {"answers", "rows"}
    with pytest.raises(ValueError, match="predicted has shape"):
        tasks.score(batch, predicted=predicted[:, :2])


def test_a_task_is_frozen_and_has_what_the_protocol_says(case):
    task, _ = case
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.noise = 3
    assert task.best_kind in ("exact", "oracle") and 0 < task.best_accuracy <= 1 and task.best_loss >= 0
    assert task.chance_loss is None or task.chance_loss > task.best_loss
