"""Any-subset autoregression: orders, masks, and the two streams' blindness to what comes later."""

import jax
import jax.numpy as jnp
import numpy as np

from models.objectives import any_subset
from tests.models import tiny_laws


def test_orders_and_masks():
    targets = np.array([1, 0, 1, 0, 1], bool)
    order = any_subset.lattice_order(targets)
    assert order.tolist() == [1, 3, 0, 2, 4] and any_subset.ranks(order).tolist() == [2, 0, 3, 1, 4]
    content, query = any_subset.stream_masks(order, 2)
    rank = np.array([2, 0, 3, 1, 4])
    for i in range(5):
        for j in range(5):
            assert content[i, j] == (rank[j] <= rank[i] or (rank[i] < 2 and rank[j] < 2))
            assert query[i, j] == (rank[j] < rank[i])
    batched = any_subset.stream_masks(jnp.stack([order, order]), jnp.array([2, 3]))[0]
    assert batched.shape == (2, 5, 5) and (batched[0] == content).all() and (batched[1] != content).any()


def two_stream(tokens, order, prompt_length, depth=3, width=6):
    """A small two-stream attention network in numpy: query logits [T, width]."""
    rng = np.random.default_rng(0)
    embed, place = rng.normal(size=(9, width)), rng.normal(size=(9, width))
    content, query = (np.asarray(m) for m in any_subset.stream_masks(order, prompt_length))
    h, g = embed[tokens] + place[: len(tokens)], place[: len(tokens)].copy()
    for _ in range(depth):
        wq, wk, wv = (rng.normal(size=(width, width)) for _ in range(3))

        def attend(q, mask, h=h, wq=wq, wk=wk, wv=wv):
            e = np.where(mask, np.exp(np.clip((q @ wq) @ (h @ wk).T / width, -20, 20)), 0)
            return np.tanh(e / (1 + e.sum(-1, keepdims=True)) @ (h @ wv))  # the 1 is a start token for empty rows

        h, g = h + attend(h, content), g + attend(g, query)
    return g


def test_query_logits_ignore_their_own_and_later_ranks():
    """Proof obligation (a) of section 11, at any depth."""
    tokens, order = np.arange(6), np.array([4, 1, 0, 5, 2, 3])
    base, rank = two_stream(tokens, order, 2), np.argsort(order)
    for changed in range(6):
        other = tokens.copy()
        other[changed] = 8
        moved = (two_stream(other, order, 2) != base).any(-1)
        for l in range(6):
            if rank[l] >= 2:  # targets; the prompt's queries are not read
                assert moved[l] == (rank[changed] < rank[l])


def test_nll_is_the_order_law(x64):
    table = tiny_laws.tab_table(3, 4, seed=4)
    denoise, x = tiny_laws.denoiser(table), tiny_laws.states(3, 4)
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        law = tiny_laws.order_law(table, order)
        np.testing.assert_allclose(any_subset.nll_exact(denoise, x, order, 3), -np.log(law).ravel(), atol=1e-10)
    # With a prompt of one token: conditional on it.
    first = law.sum((0, 1, 3))
    got = any_subset.nll_exact(denoise, x, [2, 0, 3, 1], 3, prompt_length=1)
    np.testing.assert_allclose(got, -np.log(law / first[None, None, :, None]).ravel(), atol=1e-10)


def test_corrupt_draws_the_promised_share():
    x = jnp.zeros((512, 40), int)
    frozen = jnp.zeros_like(x, bool).at[:, :8].set(True)
    split = jax.jit(lambda k: any_subset.corrupt(k, x, (0.25, 0.5), frozen))(jax.random.key(0))
    targets = np.asarray(split.weight) > 0
    assert not targets[:, :8].any() and targets.sum(1).min() >= 8 and targets.sum(1).max() <= 16
    assert (targets.sum(1) + np.asarray(split.prompt_length) == 40).all()
    np.testing.assert_array_equal(split.order, np.argsort(targets, -1, kind="stable"))
    assert abs(targets[:, 8:].mean() - 0.375) < 0.02
    assert any_subset.target_rate(0.0) == (0.15, 0.15)
    np.testing.assert_allclose(any_subset.target_rate(1.0), (0.85, 0.99))
    np.testing.assert_allclose(any_subset.target_rate(0.5), (0.5, 0.57))
    logits = jnp.zeros((512, 40, 5))
    np.testing.assert_allclose(
        any_subset.token_loss(logits, x, split.weight, 4).sum(), targets.sum() * np.log(4), rtol=1e-5
    )
