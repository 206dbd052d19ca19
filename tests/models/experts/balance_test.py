"""Balance losses against loops, in float64: scopes, norms, gradients, biases; BlockFFN's losses and schedule."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.experts import balance, mixed, routers, sparsity
from tests.plain import experts as plain

R, T, E, K, RNG = 4, 6, 5, 2, np.random.default_rng(1)
Z = RNG.normal(size=(R, T, E)) * 2
P = np.array([[plain.softmax(row) for row in part] for part in Z])
INDEX = np.array([[plain.best(row, K) for row in part] for part in Z])
ALL, EVERY = P.reshape(-1, E), INDEX.reshape(-1, K)
CLOSE = {"rtol": 1e-13, "atol": 1e-16}
pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("by_k", [True, False])
def test_every_scope_is_its_mean_over_tokens(by_k):
    kw = {"normalise_k": by_k}
    np.testing.assert_allclose(balance.batch(ALL, EVERY, **kw), plain.load(ALL, EVERY, by_k), **CLOSE)
    np.testing.assert_allclose(balance.batch(P, INDEX, **kw), plain.load(ALL, EVERY, by_k), **CLOSE)
    each = np.mean([plain.load(P[r], INDEX[r], by_k) for r in range(R)])
    np.testing.assert_allclose(balance.sequence(P, INDEX, **kw), each, **CLOSE)
    np.testing.assert_allclose(balance.micro(P, INDEX, **kw), each, **CLOSE)
    f = plain.counts(EVERY, E) / (R * T * (K if by_k else 1))
    ranks = balance.over_ranks(P, INDEX, **kw)
    np.testing.assert_allclose(ranks, [plain.load(P[r], INDEX[r], f=f) for r in range(R)], **CLOSE)
    np.testing.assert_allclose(ranks.mean(), plain.load(ALL, EVERY, by_k), **CLOSE)
    order = RNG.permutation(R * T)
    mixed_ = np.mean([plain.load(ALL[part], EVERY[part], by_k) for part in order.reshape(R, T)])
    np.testing.assert_allclose(balance.shuffled(ALL, EVERY, order, R, **kw), mixed_, **CLOSE)
    assert abs(mixed_ - each) > 1e-3


def test_the_buffer_sees_the_steps_so_far_and_ends_with_the_whole():
    want = [plain.load(P[s], INDEX[s], f=plain.counts(INDEX[: s + 1], E) / (K * T * (s + 1))) for s in range(R)]
    np.testing.assert_allclose(balance.accumulated(P, INDEX), want, **CLOSE)
    np.testing.assert_allclose(balance.accumulated(P, INDEX)[-1], balance.over_ranks(P, INDEX)[-1], **CLOSE)
    f, buffer = balance.accumulate(np.zeros(3), np.zeros(3))
    assert f.tolist() == [0, 0, 0] and buffer.tolist() == [0, 0, 0]


def test_padding_counts_in_no_loss():
    valid = RNG.uniform(size=(R, T)) < 0.6
    valid[:, 0] = True
    keep = valid.reshape(-1)
    np.testing.assert_allclose(balance.batch(P, INDEX, valid=valid), plain.load(ALL[keep], EVERY[keep]), **CLOSE)
    each = np.mean([plain.load(P[r][valid[r]], INDEX[r][valid[r]]) for r in range(R)])
    np.testing.assert_allclose(balance.sequence(P, INDEX, valid=valid), each, **CLOSE)
    np.testing.assert_allclose(balance.z_loss(Z, valid), plain.z_loss(Z.reshape(-1, E)[keep]), **CLOSE)
    np.testing.assert_array_equal(balance.counts(INDEX, E, valid), plain.counts(EVERY[keep], E))
    np.testing.assert_allclose(
        balance.null_aware(P, INDEX, E, valid=valid), plain.load(ALL[keep], EVERY[keep]), **CLOSE
    )


def test_the_gradient_is_the_formula_and_f_carries_none():
    def loss(z):
        return balance.batch(jax.nn.softmax(z), EVERY)

    z = Z.reshape(-1, E)
    f = plain.counts(EVERY, E) / (K * R * T)
    want = np.array([[E / (R * T) * p[i] * (f[i] - sum(p * f)) for i in range(E)] for p in ALL])
    np.testing.assert_allclose(jax.grad(loss)(z), want, rtol=1e-11, atol=1e-17)
    np.testing.assert_allclose(balance.logit_gradient(ALL, f), want, rtol=1e-12, atol=1e-17)
    np.testing.assert_array_equal(jax.grad(lambda f: balance.product(f, ALL.mean(0)))(f), 0)
    uniform = np.full((E, E), 1 / E)
    np.testing.assert_allclose(balance.product(np.full(E, 1 / E), uniform[0]), 1, **CLOSE)
    np.testing.assert_allclose(balance.logit_gradient(ALL, np.full(E, 1 / E)), 0, atol=1e-17)
    one = np.eye(E)[:1].repeat(T, 0)
    np.testing.assert_allclose(balance.batch(one, np.zeros((T, 1), int)), E, **CLOSE)


def test_losses_of_releases_by_name():
    counted = plain.counts(EVERY, E)
    want = [sum(P[r].sum(0) * counted) * E * 0.1 / (K * (R * T) ** 2) for r in range(R)]
    got = [balance.megatron(P[r], counted, R * T, K, 0.1) for r in range(R)]
    np.testing.assert_allclose(got, want, **CLOSE)
    np.testing.assert_allclose(sum(got), 0.1 * plain.load(ALL, EVERY), **CLOSE)
    np.testing.assert_allclose(balance.gshard(ALL, EVERY), plain.load(ALL, EVERY[:, :1]), **CLOSE)
    np.testing.assert_allclose(balance.layers_mixed(Z, K), plain.load(ALL, EVERY, False), **CLOSE)
    np.testing.assert_allclose(balance.adamoe_exp2(Z.reshape(-1, E), K, 3), plain.load(ALL, EVERY, False), **CLOSE)
    with pytest.raises(ValueError, match="use e.g. k=1"):
        balance.adamoe_exp2(ALL, 2, 1)
    mask = np.array([1, 1, 0, 1, 0, 1])
    keep = np.tile(mask, R) == 1
    np.testing.assert_allclose(
        balance.layers_mixed(Z, K, valid=mask), plain.load(ALL[keep], EVERY[keep], False), **CLOSE
    )


def test_moepp_and_adamoe_weigh_kinds_differently():
    eta = np.array([1, 1, 1, 0.75, 0.75])
    f = plain.counts(EVERY, E) / (R * T)
    want = sum(eta[i] * f[i] * ALL[:, i].mean() for i in range(E))
    np.testing.assert_allclose(balance.heterogeneous(ALL, EVERY, eta), want, **CLOSE)
    plain_loss = K / E * plain.load(ALL, EVERY)
    np.testing.assert_allclose(balance.heterogeneous(ALL, EVERY, np.ones(E)), plain_loss, **CLOSE)
    f = f / K
    f[3:] = f[3:].mean()
    np.testing.assert_allclose(balance.null_aware(ALL, EVERY, 3), plain.load(ALL, EVERY, f=f), **CLOSE)
    np.testing.assert_allclose(balance.null_fractions([0.2, 0.5, 0.3], 1), [0.2, 0.4, 0.4], **CLOSE)
    np.testing.assert_allclose(balance.null_aware(ALL, EVERY, E), plain.load(ALL, EVERY), **CLOSE)


def test_null_rows_learn_from_the_loss_alone():
    z = jnp.asarray(Z.reshape(-1, E))
    outputs = RNG.normal(size=(R * T, K))
    by_output = jax.grad(lambda z: jnp.sum(mixed.null_experts(z, K, 3).gate * outputs))(z)
    by_loss = jax.grad(lambda z: balance.null_aware(jax.nn.softmax(z), EVERY, 3))(z)
    assert np.abs(by_output[:, 3:]).max() == 0 and np.abs(by_loss[:, 3:]).max() > 1e-4


def test_devices_importance_and_load():
    probs, index = RNG.dirichlet(np.ones(6), 7), RNG.integers(0, 6, (7, 2))
    f = plain.counts(index, 6) * 6 / (7 * 2)
    want = sum(np.mean(f[d : d + 3]) * probs[:, d : d + 3].sum() / 7 for d in (0, 3))
    np.testing.assert_allclose(balance.device(probs, index, 2), want, **CLOSE)

    def squared(x):
        m = sum(x) / len(x)
        return sum((v - m) ** 2 for v in x) / (len(x) - 1) / (m**2 + 1e-10)

    np.testing.assert_allclose(balance.importance(probs), squared(probs.sum(0)), **CLOSE)
    chosen = np.sort(probs, 1)[:, ::-1][:, :2]
    cdf = np.vectorize(lambda v: 0.5 * (1 + math.erf(v / 2**0.5)))
    load = cdf((probs - chosen[:, -1:]) / (0.5 / 6)).sum(0)
    got = balance.importance_and_load(probs, chosen, 0.5)
    np.testing.assert_allclose(got, (squared(probs.sum(0)) + squared(load)) / 2, rtol=1e-12)


def test_z_loss_bias_and_violation():
    np.testing.assert_allclose(balance.z_loss(Z), plain.z_loss(Z.reshape(-1, E)), **CLOSE)
    counted, b = np.array([4.0, 2, 6, 4, 4]), RNG.normal(size=E)
    np.testing.assert_allclose(balance.bias_update(b, counted, 0.01), plain.bias_update(b, counted, 0.01), **CLOSE)
    np.testing.assert_allclose(balance.bias_update(b, counted, 0.01).sum(), b.sum(), rtol=1e-14)
    assert balance.bias_update(b, np.full(E, 7), 0.01).tolist() == b.tolist()
    assert balance.max_violation(counted) == 0.5 and balance.max_violation(np.zeros(3)) == 0
    np.testing.assert_allclose(balance.max_violation([[2, 4], [3, 3]]), [1 / 3, 0], **CLOSE)
    assert balance.imbalance(np.array([3, 1, 2, 4, 0, 2]), 3, 6) == 4 / 6
    load = balance.counts(routers.moge(RNG.normal(size=(9, 8)), 4, 4).index, 8)
    assert balance.imbalance(load, 4, 9) == 0


# ==================== BlockFFN ====================
def test_locality_is_a_cross_entropy_of_neighbours():
    z = RNG.normal(size=(7, E)) * 0.2
    np.testing.assert_allclose(sparsity.locality_loss(z, steepness=3.0), plain.locality(z, 3.0), rtol=1e-12)
    ids = np.array([1, 1, 1, 2, 2, 0, 0])
    pairs = sparsity.pairs_of(ids)
    assert pairs.tolist() == [True, True, False, True, False, False]
    want = np.mean([plain.locality(z[t : t + 2], 3.0) for t in (0, 1, 3)])
    np.testing.assert_allclose(sparsity.locality_loss(z, pairs, steepness=3.0), want, rtol=1e-12)
    assert sparsity.pairs_of(np.ones(3, int), [0, 1, 0]).tolist() == [True, False]
    gradient = jax.grad(lambda z: sparsity.locality_loss(z, steepness=3.0))(z)
    assert np.abs(gradient[-1]).min() > 1e-5  # the last token is a target alone: it is not detached
    steep = np.array([[40.0, -40], [40, -40]])
    assert sparsity.locality_loss(steep) < 1e-15


def test_chunks_count_experts_that_no_token_uses():
    gates, without = routers.relu(RNG.normal(size=(8, E)), RNG.uniform(size=E))
    p = sparsity.shares(without)
    np.testing.assert_allclose(p, [[v / (sum(row) + 1e-5) for v in row] for row in np.asarray(without)], **CLOSE)
    np.testing.assert_allclose(sparsity.chunk_loss(p, chunk=4), plain.chunks(np.asarray(p), 4), rtol=1e-12)
    valid = np.array([1, 1, 1, 0, 1, 1, 0, 0])
    masked = np.asarray(p) * valid[:, None]
    np.testing.assert_allclose(sparsity.chunk_loss(p, valid, chunk=4), plain.chunks(masked, 4), rtol=1e-12)
    np.testing.assert_allclose(sparsity.chunk_loss(p, chunk=1), np.mean(p) - 1e-5, rtol=1e-9)
    with pytest.raises(ValueError, match="chunk=3 does not divide 8"):
        sparsity.chunk_loss(p, chunk=3)
    active = np.asarray(gates)
    for w in (1, 2, 3, 8):
        np.testing.assert_allclose(sparsity.chunk_sparsity(gates, w), plain.chunk_sparsity(active, w), **CLOSE)
    np.testing.assert_allclose(sparsity.token_sparsity(gates), plain.chunk_sparsity(active, 1), **CLOSE)
    assert sparsity.chunk_sparsity(gates, 4) < sparsity.token_sparsity(gates)
    p = np.asarray(p)
    want = np.mean([-sum(v * np.log(v + 1e-5) for v in row) for row in p])
    np.testing.assert_allclose(sparsity.router_entropy(p), want, **CLOSE)
    active = (p > 0).sum(0)
    want = E * sum(p[:, i].mean() * active[i] / (active.sum() + 1e-5) for i in range(E))
    np.testing.assert_allclose(sparsity.released_balance(p), want, **CLOSE)


@pytest.mark.parametrize("warmup", [0, 5])
def test_the_schedule_follows_the_windows(warmup):
    losses = np.concatenate([RNG.uniform(1, 1.2, 30), np.linspace(1, 9, 50), np.linspace(9, 2, 40)])
    made = sparsity.Schedule(0.05, stable=20, window=10, warmup=warmup)
    want = plain.schedule(losses, 0.05, 20, 10, 1.025, 4.0, warmup)
    np.testing.assert_allclose(made.values(losses), want, rtol=1e-12)
    assert max(want) == pytest.approx(0.2) and len(set(want)) > 50
