"""Experts, capacities and upcycling against loops, in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.experts import banks, capacity, routers, routing, upcycling
from tests.plain import experts as plain
from tests.plain.layers import silu

T, D, F, E, K, RNG = 9, 4, 6, 5, 2, np.random.default_rng(2)
X = RNG.normal(size=(T, D))
UP, GATE, DOWN = RNG.normal(size=(E, D, F)), RNG.normal(size=(E, D, F)), RNG.normal(size=(E, F, D))
INDEX = np.array([RNG.permutation(E)[:K] for _ in range(T)])
WEIGHT = RNG.uniform(size=(T, K))
CLOSE = {"rtol": 1e-12, "atol": 1e-14}
pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("gate", [None, GATE], ids=["plain", "gated"])
def test_feed_forward_experts(gate):
    every = banks.ffn(X, UP, DOWN, gate=gate)
    want = [[plain.expert(x, UP[e], DOWN[e], None if gate is None else gate[e]) for x in X] for e in range(E)]
    np.testing.assert_allclose(every, want, **CLOSE)
    own = np.stack([X[[e, e + 1]] for e in range(E)])
    got = banks.ffn(own, UP, DOWN, gate=gate)
    np.testing.assert_allclose(got, [rows[e : e + 2] for e, rows in enumerate(want)], **CLOSE)
    index = INDEX.copy()
    index[3, 1] = -1
    mixed = plain.mixture(X, index, WEIGHT, UP, DOWN, gate)
    np.testing.assert_allclose(banks.mixture(every, index, WEIGHT), mixed, **CLOSE)


def test_biases_and_the_clamped_gate():
    """gpt-oss: (clip(up) + 1) g sigmoid(alpha g), a bias in each map; rows past the sizes give 0."""
    biases = {"gate": RNG.normal(size=(E, F)), "up": RNG.normal(size=(E, F)), "down": RNG.normal(size=(E, D))}
    limit, alpha, sizes = 1.1, 1.3, np.array([2, 0, 3, 1, 1])

    def expert(x, e):
        gate = x @ GATE[e] + biases["gate"][e]
        up = x @ UP[e] + biases["up"][e]
        hidden = np.zeros(F)
        for f in range(F):
            g, u = min(gate[f], limit), max(-limit, min(up[f], limit))
            hidden[f] = (u + 1) * g / (1 + np.exp(-alpha * g))
        return hidden @ DOWN[e] + biases["down"][e]

    join = functools.partial(banks.clamped_glu, limit=limit, alpha=alpha)
    maps = {name: (w, biases[name]) for name, w in (("gate", GATE), ("up", UP), ("down", DOWN))}
    every = banks.ffn(X, **maps, join=join)
    np.testing.assert_allclose(every, [[expert(x, e) for x in X] for e in range(E)], **CLOSE)
    got = banks.grouped_ffn(X, sizes, **maps, join=join)
    owners = np.repeat(np.arange(E), sizes)
    np.testing.assert_allclose(got[:7], [expert(X[m], e) for m, e in enumerate(owners)], **CLOSE)
    assert len(owners) == 7 and np.all(got[7:] == 0)
    plain_one = banks.ffn(X, maps["up"], maps["down"])
    want = silu(X @ UP[1] + biases["up"][1]) @ DOWN[1] + biases["down"][1]
    np.testing.assert_allclose(plain_one[1], want, **CLOSE)


def test_experts_that_cost_nothing():
    weight, vector = RNG.normal(size=(D, 2)), RNG.normal(size=D)
    np.testing.assert_allclose(
        banks.constant(X, weight, vector), [plain.constant(x, weight, vector) for x in X], **CLOSE
    )
    assert np.all(banks.zero(X) == 0) and np.all(banks.copy(X) == X)
    constants = [(weight, vector), (2 * weight, -vector)]
    for times in (1.0, 2.0):
        got = banks.moepp_output(X, INDEX, WEIGHT, lambda x: banks.ffn(x, UP[:1], DOWN[:1]), constants, times=times)
        want = np.zeros_like(X)
        for t, k in itertools.product(range(T), range(K)):
            x = times * X[t]
            all_ = [plain.expert(x, UP[0], DOWN[0]), *(plain.constant(x, *c) for c in constants), x, 0 * x]
            want[t] += WEIGHT[t, k] * all_[INDEX[t, k]]
        np.testing.assert_allclose(got, want, **CLOSE)


def test_blockffn_sums_over_active_experts():
    gates, _ = routers.relu(RNG.normal(size=(T, E)), RNG.uniform(size=E))
    index = np.where(np.asarray(gates) > 0, np.arange(E), -1)
    want = plain.mixture(X, index, np.asarray(gates), UP, DOWN)
    assert np.any(index < 0) and np.any(index >= 0)
    np.testing.assert_allclose(banks.blockffn(X, gates, UP, DOWN), want, **CLOSE)


def test_duo_runs_the_module_of_a_token():
    modules = [lambda x: jnp.asarray(x) @ UP[0] @ DOWN[0], lambda x: 3 * x, banks.zero]
    index = RNG.integers(0, 3, (T, 1))
    want = [WEIGHT[t, 0] * (X[t] @ UP[0] @ DOWN[0], 3 * X[t], 0 * X[t])[index[t, 0]] for t in range(T)]
    np.testing.assert_allclose(banks.duo(X, index, WEIGHT[:, :1], modules), want, **CLOSE)


# ==================== Capacity ====================
def test_capacities_are_the_integers_of_each_release():
    assert [capacity.switch(10, 4, 2, f) for f in (1.0, 1.25)] == [5, 6]
    assert capacity.megablocks(10, 4, 2, 1.25, ranks=3) == int(1.25 * 60 / 4)
    assert [capacity.megatron(10, 4, 2, f) for f in (1.0, 1.25)] == [5, 7]
    assert capacity.tutel(10, 4, 2, 1.25) == 2 * int(1.25 * 3) and capacity.tutel(10, 4, 2, 1.0, multiple=4) == 8
    assert capacity.tutel(10, 4, 2, 0, most=9) == 9 and capacity.tutel(10, 4, 2, -1.0, most=9) == 6
    assert capacity.tutel(10, 4, 2, -1.0, most=3, multiple=2) == 4
    assert capacity.maxtext(10, 4, 2, 1.25) == int(5 * 1.25) and capacity.maxtext(1, 64, 2, 2.0) == 2
    ffn, free = capacity.moepp(100, (8, 4), 1.1, 0.75)
    assert (ffn, free) == pytest.approx((1.1 * 0.75 * 10, 1.1 * 10)) and ffn * 8 / (
        ffn * 8 + free * 4
    ) == pytest.approx(0.6)


ARRIVALS = {
    "fifo": lambda g: [(t, k) for k in range(K) for t in range(T)],
    "token": lambda g: [(t, k) for t in range(T) for k in range(K)],
    "probability": lambda g: sorted(itertools.product(range(T), range(K)), key=lambda tk: (-g[tk], tk)),
    "batch_prioritised": lambda g: [(t, k) for k in range(K) for t in sorted(range(T), key=lambda t: (-max(g[t]), t))],
}


@pytest.mark.parametrize("order", capacity.ORDERS)
@pytest.mark.parametrize("ties", [False, True])
def test_queues_of_the_experts(order, ties):
    index, gate = INDEX % 3, np.round(WEIGHT, 1) if ties else WEIGHT
    index[4, 0] = -1
    places = capacity.ORDERS[order](index, gate)
    np.testing.assert_array_equal(places, plain.places(index, ARRIVALS[order](gate)))
    before = None
    for limit in range(6):
        kept = np.asarray(capacity.keep(index, places, limit))
        assert np.all(plain.counts(kept, 3) == np.minimum(plain.counts(index, 3), limit))
        assert capacity.dropped(index, kept) == np.sum(index >= 0) - np.sum(kept >= 0)
        if before is not None:
            assert np.all((before < 0) | (kept == before))  # A larger capacity drops nothing that was kept.
        before = kept
    per_expert = capacity.keep(index, places, np.array([0, 2, 9]))
    assert np.all(plain.counts(per_expert, 3) == np.minimum(plain.counts(index, 3), [0, 2, 9]))


def test_priority_keeps_likelier_first_choices():
    z = RNG.normal(size=(T, 3)) + np.array([2.0, 0, 0])
    found = routers.softmax_before(z, 2)
    totals = {}
    for order in ("fifo", "batch_prioritised"):
        kept = capacity.keep(found.index, capacity.ORDERS[order](found.index, found.gate), 3)
        totals[order] = np.sum(np.where(kept[:, 0] >= 0, found.gate[:, 0], 0))
    assert totals["batch_prioritised"] > totals["fifo"]
    np.testing.assert_allclose(capacity.priority_scores(z), [plain.softmax(row).max() for row in z], **CLOSE)


# ==================== Upcycling ====================
@pytest.mark.parametrize(("pieces", "copies", "chosen"), [(2, 3, 2), (3, 2, 6), (2, 2, 4), (1, 4, 2)])
def test_slices_add_up_to_the_dense_layer(pieces, copies, chosen):
    up, down, b1, b2 = UP[0], DOWN[0], RNG.normal(size=F), RNG.normal(size=D)
    dense = [silu(x @ up + b1) @ down + b2 for x in X]
    ups, downs = upcycling.slices_up(up, pieces, copies), upcycling.slices_down(down, pieces, copies)
    hidden, out = upcycling.slices_up_bias(b1, pieces, copies), upcycling.slices_down_bias(b2, pieces, copies)
    every = np.array([[silu(x @ ups[e] + hidden[e]) @ downs[e] + out[e] for x in X] for e in range(len(ups))])
    np.testing.assert_allclose(every[:pieces].sum(0), dense, **CLOSE)
    np.testing.assert_array_equal(every[:pieces], every[-pieces:])
    rows = upcycling.router_rows(RNG.normal(size=(D, copies)), pieces)
    found = routers.softmax_after(X @ rows, chosen)
    assert all(len(set(row // pieces)) == chosen // pieces for row in np.asarray(found.index))
    gate = found.gate * upcycling.gate_scale(pieces, True)
    np.testing.assert_allclose(banks.mixture(every, found.index, gate), dense, **CLOSE)
    ones = np.ones((T, pieces))
    first = np.asarray(found.index)[:, :1] // pieces * pieces + np.arange(pieces)
    np.testing.assert_allclose(banks.mixture(every, first, ones * upcycling.gate_scale(pieces, False)), dense, **CLOSE)


def test_copies_scales_and_noise():
    assert upcycling.copies(UP[0], 3).shape == (3, D, F) and np.all(upcycling.copies(UP[0], 3) == UP[0])
    assert upcycling.megatron_scale(4, 8, 2, after=True, gated=True) == pytest.approx(4 ** (1 / 3))
    assert upcycling.megatron_scale(4, 8, 2, after=False, gated=False) == pytest.approx((8 * 16 / 2) ** 0.5)
    noisy = upcycling.perturbed(np.zeros((300, 8)), 0.1, 0)
    np.testing.assert_allclose(noisy.std(), 0.1, rtol=3 / (2 * 2400) ** 0.5)


def test_gradients_of_a_mixture_are_finite_where_nothing_is_chosen():
    def f(x, gate):
        return jnp.sum(banks.mixture(banks.ffn(x, UP, DOWN), np.full((T, K), -1), gate))

    gradient = jax.grad(f, argnums=(0, 1))(jnp.asarray(X), jnp.asarray(WEIGHT))
    assert all(np.all(np.asarray(g) == 0) for g in gradient)
    assert routing.Routing._fields == ("logits", "probs", "index", "gate")
