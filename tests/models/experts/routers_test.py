"""Routers against loops over tokens and experts, in float64: choices, gates, ties, masks, NaN, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.experts import balance, graph, mixed, routers, routing
from tests.plain import experts as plain

T, E, RNG = 12, 8, np.random.default_rng(0)
Z = RNG.normal(size=(T, E)) * 2
BIAS = RNG.normal(size=E) * 0.3
SCALE = RNG.uniform(0.5, 2, E)
CLOSE = {"rtol": 1e-13, "atol": 1e-15}
pytestmark = pytest.mark.usefixtures("x64")


def same(routing_, want):
    np.testing.assert_array_equal(routing_.index, want[0])
    np.testing.assert_allclose(routing_.gate, want[1], **CLOSE)
    assert routing_.gate.dtype == np.float64 and routing_.index.dtype == np.int32


@pytest.mark.parametrize("k", [1, 2, 5, E])
def test_softmax_before_and_after_the_choice(k):
    same(routers.softmax_before(Z, k), plain.rows(plain.before, Z, k))
    same(routers.softmax_before(Z, k, renormalise=True, scale=2.5), plain.rows(plain.before, Z, k, True, 2.5))
    same(routers.softmax_after(Z, k, scale=1.5), plain.rows(plain.after, Z, k, 1.5))
    probs = [plain.softmax(row) for row in Z]
    np.testing.assert_allclose(routers.softmax_after(Z, k).probs, probs, **CLOSE)


@pytest.mark.parametrize("k", [1, 3])
def test_a_bias_moves_the_choice_and_no_gate(k):
    same(routers.sigmoid_bias(Z, BIAS, k, scale=2.5), plain.rows(plain.with_bias, Z, BIAS, k, 2.5))
    same(routers.sigmoid_bias(Z, BIAS, k, renormalise=False), plain.rows(plain.with_bias, Z, BIAS, k, 1.0, False))
    moved, first = routers.sigmoid_bias(Z, BIAS + 0.7, k), routers.sigmoid_bias(Z, BIAS, k)
    np.testing.assert_array_equal(moved.index, first.index)
    np.testing.assert_array_equal(moved.gate, first.gate)
    assert np.any(first.index != routers.sigmoid_bias(Z, 0, k).index)
    gradient = jax.grad(lambda b: jnp.sum(routers.sigmoid_bias(Z, b, k).gate ** 2))(BIAS)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(("groups", "kept", "k"), [(4, 2, 2), (4, 2, 4), (2, 1, 3), (4, 4, 3), (1, 1, 2)])
@pytest.mark.parametrize("rule", routers.GROUP_SCORES)
def test_groups_limit_the_choice(rule, groups, kept, k):
    want = [plain.limited(row, k, groups, kept, rule) for row in Z]
    np.testing.assert_array_equal(routers.group_limited(Z, k, groups, kept, rule=rule), want)
    p = np.array([plain.softmax(row) for row in Z])
    found = routers.group_softmax(Z, k, groups, kept, rule=rule, scale=16.0)
    index = np.array([plain.limited(row, k, groups, kept, rule) for row in p])
    same(found, (index, 16 * np.take_along_axis(p, index, 1)))
    s = 1 / (1 + np.exp(-Z))
    index = np.array([plain.limited(row, k, groups, kept, rule) for row in s + BIAS])
    gate = np.take_along_axis(s, index, 1)
    found = routers.group_sigmoid(Z, BIAS, k, groups, kept, rule=rule, scale=2.5)
    same(found, (index, 2.5 * gate / gate.sum(1, keepdims=True)))


def test_a_fill_of_zero_takes_experts_of_groups_that_were_left_out():
    scores = np.array([[-0.5, 0.9, -0.4, -0.3]])
    np.testing.assert_array_equal(routers.group_limited(scores, 2, 2, 1, rule="max"), [[1, 0]])
    np.testing.assert_array_equal(routers.group_limited(scores, 2, 2, 1, rule="max", fill=0.0), [[1, 2]])
    with pytest.raises(ValueError, match="groups=3 do not divide 4 experts"):
        routers.group_scores(scores, 3, "max")
    with pytest.raises(ValueError, match="rule='mean' is unknown"):
        routers.group_scores(scores, 2, "mean")


@pytest.mark.parametrize(("k", "groups"), [(1, 1), (2, 2), (4, 2), (4, 4), (8, 8), (8, 4)])
def test_moge_chooses_equally_in_every_group(k, groups):
    found = routers.moge(Z, k, groups, scale=SCALE)
    same(found, plain.rows(plain.moge, Z, k, groups, SCALE))
    load = np.bincount(np.asarray(found.index).ravel() // (E // groups), minlength=groups)
    np.testing.assert_array_equal(load, T * k // groups)
    if groups == 1:
        same(found, plain.rows(plain.moge, Z, k, 1, SCALE))
        np.testing.assert_array_equal(found.index, routers.softmax_before(Z, k).index)
    with pytest.raises(ValueError, match="must divide k=3"):
        routers.moge(Z, 3, 2)


@pytest.mark.parametrize("capacity", [1, 4, T])
def test_experts_choose_tokens(capacity):
    tokens, gate = routers.expert_choice(Z, capacity)
    want = plain.expert_choice(Z, capacity)
    np.testing.assert_array_equal(tokens, want[0])
    np.testing.assert_allclose(gate, want[1], **CLOSE)
    by_token = np.zeros((T, E))
    for e in range(E):
        by_token[want[0][e], e] = want[1][e]
    np.testing.assert_allclose(routers.expert_choice_gates(tokens, gate, T), by_token, **CLOSE)


def test_relu_gates_are_normalised_over_the_experts():
    z = np.concatenate([Z, -np.abs(Z[:1])])
    gates, without = routers.relu(z, SCALE, eps=1e-5)
    for t, row in enumerate(z):
        np.testing.assert_allclose((gates[t], without[t]), plain.relu(row, SCALE, 1e-5), **CLOSE)
    assert np.all(np.asarray(gates)[-1] == 0) and np.all((np.asarray(gates) > 0) == (z > 0))
    assert np.all(np.isfinite(jax.grad(lambda z: jnp.sum(routers.relu(z, SCALE)[0]))(z)))
    np.testing.assert_allclose(routers.relu(1e3 * z)[1], routers.relu(1e4 * z)[1], rtol=1e-8)


def test_adamoe_renormalises_over_true_experts():
    found = mixed.null_experts(Z, 3, 5)
    index, gate = plain.rows(plain.before, Z, 3)
    every = np.where(index < 5, gate, 0)
    total = every.sum(1, keepdims=True)
    same(found, (index, every / np.where(total == 0, 1, total)))
    assert np.any(found.index >= 5)
    released = mixed.adamoe_released(Z, 3, 5)
    np.testing.assert_allclose(released, np.where(index < 5, found.gate, gate), **CLOSE)
    same(mixed.null_experts(Z, 3, E), plain.rows(plain.before, Z, 3, True))
    assert mixed.expected_true(4, 8, 8) == 2
    alone = np.array([[0.0, 0, 9, 8]])
    np.testing.assert_array_equal(mixed.null_experts(alone, 2, 2).gate, [[0, 0]])
    gradient = jax.grad(lambda z: jnp.sum(jnp.sin(mixed.null_experts(z, 3, 5).gate)))(
        np.concatenate([Z, alone @ np.eye(4, E)])
    )
    assert np.all(np.isfinite(gradient)) and np.abs(gradient[:, :5]).max() > 0.01
    np.testing.assert_array_equal(gradient[:, 5:], 0)


def test_moepp_residual_released_gates_and_scaled_logits():
    previous, weight = RNG.normal(size=(T, E)), RNG.normal(size=(E, E))
    want = [[Z[t, e] + sum(previous[t, i] * weight[i, e] for i in range(E)) for e in range(E)] for t in range(T)]
    np.testing.assert_allclose(mixed.gating_residual(Z, previous, weight), want, rtol=1e-13)
    np.testing.assert_array_equal(mixed.gating_residual(Z, previous, 0 * weight), Z)
    same(mixed.moepp_released(Z), plain.rows(plain.moepp, Z, 2))
    assert np.any(np.asarray(mixed.moepp_released(Z).index) == E - 1)
    np.testing.assert_array_equal(mixed.moepp_released(np.eye(E)[-1:] * 9, 1).gate, [[0]])
    std = [math_std(row) for row in Z]
    np.testing.assert_allclose(mixed.scaled_logits(Z, 0.7), Z * 0.7 / np.array(std)[:, None], rtol=1e-13)
    x, into, out = RNG.normal(size=(T, 3)), RNG.normal(size=(3, 5)), RNG.normal(size=(5, E))
    np.testing.assert_allclose(mixed.two_layer_logits(x, into, out), np.tanh(x @ into) @ out, rtol=1e-12)


def math_std(row):
    mean = sum(row) / len(row)
    return (sum((x - mean) ** 2 for x in row) / (len(row) - 1)) ** 0.5


def test_duo_takes_the_likelier_module_and_the_oracle_tries_every_path():
    z = Z[:, :3]
    p = np.array([plain.softmax(row / 0.5) for row in z])
    found = mixed.duo(z, 0.5)
    np.testing.assert_array_equal(found.index[:, 0], p.argmax(1))
    np.testing.assert_allclose(found.gate[:, 0], p.max(1), **CLOSE)
    big = RNG.uniform(size=(T, 4))
    np.testing.assert_allclose(mixed.budget_loss(big, 0.4), np.mean([(sum(r) / 4 - 0.4) ** 2 for r in big]), **CLOSE)
    sums = np.concatenate([np.zeros((T, 1)), big.cumsum(1)], axis=1)
    parts = sum(mixed.budget_step(sums[:, i], sums[:, i + 1], 4, 0.4) for i in range(4))
    np.testing.assert_allclose(parts, [(sum(r) / 4 - 0.4) ** 2 for r in big], **CLOSE)
    straight = mixed.duo(z, 0.5, straight=True)
    np.testing.assert_array_equal(straight.gate, np.ones((T, 1)))
    np.testing.assert_array_equal(straight.index, found.index)
    drawn = np.asarray(mixed.duo_random(jax.random.key(0), (4000,), (0.5, 0.25, 0.25)))
    assert drawn.shape == (4000, 1)
    # Three deviations of a share of 4000 draws.
    np.testing.assert_allclose(np.bincount(drawn[:, 0]) / 4000, [0.5, 0.25, 0.25], atol=3 * 0.5 / 4000**0.5)
    losses = {(0, 0): 1.0, (0, 1): 2.0, (1, 0): 1.5, (1, 1): 3.0}
    assert mixed.oracle(losses.get, 2, 2, (10, 1), 20) == (1.0, (0, 0))
    assert mixed.oracle(losses.get, 2, 2, (10, 1), 11) == (1.5, (1, 0))
    assert mixed.oracle(losses.get, 2, 2, (10, 1), 2) == (3.0, (1, 1))
    with pytest.raises(ValueError, match="use at least 2"):
        mixed.oracle(losses.get, 2, 2, (10, 1), 1)


@pytest.mark.parametrize("causal", [True, False])
def test_a_graph_averages_over_similar_tokens(causal):
    u, ids = RNG.normal(size=(T, 3)), np.repeat([1, 2], [5, T - 5])
    graph_ = graph.similarity(u, graph.visible(T, ids, causal), 0.7)
    want = np.zeros((T, T))
    for i in range(T):
        seen = [j for j in range(T) if ids[i] == ids[j] and (j <= i or not causal)]
        want[i, seen] = plain.softmax(np.array([u[i] @ u[j] / 0.7 for j in seen]))
    np.testing.assert_allclose(graph_, want, rtol=1e-12, atol=1e-15)
    p = np.array([plain.softmax(row) for row in Z])
    found = graph.graph_of_tokens(Z, graph_, 2, renormalise=False)
    index, gate = plain.rows(lambda row, k: (plain.best(row, k), sorted(row, reverse=True)[:k]), want @ p, 2)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.gate, gate, rtol=1e-12)
    np.testing.assert_allclose(found.probs.sum(-1), 1, rtol=1e-13)
    same(graph.graph_of_tokens(Z, np.eye(T), 2), plain.rows(plain.before, Z, 2, True))
    heads = RNG.uniform(size=(3, T, T))
    np.testing.assert_allclose(graph.attention(heads), sum(heads) / 3, **CLOSE)
    np.testing.assert_allclose(balance.entropy(p), [-sum(v * np.log(v) for v in row) for row in p], **CLOSE)
    assert balance.entropy(np.eye(3)).tolist() == [0, 0, 0]


def test_a_token_does_not_change_the_graph_of_those_before():
    u = RNG.normal(size=(T, 3))
    other = u.copy()
    other[7:] += 1
    first, second = (graph.averaged(graph.similarity(x, graph.visible(T)), Z) for x in (u, other))
    np.testing.assert_array_equal(first[:7], second[:7])
    assert np.abs(first[7:] - second[7:]).max() > 1e-3


ROUTERS = {
    "softmax_before": lambda z: routers.softmax_before(z, 2),
    "softmax_after": lambda z: routers.softmax_after(z, 2),
    "sigmoid_bias": lambda z: routers.sigmoid_bias(z, 0.0, 2),
    "group_softmax": lambda z: routers.group_softmax(z, 2, 2, 2),
    "group_sigmoid": lambda z: routers.group_sigmoid(z, 0.0, 2, 2, 2),
    "moge": lambda z: routers.moge(z, 2, 1),
    "null_experts": lambda z: mixed.null_experts(z, 2, 3),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_ties_masks_and_nan(name):
    """Equal logits choose the lowest indices, -0.0 equals 0.0, an expert at -inf is not chosen, NaN chooses nothing."""
    route = ROUTERS[name]
    np.testing.assert_array_equal(route(np.zeros((1, 4))).index, [[0, 1]])
    np.testing.assert_array_equal(route(np.array([[-0.0, 0, -0.0, 0]])).index, [[0, 1]])
    np.testing.assert_array_equal(route(np.array([[-np.inf, 1, 3, 2.0]])).index, [[2, 3]])
    broken = route(np.array([[0, np.nan, 1, 2.0], [0, 1, 2, 3]]))
    np.testing.assert_array_equal(broken.index[0], [-1, -1])
    np.testing.assert_array_equal(broken.gate[0], [0, 0])
    np.testing.assert_array_equal(routing.reported(np.array([[0, np.nan], [0, np.inf]])), [True, False])
    alone = route(np.array([[-np.inf, -np.inf, 5.0, -np.inf]]))
    np.testing.assert_array_equal(alone.index, [[2, -1]])
    np.testing.assert_array_equal(alone.gate[0, 1], 0)


def test_bfloat16_tokens_choose_as_their_float32_values():
    x = jnp.asarray(RNG.normal(size=(64, 32)), jnp.bfloat16)
    weight = jnp.asarray(RNG.normal(size=(32, E)), jnp.float32)
    narrow, exact = routers.logits(x, weight), x.astype(jnp.float32) @ weight
    assert narrow.dtype == jnp.float32
    np.testing.assert_array_equal(routing.select(narrow, 3), routing.select(exact, 3))
    np.testing.assert_allclose(routers.logits(Z, np.eye(E)), Z, **CLOSE)


def test_noise_stays_in_its_range():
    x = jnp.ones((50, 40))
    drawn = routers.jittered(x, jax.random.key(0), 0.1)
    assert 0.9 <= drawn.min() < 0.91 and 1.09 < drawn.max() <= 1.1
    noise = routers.tutel_noise(x, jax.random.key(0), 2.0) - x
    np.testing.assert_allclose(noise.std(), 2 / 40, rtol=3 / 2000**0.5)


def test_gates_by_expert_and_masks():
    index, gate = np.array([[2, 0], [1, -1]]), np.array([[0.25, 0.75], [0.5, 9.0]])
    np.testing.assert_array_equal(routing.mask(index, 3), [[1, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(routing.dense(index, gate, 3), [[0.75, 0, 0.25], [0, 0.5, 0]])
    np.testing.assert_array_equal(routing.take(np.arange(6.0).reshape(2, 3), index), [[2, 0], [4, 0]])
    np.testing.assert_array_equal(routing.normalised(np.array([[1.0, 3], [0, 0]])), [[0.25, 0.75], [0, 0]])
