"""Categorical draws: exact check 18, keys that belong to requests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding import keys as key_scheme
from tests import environment

compiled = functools.partial(jax.jit, compiler_options=environment.FAST)


def test_gumbel_tail_is_not_cut():
    """Check 18 in small: the largest of n is Gumbel(log n), P(max of 2^23 <= 13.1) = exp(-2^23 e^-13.1) = 4e-8."""
    value = compiled(lambda k: key_scheme.gumbel(k, (1 << 21,)).max())
    top = max(float(value(jax.random.key(i))) for i in range(4))
    assert top > 13.1
    # How often the noise alone beats the value that a class of probability 1e-6 must beat.
    n, p = 1 << 22, 1e-6
    rare = compiled(lambda k: (key_scheme.gumbel(k, (n,)) > -jnp.log(-jnp.log1p(-p))).sum())
    count = sum(int(rare(jax.random.key(10 + i))) for i in range(8))
    mean = 8 * n * p
    assert abs(count - mean) < 4.5 * mean**0.5


@pytest.mark.slow
def test_largest_gumbel_over_two_to_the_26():
    """Check 18 in full: P(max <= 16.7) = exp(-2^26 e^-16.7) = 2.4% for a fresh key; the key is fixed."""
    keys = jax.random.split(jax.random.key(0), 64)
    top = compiled(lambda: jnp.max(jax.lax.map(lambda k: key_scheme.gumbel(k, (1 << 20,)).max(), keys)))()
    assert float(top) > 16.7
    low = compiled(lambda: jnp.max(jax.lax.map(lambda k: jax.random.gumbel(k, (1 << 20,), mode="low").max(), keys)))()
    assert float(low) < 15.943


def test_bfloat16_logits_keep_small_classes():
    """Check 18, second half: p = 1e-3 within 5% over 4e6 draws (the standard error is 1.6%)."""
    logits = jnp.log(jnp.array([0.999, 0.001])).astype(jnp.bfloat16)
    p = float(jax.nn.softmax(logits.astype(jnp.float32))[1])
    draw = compiled(lambda k: (key_scheme.sample(k[None], jnp.broadcast_to(logits, (1, 1 << 20, 2))) == 1).sum())
    count = sum(int(draw(jax.random.key(i))) for i in range(4))
    assert abs(count / (4 * (1 << 20)) / p - 1) < 0.05


def test_rows_follow_their_request_not_their_slot():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 7)).repeat(3, 0))

    def draw(requests):
        keys = key_scheme.row_keys(jax.random.key(4), len(requests), jnp.array(requests))
        return np.asarray(key_scheme.sample(key_scheme.fold(keys, 2, key_scheme.TOKEN), logits[: len(requests)]))

    a, b = draw([3, 9, 4]), draw([9, 3])
    assert (a[0] == b[1]).all() and (a[1] == b[0]).all() and (a[0] != a[1]).any()


def test_purposes_and_steps_are_independent():
    keys = key_scheme.row_keys(jax.random.key(0), 2)
    seen = {
        float(key_scheme.uniform(key_scheme.fold(keys, when, purpose))[row])
        for when in (0, 1)
        for purpose in (key_scheme.TOKEN, key_scheme.REVEAL, key_scheme.PLACE)
        for row in (0, 1)
    }
    assert len(seen) == 12


def test_temperature_zero_is_argmax():
    logits = jnp.array([[[0.0, 2.0, 1.0]]])
    assert int(key_scheme.sample(key_scheme.row_keys(jax.random.key(0), 1), logits, 0.0)[0, 0]) == 1
