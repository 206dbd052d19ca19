"""Score samplers whose scores are too small to reveal everything in time: no mask is left at the end all the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.canvas import diffusion

V = 3


@pytest.mark.parametrize("method", ["analytic", "euler"])
def test_the_last_step_reveals_what_is_left(method):
    """Scores of 1e-3 to each token: by the steps alone nearly all would stay masked; what is given stays given."""
    log_score = lambda z, t: jnp.full((*z.shape, V), jnp.log(1e-3))  # noqa: E731
    init = jnp.where(jnp.arange(5) == 2, 1, V)
    sample = functools.partial(diffusion.sample, log_score, batch=64, length=5, vocab_size=V, steps=2, method=method)
    tokens, calls = map(np.asarray, jax.jit(lambda key: sample(key, init=init))(jax.random.key(0)))
    assert (tokens < V).all() and (tokens[:, 2] == 1).all() and (calls == 2).all()
    assert np.bincount(tokens[:, [0, 1, 3, 4]].ravel(), minlength=V).min() > 50  # 256 draws of equal shares
