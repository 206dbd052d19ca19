"""Diffusion objectives of an LM: each number is that of the plain functions with the model as their denoiser."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from kernels import masks
from models import objectives
from models.lm import LM
from models.objectives import block_diffusion as bd
from models.objectives import masked_diffusion as md
from models.objectives.diffusion import BlockDiffusion, MaskedDiffusion
from models.spec import Spec

pytestmark = pytest.mark.usefixtures("x64")
V, B, T = 10, 3, 12


@functools.cache
def make(size=V, layers=2, seed=0):
    """A float64 model of `size` tokens and a mask, with columns beyond them as a padded vocabulary has."""
    config = base.get_config().model
    config.update({"width": 16, "num_layers": layers, "num_heads": 2, "init": "fan_in"})
    config.update({"dtype": "float64", "param_dtype": "float64", "unroll": 1, "vocab_multiple": 8})
    return LM(Spec.from_config(config.to_dict(), vocab_size=size + 1), rngs=nnx.Rngs(params=seed))


def batch(length=T, size=V, rows=B):
    """Rows of two documents with a start that is given, and padding at the end of the first row."""
    rng = np.random.default_rng(0)
    segments = np.where(np.arange(length) < 5, 1, 2) * np.ones((rows, 1), int)
    segments[0, -3:] = 0
    valid = (segments != 0) & (np.arange(length) % 5 != 0)
    tokens, positions = rng.integers(0, size, (rows, length)), np.where(np.arange(length) < 5, 0, -5)
    made = {"tokens": tokens, "targets": tokens, "scored": valid, "segment_ids": segments}
    return {k: jnp.asarray(v) for k, v in (made | {"positions": positions + np.arange(length) + 0 * tokens}).items()}


def denoiser(model, mask, batch, size=V):
    """The model as a plain function of tokens and times, in float64."""
    kw = {"positions": batch["positions"], "segment_ids": batch["segment_ids"]}
    return jax.jit(lambda z, t: (model(z, mask=mask, **kw)[0] @ model.head_weights().T)[..., :size])


def corrupted(objective, made):
    return jax.jit(objective.corrupt)(made, jax.random.key(1))


def jitted(model, function, *args):
    """`function(model, *args)` compiled."""
    graphdef, params = nnx.split(model)
    return jax.jit(lambda params, *args: function(nnx.merge(graphdef, params), *args))(params, *args)


@pytest.mark.parametrize(
    "options", [{}, {"masking": "fixed_count"}, {"schedule": "cosine_md4", "steps": 7, "times": "iid"}], ids=str
)
def test_masked_loss_is_the_plain_one(options):
    model, objective = make(), MaskedDiffusion(mask_id=V, **options)
    noised = corrupted(objective, batch())
    z, weight = noised["noised"], noised["weight"]
    assert ((weight > 0) == (z == V)).all() and not (z == V)[~noised["scored"]].any()
    logits = denoiser(model, masks.Full(), noised)(z, None)
    want = md.corrupted_loss(logits, noised["tokens"], md.Corruption(z, None, weight), V).sum()
    loss, means, _ = jitted(model, objective.loss, noised, jax.random.key(0))
    np.testing.assert_allclose([loss, means["nll"].total], [want, want], rtol=1e-12)


@pytest.mark.parametrize("block", [1, 3, T])
def test_block_loss_is_the_loop_over_blocks(block):
    """The doubled pass equals one pass a block over [clean prefix, noised block, masks] under what generation sees."""
    model, objective = make(), BlockDiffusion(mask_id=V, block=block, t_min=0.3, t_max=0.9)
    noised = corrupted(objective, batch())
    z, x, weight = noised["noised"], noised["tokens"], noised["weight"]
    assert (weight > 0).any() and not (z == V)[~noised["scored"]].any()
    denoise = denoiser(model, objective.mask, noised)
    logits = bd.blockwise_logits(denoise, z, x, jnp.zeros(x.shape), block, V)
    want = md.corrupted_loss(logits, x, md.Corruption(z, None, weight), V).sum()
    np.testing.assert_allclose(jitted(model, objective.loss, noised, None)[0], want, rtol=1e-12)
    if block == T:
        whole = jitted(model, MaskedDiffusion(mask_id=V).loss, noised, None)[0]
        np.testing.assert_allclose(whole, want, rtol=1e-12)


def test_documents_of_a_row_do_not_see_each_other():
    """The loss of the first document does not move, to the last bit, when the second is another one."""
    model, made = make(), batch()
    first = made["segment_ids"] == 1
    for objective in (MaskedDiffusion(mask_id=V), BlockDiffusion(mask_id=V, block=3)):
        noised = corrupted(objective, made)
        noised["weight"] = jnp.where(first, noised["weight"], 0)
        other = {k: jnp.where(first, noised[k], (noised[k] + 1) % V) for k in ("tokens", "noised")}
        values = [jitted(model, objective.loss, n, None)[0] for n in (noised, noised | other)]
        assert values[0] == values[1] > 0


def test_evaluation_of_block_one_is_the_exact_likelihood():
    model, objective, made = make(3), BlockDiffusion(mask_id=3, block=1, draws=2), batch(4, 3)
    made |= {"scored": jnp.ones((B, 4), bool), "segment_ids": jnp.ones((B, 4), int), "positions": jnp.arange(4)[None]}
    want = bd.nelbo_exact(denoiser_of_any_batch(model, objective.mask), made["tokens"], 1, 3)
    np.testing.assert_allclose(jitted(model, objective.row_nll, made, jax.random.key(0)), want, rtol=1e-12)
    assert objective.bound == "=" and BlockDiffusion(mask_id=3, block=2).bound == MaskedDiffusion.bound == "<="


def denoiser_of_any_batch(model, mask):
    return jax.jit(lambda z, t: (model(z, mask=mask)[0] @ model.head_weights().T)[..., :3])


@pytest.mark.parametrize("block", [None, 2])
def test_evaluation_estimates_the_bound(block):
    """One row many times over: the mean of its estimates is the enumerated NELBO within 4.5 standard errors."""
    model, rows = make(3), 3000
    x = jnp.asarray([[2, 0, 1, 1]])
    made = {"tokens": jnp.tile(x, (rows, 1)), "scored": jnp.ones((rows, 4), bool)}
    if block:
        objective = BlockDiffusion(mask_id=3, block=block, draws=2, t_min=0.4, t_max=0.6, weighting="ones")
        want = bd.nelbo_exact(denoiser_of_any_batch(model, objective.mask), x, block, 3)
    else:
        objective = MaskedDiffusion(mask_id=3, draws=2, steps=3)
        want = md.nelbo_exact(denoiser_of_any_batch(model, objective.mask), x, 3)
    draws = np.asarray(jitted(model, objective.row_nll, made, jax.random.key(3)))
    assert abs(draws.mean() - want[0]) < 4.5 * draws.std() / rows**0.5
    assert draws.std() > 1e-3  # or the test would say nothing


def test_a_step_weighs_every_valid_token_once():
    """Fixed counts: the weights of a row sum to its valid tokens; random rates: in the mean over many rows."""
    made = batch(rows=4000)
    count = np.asarray(made["scored"].sum(-1))
    for objective in (MaskedDiffusion(mask_id=V), BlockDiffusion(mask_id=V)):
        weight = np.asarray(corrupted(objective, made)["weight"].sum(-1))
        assert (
            abs((weight - count).mean()) < 4.5 * (weight - count).std() / 4000**0.5 + 0.02
        )  # t below 1e-3 is left out
    weight = corrupted(MaskedDiffusion(mask_id=V, masking="fixed_count"), made)["weight"].sum(-1)
    np.testing.assert_allclose(weight, count, rtol=1e-6)


def test_the_table_makes_objectives_with_the_options_of_the_config():
    config = base.get_config()
    for name, entry in objectives.OBJECTIVES.items():
        objective = objectives.make(name, config.to_dict().get(name, {}), vocab_size=V)
        assert hash(objective) is not None and objective.copies >= 1 and str(objective.mask)
        if isinstance(entry, type):
            assert {f: getattr(objective, f) for f in config[name]} == config[name].to_dict()
            assert getattr(objective, "mask_id", V) == V
