"""Insertion models: the loss in the loop is the plain one, and evaluation bounds the law that sampling has."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.canvas import insertion as sampling
from models.objectives import insertion as plain
from models.objectives.insertion import Insertion
from tests.models.objectives.diffusion_test import V, batch, corrupted, jitted
from tests.models.objectives.diffusion_test import make as make_with_one_more

pytestmark = pytest.mark.usefixtures("x64")


def make(size=V):
    """A float64 model of `size` tokens, the start and the padding."""
    return make_with_one_more(size + 1)


@pytest.mark.parametrize("weighting", plain.WEIGHTINGS)
def test_loss_is_the_plain_one(weighting):
    model, objective, made = make(), Insertion(mask_id=V, weighting=weighting), batch()
    noised = corrupted(objective, made)
    dropped, x, held = noised["dropped"], noised["tokens"], made["segment_ids"] != 0
    assert dropped.any() and not dropped[~made["scored"]].any()
    np.testing.assert_array_equal(noised["count"], (held & ~dropped).sum(-1))
    target = plain.target(jnp.where(held, x, 0), dropped, V)
    weight = made["scored"].sum(-1) + 1.0 if weighting == "length" else jnp.full(len(x), x.shape[1] + 1.0)
    full = plain.Deletion(noised["noised"], noised["count"], target, ~dropped.any(-1), weight)
    slots, stop = jitted(model, objective.predict, full.z, full.count)
    want = plain.token_loss(slots, full).sum() + plain.stop_loss(stop, full).sum()
    loss, means, _ = jitted(model, objective.loss, noised, None)
    np.testing.assert_allclose([loss, means["nll"].total], [want, want], rtol=1e-6)  # The head's logits are float32.


def test_evaluation_estimates_a_bound_of_the_sampled_law():
    size, length, rows = 2, 3, 3000
    model, objective = make(size), Insertion(mask_id=size, draws=2)

    def predict(z, count):
        return jitted(model, objective.predict, z, count)

    law = sampling.exact_law(predict, length=length, vocab_size=size)
    np.testing.assert_allclose(sum(law.values()), 1, rtol=1e-6)
    for x in ([1, 0], [1, 1]):
        keep = np.array(list(itertools.product([False, True], repeat=2)))
        z = np.array([[size, *np.array(x)[k], *[size + 1] * (length - k.sum())] for k in keep])
        target = plain.target(jnp.tile(jnp.asarray(x), (4, 1)), jnp.asarray(~keep), size)
        target = jnp.pad(target, ((0, 0), (0, length - 2), (0, 0)))
        chance = np.array([1 / math.comb(2, k.sum()) for k in keep])  # Times 1 / 3 for the number, times 3.
        full = plain.Deletion(z, jnp.asarray(keep.sum(-1)), target, jnp.asarray(keep.all(-1)), jnp.asarray(chance))
        slots, stop = predict(jnp.asarray(z), full.count)
        bound = plain.token_loss(slots, full).sum() + plain.stop_loss(stop, full).sum() - math.log(2)
        exact = -math.log(law[tuple(x)])
        assert exact <= bound < exact + 0.5
        made = {"tokens": jnp.tile(jnp.asarray([*x, 0]), (rows, 1)), "scored": jnp.tile(jnp.arange(3) < 2, (rows, 1))}
        made["segment_ids"] = made["scored"].astype(int)
        draws = np.asarray(jitted(model, objective.row_nll, made, jax.random.key(3)))
        assert abs(draws.mean() - bound) < 4.5 * draws.std() / rows**0.5 and draws.std() > 1e-3
