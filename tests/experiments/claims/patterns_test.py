"""Kept mass of columns, query by query in float64, and what a contrast compares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.claims import patterns

T, N, K, H, V, W, ASKED = 200, 4, 2, 8, 40, 6, 5


@pytest.mark.usefixtures("x64")
def test_masses_are_those_of_each_query_alone():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(T, N, H)) * 2, rng.normal(size=(T, K, H))
    made = patterns._masses(jnp.asarray(q), jnp.asarray(k), jax.random.key(0), V, W, ASKED)
    asked = np.linspace(T // 2, T - patterns.LAST - 1, ASKED).astype(int)

    def row(n, t):
        x = np.exp(k[: t + 1, n * K // N] @ q[t, n] / np.sqrt(H))
        return np.pad(x / x.sum(), (0, T - 1 - t))

    mass = {way: [] for way in ("found", "first", "best", "oracle")}
    for n in range(N):
        rows = {t: row(n, t) for t in asked}
        far = sum(np.where(np.arange(T) <= t - W, p, 0) for t, p in rows.items())
        late = sum(row(n, t) for t in range(T - patterns.LAST, T))
        late[: patterns.FORCED] = np.inf
        columns = {"found": np.argsort(-late)[:V], "first": np.arange(V), "best": np.argsort(-far)[:V]}
        for t, p in rows.items():
            near = set(range(t - W + 1, t + 1))
            for way, chosen in columns.items():
                mass[way].append(sum(p[j] for j in near | set(chosen.tolist())))
            mass["oracle"].append(np.sort(p)[-(V + W) :].sum())
    for way, values in mass.items():
        np.testing.assert_allclose(made[way], np.mean(values), atol=1e-12, err_msg=way)
    assert made["oracle"] > made["best"] > made["random"] > 0


def test_a_contrast_is_of_mass_or_of_doublings():
    assert patterns.differences("mass", [0.5, 0.25], [0.25, 0.5]) == [0.25, -0.25]
    assert patterns.differences("seconds", [1.0, 2.0], [4.0, 1.0]) == [2.0, -1.0]
