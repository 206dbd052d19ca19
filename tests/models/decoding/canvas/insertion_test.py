"""Insertion: exact check 16 for the targets' optimum and the sampler, in float64 and by chi-square."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from models.decoding.canvas import insertion
from models.objectives import insertion as objective

SIZE, LENGTH = 2, 3


def optimum(law, weighted=False):
    """The population-optimal predictor: for each partial string, the mean target and the chance that nothing is
    missing.

    By enumeration of every string and every subset: n uniform over 0..L_x, subset uniform, n = 0 without a token loss.
    """
    rows, counts = objective.strings(SIZE, LENGTH)
    index = {tuple(r[1 : c + 1]): i for i, (r, c) in enumerate(zip(rows, counts, strict=True))}
    moves, stops = np.zeros((len(rows), LENGTH + 1, SIZE)), np.zeros((len(rows), 2))
    for x, chance in law.items():
        size = len(x)
        for keep in itertools.product([False, True], repeat=size):
            n = size - sum(keep)
            share = chance / (size + 1) / math.comb(size, n) * (size + 1 if weighted else 1)
            i = index[tuple(v for v, k in zip(x, keep, strict=True) if k)]
            stops[i, int(n == 0)] += share
            for l in range(size):
                if not keep[l]:
                    moves[i, sum(keep[:l]), x[l]] += share / n
    powers = np.cumsum([0] + [SIZE**m for m in range(LENGTH)])
    with np.errstate(divide="ignore"):
        log_moves, log_stops = np.log(moves), np.log(stops)
    for i in range(len(rows)):  # strings that cannot occur: anything finite
        if stops[i].sum() == 0:
            log_moves[i], log_stops[i] = 0, 0
        if moves[i].sum() == 0:
            log_moves[i] = 0

    def insert(z, count, dtype=jnp.float64):
        number = jnp.zeros_like(count)
        for l in range(LENGTH):
            number = jnp.where(l < count, number * SIZE + z[:, l + 1], number)
        at = jnp.asarray(powers)[count] + number
        return jnp.asarray(log_moves, dtype)[at], jnp.asarray(log_stops, dtype)[at]

    return insert


def fixed_law():
    p = np.random.default_rng(0).dirichlet(np.full(SIZE**LENGTH, 0.7))
    return dict(zip(itertools.product(range(SIZE), repeat=LENGTH), p, strict=True))


def variable_law():
    names = [x for m in range(LENGTH + 1) for x in itertools.product(range(SIZE), repeat=m)]
    return dict(zip(names, np.random.default_rng(1).dirichlet(np.full(len(names), 0.7)), strict=True))


def tv(got, law):
    return 0.5 * sum(abs(got.get(x, 0.0) - law.get(x, 0.0)) for x in {*got, *law})


def test_fixed_length_is_exact(x64):
    law = fixed_law()
    got = insertion.exact_law(optimum(law), length=LENGTH, vocab_size=SIZE, stop="never")
    assert tv(got, law) < 1e-14


def test_variable_length_is_short_unless_weighted(x64):
    law = variable_law()
    got = insertion.exact_law(optimum(law), length=LENGTH, vocab_size=SIZE)
    short = {x: p / (len(x) + 1) for x, p in law.items()}
    short = {x: p / sum(short.values()) for x, p in short.items()}
    assert tv(got, short) < 1e-14 and tv(short, law) > 0.05
    exact = insertion.exact_law(optimum(law, weighted=True), length=LENGTH, vocab_size=SIZE)
    assert tv(exact, law) < 1e-14


@pytest.mark.parametrize("stop", ["sample", "threshold", "never"])
def test_draws_follow_the_exact_law(stop):
    """Chi-square at 1e-4 over all final strings, 80 000 draws; calls are insertions plus the stopping one."""
    law, batch = variable_law(), 80_000
    with jax.enable_x64(True):
        exact = insertion.exact_law(optimum(law), length=LENGTH, vocab_size=SIZE, stop=stop, threshold=0.3)
    insert = optimum(law)
    run = lambda key: insertion.sample(  # noqa: E731
        lambda z, c: insert(z, c, jnp.float32),
        key,
        batch=batch,
        length=LENGTH,
        vocab_size=SIZE,
        settings=insertion.Settings(stop, threshold=0.3),
    )
    tokens, calls = map(np.asarray, jax.jit(run)(jax.random.key(0)))
    lengths = (tokens < SIZE).sum(1)
    assert (calls == np.minimum(lengths + 1, LENGTH)).all()
    names, counts = np.unique(tokens, axis=0, return_counts=True)
    seen = {tuple(int(v) for v in row if v < SIZE): n for row, n in zip(names, counts, strict=True)}
    assert all(exact.get(x, 0) > 0 for x in seen)
    cells = [(p * batch, seen.get(x, 0)) for x, p in exact.items() if p * batch >= 5]
    statistic = sum((o - e) ** 2 / e for e, o in cells)
    assert statistic < scipy.stats.chi2.ppf(1 - 1e-4, max(len(cells) - 1, 1))
    if stop != "never":
        assert 0 < lengths.mean() < LENGTH


def test_infilling_keeps_prefix_and_suffix_and_requests():
    insert = optimum(variable_law())
    init = jnp.array([1, 0])
    start, settings = insertion.Start(init, prefix=1, suffix=1), insertion.Settings("never")
    options = {"length": LENGTH, "vocab_size": SIZE, "settings": settings, "start": start}
    f32 = lambda z, c: insert(z, c, jnp.float32)  # noqa: E731
    tokens, calls = insertion.sample(f32, jax.random.key(0), batch=16, **options)
    assert (np.asarray(tokens)[:, 0] == 1).all() and (np.asarray(tokens)[:, 2] == 0).all() and (calls == 1).all()
    some, _ = insertion.sample(f32, jax.random.key(0), batch=2, requests=jnp.array([11, 4]), **options)
    np.testing.assert_array_equal(some, np.asarray(tokens)[[11, 4]])
    with pytest.raises(ValueError, match="stop='soon'"):
        insertion.Settings("soon")
