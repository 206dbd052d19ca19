"""Attention over a cache: values by hand, and keys that keep their turns, each of which reads one form of a query."""

import jax.numpy as jnp
import numpy as np
import pytest

from kernels import masks
from kernels.attention.cached import attend_cache, attend_products, attend_turned

B, T, N, K, H, S, P = 2, 2, 4, 2, 3, 7, 3


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(B, T, N, P, H))
    k, v = rng.normal(size=(2, B, S, K, H))
    return q, k, v, rng.integers(0, P, (B, S)), rng.normal(size=N)


def by_hand(q, k, v, turn, seen, softcap, sinks):
    (B, T, N), K = q.shape[:3], k.shape[2]
    out = np.zeros((B, T, N, H))
    for b, t, n in np.ndindex(B, T, N):
        x = [q[b, t, n, turn[b, s]] @ k[b, s, n // (N // K)] / np.sqrt(H) for s in range(S) if seen[b, t, s]]
        x = x if softcap is None else [softcap * np.tanh(each / softcap) for each in x]
        total = sum(np.exp(x)) + (0 if sinks is None else np.exp(sinks[n]))
        values = [v[b, s, n // (N // K)] for s in range(S) if seen[b, t, s]]
        out[b, t, n] = sum(np.exp(each) / total * value for each, value in zip(x, values, strict=True))
    return out


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("more", [{}, {"softcap": 0.7}, {"sinks": True}])
def test_each_key_reads_the_form_of_its_turn(more):
    """Sums of seven terms of order 1 in float64: far below 1e-13."""
    q, k, v, turn, sink = drawn()
    at = np.array([[3, 4], [5, 6]])
    rule = masks.Positions(jnp.asarray(at), jnp.arange(S)[None], rule=masks.Causal())
    seen = np.arange(S) <= at[..., None]
    more = more | ({"sinks": jnp.asarray(sink)} if "sinks" in more else {})
    got = attend_turned(jnp.asarray(q.reshape(B, T, N, P * H)), *map(jnp.asarray, (k, v, turn)), mask=rule, **more)
    want = by_hand(q, k, v, turn, seen, more.get("softcap"), sink if "sinks" in more else None)
    np.testing.assert_allclose(got, want, atol=1e-13)
    alike = np.broadcast_to(q[:, :, :, :1], q.shape).reshape(B, T, N, P * H)
    one = attend_cache(jnp.asarray(q[..., 0, :]), jnp.asarray(k), jnp.asarray(v), mask=rule, **more)
    np.testing.assert_allclose(
        attend_turned(jnp.asarray(alike), *map(jnp.asarray, (k, v, turn)), mask=rule, **more), one, atol=1e-13
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("rows", [1, B])
def test_only_the_first_keys_meet_the_first_form(first, rows):
    """With keys first (one row) and keys last."""
    q, k, v, turn, _ = (x[:rows] for x in drawn())
    q, turn = q[:, :1], np.where(np.arange(S) < first, 0, np.maximum(turn, 1))
    seen = np.ones((rows, 1, S), bool)
    given = jnp.asarray(q.reshape(rows, 1, N, P * H)), *map(jnp.asarray, (k, v, turn))
    got = attend_turned(*given, mask=masks.Dense(jnp.asarray(seen)), first=first)
    np.testing.assert_allclose(got, by_hand(q, k, v, turn, seen, None, None), atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("more", [{}, {"softcap": 0.7}, {"sinks": True}], ids=str)
@pytest.mark.parametrize("sizes", [(2, 3, 4, 2), (3, 1, 2, 2), (1, 1, 2, 2), (1, 2, 6, 2), (2, 1, 4, 2)], ids=str)
def test_values_over_a_cache(sizes, more):
    """With keys first and keys last: rows of unlike lengths, heads that share keys, several queries a row."""
    B, T, N, K = sizes
    rng = np.random.default_rng(1)
    q, sink = rng.normal(size=(B, T, N, 1, H)), rng.normal(size=N)
    k, v = rng.normal(size=(2, B, S, K, H))
    at = np.arange(T) + np.array([3, 1, 2])[:B, None]
    seen = np.arange(S) <= at[..., None]
    rule = masks.Positions(jnp.asarray(at), jnp.arange(S)[None], rule=masks.Causal())
    want = by_hand(q, k, v, np.zeros((B, S), int), seen, more.get("softcap"), sink if "sinks" in more else None)
    more = more | ({"sinks": jnp.asarray(sink)} if "sinks" in more else {})
    got = attend_cache(jnp.asarray(q[..., 0, :]), jnp.asarray(k), jnp.asarray(v), mask=rule, **more)
    np.testing.assert_allclose(got, want, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("more", [{}, {"softcap": 0.7}, {"sinks": True}], ids=str)
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2)], ids=str)
def test_products_with_keys_are_added_up(sizes, more):
    """A query's numbers times a key's, in the place of both, divided by the root of the query's width."""
    B, N, K = sizes
    rng = np.random.default_rng(2)
    q, sink = rng.normal(size=(B, 1, N, 1, H)), rng.normal(size=N)
    k, v = rng.normal(size=(2, B, S, K, H))
    at = np.array([[4], [2]])[:B]
    seen = np.arange(S) <= at[..., None]
    rule = masks.Positions(jnp.asarray(at), jnp.arange(S)[None], rule=masks.Causal())
    want = by_hand(q, k, v, np.zeros((B, S), int), seen, more.get("softcap"), sink if "sinks" in more else None)
    more = more | ({"sinks": jnp.asarray(sink)} if "sinks" in more else {})
    products = q[..., 0, :] * k.repeat(N // K, axis=2)
    halved = np.stack([products[..., 0] + products[..., 1], products[..., 2]], axis=-1)  # As pairs that are added.
    got = attend_products(*map(jnp.asarray, (q[..., 0, :], halved, v)), mask=rule, **more)
    np.testing.assert_allclose(got, want, atol=1e-13)
