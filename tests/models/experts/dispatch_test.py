"""Forms of dispatch against a loop over tokens and choices, and against each other with every gradient, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.experts import balance, banks, capacity, dispatch, routers
from tests.plain import experts as plain

T, D, F, E, K, RNG = 13, 4, 6, 5, 3, np.random.default_rng(5)
X = RNG.normal(size=(T, D))
UP, GATE, DOWN = RNG.normal(size=(E, D, F)), RNG.normal(size=(E, D, F)), RNG.normal(size=(E, F, D))
WEIGHT = RNG.uniform(size=(T, K))
CLOSE = {"rtol": 1e-12, "atol": 1e-13}
SPREAD = np.array([RNG.permutation(E)[:K] for _ in range(T)])
INDEX = {
    "spread": SPREAD,
    "two experts empty": np.array([RNG.permutation(E - 2)[:K] for _ in range(T)]),
    "all on one": np.stack([np.full(T, 3), np.full(T, -1), np.full(T, -1)], axis=1),
    "some unused": np.where(RNG.random((T, K)) < 0.4, -1, SPREAD),
    "nothing": np.full((T, K), -1),
}
pytestmark = pytest.mark.usefixtures("x64")


def layer(form, x, gate, weights, index, order="fifo", limit=T):
    up, gates, down = weights
    if form == "dense":
        return dispatch.dense(x, index, gate, lambda x: banks.ffn(x, up, down, gate=gates))
    if form == "einsum":
        places = capacity.ORDERS[order](index, gate)
        return dispatch.einsum(x, index, gate, places, limit, E, lambda x: banks.ffn(x, up, down, gate=gates))
    grouped = lambda rows, sizes: banks.grouped_ffn(rows, sizes, up, down, gate=gates)  # noqa: E731
    return dispatch.by_sorting(x, index, gate, E, grouped)


@functools.partial(jax.jit, static_argnums=0)
def all_of_it(form, index, cotangent):
    y, pull = jax.vjp(lambda *args: layer(form, *args, index), X, WEIGHT, (UP, GATE, DOWN))
    return y, pull(cotangent)


@pytest.mark.parametrize("case", INDEX)
def test_every_form_gives_the_loop_and_the_same_gradients(case):
    index, cotangent = INDEX[case], RNG.normal(size=(T, D))
    want = plain.mixture(X, index, WEIGHT, UP, DOWN, GATE)
    reference = all_of_it("dense", index, cotangent)
    np.testing.assert_allclose(reference[0], want, **CLOSE)
    for form in ("einsum", "sorted"):
        for got, expected in zip(
            jax.tree.leaves(all_of_it(form, index, cotangent)), jax.tree.leaves(reference), strict=True
        ):
            np.testing.assert_allclose(got, expected, **CLOSE)


@pytest.mark.parametrize("order", capacity.ORDERS)
def test_what_exceeds_a_capacity_is_dropped_alike_and_counted(order):
    for limit in (1, 3, 6):
        places = capacity.ORDERS[order](SPREAD, WEIGHT)
        kept = np.asarray(capacity.keep(SPREAD, places, limit))
        want = plain.mixture(X, kept, WEIGHT, UP, DOWN, GATE)
        full = np.bincount(SPREAD.reshape(-1), minlength=E)
        assert capacity.dropped(SPREAD, kept) == sum(max(0, n - limit) for n in full)
        assert np.sum(kept >= 0) + capacity.dropped(SPREAD, kept) == T * K
        args = X, WEIGHT, (UP, GATE, DOWN)
        np.testing.assert_allclose(layer("einsum", *args, SPREAD, order, limit), want, **CLOSE)
        np.testing.assert_allclose(layer("sorted", *args, jnp.asarray(kept)), want, **CLOSE)


@pytest.mark.parametrize("case", INDEX)
def test_choices_are_conserved(case):
    """Every used choice stands once in the rows of its expert, in the order of the tokens; back again: K x."""
    index = INDEX[case]
    order = jax.tree.map(np.asarray, dispatch.by_expert(index, E))
    assert order.sizes.tolist() == [int(np.sum(index == e)) for e in range(E)]
    rows = order.order[: order.sizes.sum()]
    assert sorted(order.order) == list(range(T * K))
    assert index.reshape(-1)[rows].tolist() == sorted(index[index >= 0])
    for e in range(E):
        mine = [c for c in rows if index.reshape(-1)[c] == e]
        assert mine == sorted(mine)
    back = dispatch.unpermute(dispatch.permute(X, order), order, T)
    np.testing.assert_allclose(np.sum(back, axis=1), K * X, **CLOSE)
    np.testing.assert_array_equal(dispatch.permute(X, order), X[order.order // K])


def test_permuting_experts_with_their_weights_changes_nothing():
    turn = RNG.permutation(E)
    index = np.argsort(turn)[SPREAD]
    got = layer("sorted", X, WEIGHT, (UP[turn], GATE[turn], DOWN[turn]), index)
    np.testing.assert_allclose(got, layer("sorted", X, WEIGHT, (UP, GATE, DOWN), SPREAD), **CLOSE)


def test_permuting_a_router_with_its_experts_permutes_its_counts_and_no_loss():
    """Columns of logits and a bias move with the experts: gates, balance and z-loss stay, loads and gradients move."""
    turn, z, bias = RNG.permutation(E), RNG.normal(size=(T, E)), RNG.normal(size=E)
    for rule in (
        lambda z, b: routers.softmax_before(z, K),
        lambda z, b: routers.softmax_after(z, K),
        lambda z, b: routers.sigmoid_bias(z, b, K),
    ):
        loss = lambda z, b, rule=rule: balance.batch(rule(z, b).probs, rule(z, b).index) + balance.z_loss(z)  # noqa: E731
        here, there = rule(z, bias), rule(z[:, turn], bias[turn])
        np.testing.assert_array_equal(turn[np.asarray(there.index)], here.index)
        np.testing.assert_allclose(there.gate, here.gate, **CLOSE)
        np.testing.assert_array_equal(balance.counts(there.index, E), balance.counts(here.index, E)[turn])
        np.testing.assert_allclose(loss(z[:, turn], bias[turn]), loss(z, bias), **CLOSE)
        gradient = jax.grad(loss)(jnp.asarray(z), bias)
        np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(z[:, turn]), bias[turn]), gradient[:, turn], **CLOSE)


@pytest.mark.parametrize("form", ["dense", "einsum", "sorted"])
def test_permuting_tokens_permutes_outputs_unless_they_queue(form):
    """Without drops each token is by itself; who finds a place in a queue depends on the order of the tokens."""
    turn, weights = RNG.permutation(T), (UP, GATE, DOWN)
    want = layer(form, X, WEIGHT, weights, SPREAD)[turn]
    np.testing.assert_allclose(layer(form, X[turn], WEIGHT[turn], weights, SPREAD[turn]), want, **CLOSE)
    if form == "einsum":
        dropped = layer(form, X, WEIGHT, weights, SPREAD, limit=3)[turn]
        moved = layer(form, X[turn], WEIGHT[turn], weights, SPREAD[turn], limit=3)
        assert np.abs(moved - dropped).max() > 0.1


def test_narrow_tokens_are_added_up_wide():
    """bfloat16 in, sums over choices in float32: rounding each of 64 equal terms would lose them."""
    x, K = jnp.ones((1, 2), jnp.bfloat16), 64
    index, gate = jnp.arange(K)[None], jnp.full((1, K), 1 + 2**-7, jnp.float32)
    y = dispatch.by_sorting(x, index, gate, K, lambda rows, sizes: rows)
    assert y.dtype == jnp.float32 and float(y[0, 0]) == 64 * (1 + 2**-7)
