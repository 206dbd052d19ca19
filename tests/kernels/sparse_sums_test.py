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


def test_key_blocks_are_chosen_by_means_of_what_a_row_has():
    """The last block of a row is averaged over its own tokens, however many places its tile has."""
    B, T, N, K, H, block, count = 4, 22, 24, 2, 3, 4, 2
    lengths = (22, 17, 13, 6)  # the last blocks have 2, 1, 1 and 2 tokens
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(B, T, N, H)), rng.normal(size=(B, T, K, H))
    heads = sparse.Heads.of([sparse.Pattern("block_sparse", count, block)] * N, T)
    tiles = np.asarray(sparse.find(jnp.asarray(q), jnp.asarray(k), heads, jnp.asarray(lengths)).tiles)
    n, differ = -(-T // block), 0
    assert tiles.shape == (B, N, n, count)
    for b, length in enumerate(lengths):
        for head in range(N):
            for a in range(-(-length // block)):
                rows = q[b, a * block : min(length, (a + 1) * block), head].mean(0)
                score = []
                for c in range(a + 1):
                    keys = k[b, c * block : min(length, (c + 1) * block), head // (N // K)]
                    score.append(rows @ keys.mean(0))
                best = sorted(np.argsort(score)[::-1][:count].tolist())
                assert [x for x in tiles[b, head, a] if x < n] == best
                # What a mean over a whole block of the last keys would choose is another thing, somewhere.
                score[-1] *= min(length - a * block, block) / block
                differ += length < T and best != sorted(np.argsort(score)[::-1][:count].tolist())
    assert differ > 3
