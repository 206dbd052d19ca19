"""Paths of Duo-LLM on a tiny model: every one is tried, and no router at the same cost is better than the best."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.routing import paths
from kernels import masks
from models.experts import mixed
from models.lm import LM
from models.mixers.context import EXPERTS
from tests.plain.drawn import drawn, spec

L, T, MODULES, COSTS = 3, 7, 3, (16.0, 4.0, 0.0)
TOKENS = np.random.default_rng(3).integers(0, 11, T)
pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def tiny():
    """(losses by modules `[L, R, T]`, the path of each token that the router takes, the loss of every layer big)."""
    with jax.enable_x64(True):
        options = {"experts": 1, "small": 1, "zero": 1, "hidden": 16, "small_hidden": 4, "router": "duo", "k": 1}
        of = spec(channel="moe", moe=options, num_layers=L, vocab_size=11)
        run, _ = drawn(lambda rngs: LM(of, rngs=rngs), 5)
        ids = jnp.asarray(TOKENS)

        def losses(module, index):
            rows = jnp.broadcast_to(ids, index.shape[1:])
            given = None if index.ndim < 3 else {EXPERTS: (index[..., None], jnp.ones((*index.shape, 1)))}
            out = module(rows, mask=masks.Causal(), layers=given, taps=(EXPERTS,))
            z = jax.nn.log_softmax(out.features @ module.head_weights().T)
            target = jnp.roll(rows, -1, axis=1)
            return -jnp.take_along_axis(z, target[..., None], axis=-1)[..., 0], out.report[EXPERTS]

        def call(index):
            return np.asarray(run(losses, jnp.asarray(index))[0])

        free = np.asarray(
            run(lambda module, ids: module(ids, mask=masks.Causal(), taps=(EXPERTS,)).report[EXPERTS], ids[None])
        )
        yield call, free[:, 0, :, 0].T


def test_every_path_of_every_token(tiny):
    call, _ = tiny
    fixed = (0, 0, 0)
    found = paths.table(call, fixed, T, MODULES)
    everything = paths.every(L, MODULES)
    assert found.shape == (T, 27) and len({*map(tuple, everything)}) == 27
    big = call(np.zeros((L, 1, T), np.int32))[0]
    np.testing.assert_allclose(found[:, 0], big, rtol=1e-12)
    for t in (0, 3, T - 1):

        @functools.cache
        def alone(path, t=t):
            index = np.zeros((L, 1, T), np.int32)
            index[:, 0, t] = path
            return call(index)[0, t]

        for budget in (0, 8, 20, 48):
            want, path = mixed.oracle(alone, L, MODULES, COSTS, budget)
            least, which = paths.within(found, L, COSTS, budget)
            np.testing.assert_allclose(least[t], want, rtol=1e-12)
            assert tuple(which[t]) == path and paths.cost(path, COSTS) <= budget
    with pytest.raises(ValueError, match="use at least 3"):
        paths.within(found, L, (2.0, 1.0, 1.0), 2)


def test_no_router_is_better_than_the_best_path_of_its_cost(tiny):
    """The router's own choices, and a hundred drawn ones; a larger budget never hurts."""
    call, own = tiny
    found = paths.table(call, (0, 0, 0), T, MODULES)
    assert own.shape == (T, L) and len(np.unique(own)) > 1
    drawn_ = np.random.default_rng(0).integers(0, MODULES, (100, T, L))
    for chosen in (own, *drawn_):
        least, _ = paths.within(found, L, COSTS, paths.cost(chosen, COSTS))
        losses = paths.chosen(found, chosen, MODULES)
        np.testing.assert_array_equal(losses, [found[t, 9 * a + 3 * b + c] for t, (a, b, c) in enumerate(chosen)])
        assert np.all(least <= losses)
    by_budget = [paths.within(found, L, COSTS, budget)[0].mean() for budget in range(0, 49, 4)]
    assert np.all(np.diff(by_budget) <= 0) and by_budget[0] > by_budget[-1]
