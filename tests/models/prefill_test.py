"""Tokens that meet an empty decoding state attend to one another and leave the cache unread: the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from kernels import masks
from models.lm import LM
from models.spec import Spec

V, B, T, S = 17, 2, 20, 33


@pytest.mark.parametrize(
    "changes", [{}, {"num_kv_heads": 1, "attention": {"window": 5, "sinks": 2}}], ids=["", "window"]
)
@pytest.mark.parametrize("length", [3, T])  # few queries, which are a product of their own, and many
def test_an_empty_cache_need_not_be_read(changes, length, x64):
    config = base.get_config().model
    kinds = {"dtype": "float64", "param_dtype": "float64", "init": "fan_in"}
    config.update({"width": 16, "num_layers": 2, "num_heads": 2, **kinds, **changes})
    model = LM(Spec.from_config(config.to_dict(), vocab_size=V), rngs=nnx.Rngs(params=0))
    graphdef, params = nnx.split(model)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, V, (B, length)), jnp.int32)
    at = jnp.arange(length)[None]
    positions = jnp.where(at < jnp.asarray([[length], [length - 1]]), at, -1)  # the second row ends in padding

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, fresh):
        made = nnx.merge(graphdef, params).for_decoding()
        given = {"mask": masks.Causal(), "positions": positions, "state": made.init_state(B, S)}
        return made(tokens, **given, fresh=fresh)

    whole, alone = run(params, False), run(params, True)
    real = np.asarray(positions >= 0)
    # Sums of at most 33 weighted numbers of size 1 in float64, in another order, through two layers.
    np.testing.assert_allclose(np.asarray(alone.features)[real], np.asarray(whole.features)[real], rtol=0, atol=1e-12)
    for left, right in zip(jax.tree.leaves(alone.state), jax.tree.leaves(whole.state), strict=True):
        used = (slice(None),) * 2 + (slice(0, length - 1),) if left.ndim == 4 else ...
        np.testing.assert_allclose(left[used], right[used], rtol=0, atol=1e-12)
