"""Any-subset models: the two streams of a row are the plain loss, blind to later ranks, and ASSD draws their law."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.decoding.canvas import assd
from models.objectives import any_subset
from models.objectives.any_subset import AnySubset
from tests.models import tiny_laws
from tests.models.objectives.diffusion_test import B, T, V, batch, corrupted, jitted, make

pytestmark = pytest.mark.usefixtures("x64")


def test_row_masks_are_those_of_the_two_streams():
    order = jnp.asarray([[1, 3, 0, 2, 4], [4, 3, 2, 1, 0]])
    rank, prompt = any_subset.ranks(order), jnp.asarray([2, 0])
    content, query = any_subset.stream_masks(order, prompt)
    square = any_subset.row_mask(rank, prompt, rank).dense(10, 10)[:, 0]
    alone = np.broadcast_to(np.eye(5, dtype=bool), (2, 5, 5))  # A query sees itself, which knows its place only.
    want = np.block([[alone, np.asarray(query)], [np.zeros_like(alone), np.asarray(content)]])
    np.testing.assert_array_equal(square, want)


def test_loss_is_the_chain_of_conditionals_that_cannot_see_later_ranks():
    """One pass over a row equals one call a rank in which everything of that rank and above is another token."""
    model, objective = make(), AnySubset(mask_id=V, rate_min=0.4, rate_max=0.7)
    noised = corrupted(objective, batch())
    x, rank, prompt = noised["tokens"], noised["rank"], noised["prompt_length"]
    targets = noised["scored"]
    assert (targets == (rank >= prompt[:, None])).all() and not targets[~batch()["scored"]].any() and (prompt > 5).all()

    def logits(model, noised, seen):
        features, *_ = objective.read(model, noised, noised["rank"], noised["prompt_length"], seen)
        return (features @ model.head_weights().T)[..., :V]

    graphdef, params = nnx.split(model)
    call = jax.jit(lambda params, *args: logits(nnx.merge(graphdef, params), *args))
    want = 0.0
    for n in range(T):
        hidden = noised | {"tokens": jnp.where(rank < n, x, (x + 1 + n) % V)}
        out = call(params, hidden, jnp.full((B, T), n))
        want += any_subset.token_loss(out, x, targets & (rank == n), V).sum()
    loss, means, _ = jitted(model, objective.loss, noised, None)
    np.testing.assert_allclose([loss, means["nll"].total], [want, want], rtol=1e-12)
    assert any_subset.token_loss(call(params, noised, rank), x, ~targets & (x >= 0), V).sum() > 0  # A prompt is free.


def test_the_likelihood_is_exact_and_speculative_decoding_draws_it():
    """exp(-nll) of all strings sums to 1, and drafts that are checked follow it, in fewer calls than tokens."""
    size, length, draws = 2, 4, 60_000
    model, objective = make(size), AnySubset(mask_id=size)
    strings = jnp.asarray(tiny_laws.states(size, length))
    rows = {"tokens": strings, "scored": jnp.ones(strings.shape, bool)}
    law = np.exp(-np.asarray(jitted(model, objective.row_nll, rows, None)))
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-12)

    def draw(model, key):
        canvas = jnp.full((draws, length), size)
        sample = functools.partial(assd.sample, objective.conditionals(model, canvas), key, two_stream=True)
        return sample(order=jnp.arange(length), prompt=canvas, draft=3, batch=draws, mask_id=size)

    tokens, calls = map(np.asarray, jitted(model, draw, jax.random.key(0)))
    statistic, limit = tiny_laws.chi_square(tiny_laws.histogram(tokens, size), law.reshape((size,) * length))
    assert statistic < limit and tiny_laws.power(size**length, draws) > 0.99
    assert (calls <= length).all() and calls.min() == 3  # Drafts of ranks 0 to 2 and their check, then the last.
