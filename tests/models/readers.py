"""What holds of every kind of model that reads tokens as groups or segments, by its passes alone."""

import jax.numpy as jnp
import numpy as np


def no_token_sees_a_later_one(run, params, batch):
    """A change of token t of one row of 19 moves what stands at t, and nothing before it."""
    want = run(params, batch).features
    for t in range(1, 19):
        tokens = batch["tokens"].copy()
        tokens[0, t] = 46 if tokens[0, t] != 46 else 120
        got = run(params, batch | {"tokens": tokens}).features
        np.testing.assert_array_equal(got[:, :t], want[:, :t])
        assert np.abs(got[:, t] - want[:, t]).max() > 1e-6


def pieces_are_the_whole(read, params, state, x, want):
    """Two rows x `[2, T]`, read in pieces of unequal lengths and token by token, padded to one width, are `want`."""
    done = np.zeros(2, int)
    for width, *used in ((6, 6, 3), (6, 2, 5), (1, 1, 0), *[(1, 1, 1)] * 8, (1, 0, 1)):
        at = done[:, None] + np.arange(width)
        real = np.arange(width) < np.array(used)[:, None]
        piece = np.where(real, np.take_along_axis(x, np.minimum(at, x.shape[1] - 1), axis=1), 258)
        out = read(params, jnp.asarray(piece), jnp.asarray(np.where(real, at, -1)), state)
        state = out.state
        for row in range(2):
            got = out.features[row, : used[row]]
            np.testing.assert_allclose(got, want[row, done[row] : done[row] + used[row]], rtol=0, atol=1e-12)
        done += used
