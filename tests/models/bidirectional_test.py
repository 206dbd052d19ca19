"""Mixers under a mask that is not causal: those that say so see both ways within a document, others refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kernels import masks
from models.mixers import MIXERS, Context
from tests import parts
from tests.models.lm_test import T, make, tokens

BOTH_WAYS = [name for name, mixer in MIXERS.items() if mixer.bidirectional]
FULL = masks.Full()
# Two documents of one length in a row.
POSITIONS = jnp.tile(jnp.arange(T // 2), 2)[None]
SEGMENTS = jnp.repeat(jnp.asarray([1, 2]), T // 2)[None]


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_every_token_of_a_document_is_seen_and_no_other(name):
    """The gradient of the features of one token, the first of a document or one within it, to all embeddings."""
    model = make(**parts.chosen("mixer", name), num_layers=1)
    graphdef, params = nnx.split(model)
    x = model.embedding[...][tokens()[:1]]

    @jax.jit
    def sensitivity(params, at):
        def features(x):
            y, *_ = nnx.merge(graphdef, params).stack(x, Context(POSITIONS, SEGMENTS, FULL))
            return jnp.sum(y[:, at] ** 2)

        return jnp.abs(jax.grad(features)(x)).sum((0, 2))

    for at in (0, T // 2 + 3):
        g = np.asarray(sensitivity(params, at))
        own = np.asarray(SEGMENTS[0] == SEGMENTS[0, at])
        assert np.all(g[own] > 0) and np.all(g[~own] == 0), at


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_packing_equals_each_document_alone(name):
    graphdef, params = nnx.split(make(**parts.chosen("mixer", name), num_layers=1))
    run = jax.jit(lambda x, **kw: nnx.merge(graphdef, params)(x, mask=FULL, **kw).features)
    x, cut = tokens()[:1], T // 2
    together = run(x, positions=POSITIONS, segment_ids=SEGMENTS)
    alone = jnp.concatenate([run(x[:, :cut]), run(x[:, cut:])], axis=1)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MIXERS if name not in BOTH_WAYS])
def test_a_mixer_that_looks_back_only_refuses_another_mask(name):
    model = nnx.eval_shape(lambda: make(**parts.chosen("mixer", name), num_layers=1))
    with pytest.raises(ValueError, match=f"model.mixer='{name}' is causal and cannot follow the mask"):
        nnx.eval_shape(lambda model: model(tokens(), mask=FULL), model)
