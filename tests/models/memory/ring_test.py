"""What the last queries said, kept in rings: bits and rows equal loops over queries."""

import jax
import jax.numpy as jnp
import numpy as np

from models.mixers.memory import ring

WINDOW, K, S, G, WORDS = 40, 2, 3, 2, 2  # 40 bits take a word and a part of the next


def test_votes_stay_under_the_bit_of_their_query():
    """`put_votes` of passes of one query and of several, some of them empty, against a table `[query, K, G, S]`."""
    rng, put = np.random.default_rng(0), jax.jit(ring.put_votes, static_argnums=4)
    bits, said, newest = jnp.zeros((K, S, G, WORDS), jnp.uint32), {}, -1
    for count, room in ((7, 8), *[(1, 1)] * 30, (5, 8), (0, 1), *[(1, 1)] * 20, (50, 50), (1, 1)):
        votes = rng.integers(0, 2, (K, G, room, S))
        query = np.where(np.arange(room) < count, newest + 1 + np.arange(room), -1)
        newest += count
        bits = put(bits, jnp.asarray(votes), jnp.asarray(query), jnp.asarray(newest), WINDOW)
        said |= {int(q): votes[:, :, t] for t, q in enumerate(query) if q >= 0}
        want = np.zeros((K, S, G, WORDS), np.uint32)
        for q in range(max(0, newest - WINDOW + 1), newest + 1):
            word, bit = divmod(q % WINDOW, 32)
            want[..., word] |= said[q].transpose(0, 2, 1).astype(np.uint32) << np.uint32(bit)
        np.testing.assert_array_equal(bits, want)
