"""What sparse prefill's lists are found from, against loops over a row's own tokens, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import sparse

pytestmark = pytest.mark.usefixtures("x64")
T, N, K, H, R = 11, 4, 2, 3, 5
LENGTH = (7, 11, 3)  # One row is shorter than the rows that are looked at.


def drawn():
    rng = np.random.default_rng(0)
    return rng.normal(size=(len(LENGTH), T, N, H)), rng.normal(size=(len(LENGTH), T, K, H))


def test_last_rows_and_their_diagonals_are_those_of_each_row_alone():
    q, k = drawn()
    p = sparse.last_rows(jnp.asarray(q), jnp.asarray(k), jnp.asarray(LENGTH), R)
    sums = sparse.diagonal_sums(p, jnp.asarray(LENGTH))
    for b, count in enumerate(LENGTH):
        for n in range(N):
            rows, by_distance = np.zeros((R, T)), np.zeros(T)
            for r in range(R):
                at = count - R + r
                if at < 0:
                    continue
                score = np.exp(k[b, : at + 1, n // (N // K)] @ q[b, at, n] / np.sqrt(H))
                rows[r, : at + 1] = score / score.sum()
                for j in range(at + 1):
                    by_distance[at - j] += rows[r, j]
            # Sums of a dozen numbers below one.
            np.testing.assert_allclose(p[b, n], rows, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(sums[b, n], by_distance, rtol=1e-12, atol=1e-14)
