"""Score entropy of an LM: its numbers are those of the plain functions, its bound that of an enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from models.lm import LM
from models.objectives import schedules
from models.objectives import score_entropy as se
from models.objectives.diffusion import MaskedDiffusion
from models.objectives.score_entropy import ScoreEntropy
from models.spec import Spec
from tests.models.objectives.diffusion_test import V, batch, corrupted, denoiser_of_any_batch, jitted
from tests.models.objectives.diffusion_test import make as make_without_time

pytestmark = pytest.mark.usefixtures("x64")


def make():
    """A float64 model that is told the time, its map of time no longer zero."""
    config = base.get_config().model
    config.update({"width": 16, "num_layers": 1, "num_heads": 2, "init": "fan_in", "time_features": 4})
    config.update({"dtype": "float64", "param_dtype": "float64"})
    model = LM(Spec.from_config(config.to_dict(), vocab_size=V + 1), rngs=nnx.Rngs(params=0))
    model.time.kernel[...] = jax.random.normal(jax.random.key(1), model.time.kernel.shape)
    return model


@pytest.mark.parametrize(("graph", "head"), [("absorb", "score"), ("uniform", "probs")])
def test_loss_is_the_plain_one(graph, head):
    model, objective = make(), ScoreEntropy(mask_id=V, graph=graph, head=head)
    noised = corrupted(objective, batch())
    z, x, t = noised["noised"], noised["tokens"], noised["time"].astype(float)  # Drawn in float32.
    schedule = schedules.get(objective.schedule)
    weight = jnp.where(noised["weight"] > 0, schedule.dsigma(t)[:, None], 0)
    np.testing.assert_allclose(noised["weight"], weight, rtol=1e-4)
    noised |= {"time": t, "weight": weight}
    assert (z != x).any() and not (z != x)[~noised["scored"]].any() and ((z < V) | (graph == "absorb")).all()

    def plain(model, noised):
        kw = {"positions": noised["positions"], "segment_ids": noised["segment_ids"], "time": t}
        return (model(z, mask=objective.mask, **kw)[0] @ model.head_weights().T)[..., :V]

    logits = jitted(model, plain, noised)
    sigma, rate = schedule.sigma(t), schedule.dsigma(t)[:, None]
    if graph == "absorb":
        want = rate * se.absorbing(se.log_score_from_logits(logits, sigma, z), sigma, z, x)
    else:
        want = rate * se.uniform_from_logits(logits, schedule.alpha(t), z, x)
    want = jnp.where(noised["scored"], want, 0).sum()
    loss, means, _ = jitted(model, objective.loss, noised, None)
    np.testing.assert_allclose([loss, means["nll"].total], [want, want], rtol=1e-10)
    told = jitted(model, objective.loss, noised | {"time": t / 2}, None)[0]
    assert abs(told - loss) > 1e-3


def test_evaluation_of_probabilities_is_that_of_masked_diffusion():
    """Same noise, same numbers: 1 / m of a cross-entropy is sigma' of a normalised score entropy."""
    made, model, key = batch(), make_without_time(), jax.random.key(5)
    objective = ScoreEntropy(mask_id=V, head="probs", schedule="geometric", draws=2)
    want = jitted(model, MaskedDiffusion(mask_id=V, draws=2).row_nll, made, key)
    np.testing.assert_allclose(jitted(model, objective.row_nll, made, key), want, rtol=1e-9)


def test_evaluation_of_the_uniform_graph_estimates_its_bound():
    """One row many times over against the sum over all noised rows and a quadrature over time, and the prior."""
    size, rows, model = 3, 6000, make_without_time(3)
    x = jnp.asarray([2, 0])
    states = jnp.stack(jnp.meshgrid(*[jnp.arange(size)] * 2, indexing="ij"), -1).reshape(-1, 2)
    objective = ScoreEntropy(mask_id=size, graph="uniform", draws=2)
    logits = denoiser_of_any_batch(model, objective.mask)(states, None)
    schedule = schedules.get(objective.schedule)

    def density(w):
        t = w**4  # The integrand is singular at 0 like a logarithm.
        sigma, alpha = schedule.sigma(t), schedule.alpha(t)
        chance = jnp.prod(jnp.where(states == x, alpha, 0) + (1 - alpha) / size, -1)
        loss = se.uniform(logits, sigma, states, jnp.broadcast_to(x, states.shape))
        return 4 * w**3 * schedule.dsigma(t) * (chance * loss.sum(-1)).sum()

    grid = (jnp.arange(4000) + 0.5) / 4000
    end = np.where(np.arange(size) == 2, schedule.alpha(1.0), 0) + schedule.mask(1.0) / size
    want = jax.lax.map(density, grid).mean() + 2 * np.sum(end * np.log(end * size))
    made = {"tokens": jnp.tile(x, (rows, 1)), "scored": jnp.ones((rows, 2), bool)}
    draws = np.asarray(jitted(model, objective.row_nll, made, jax.random.key(3)))
    # Rows share the strata of time, so their spread bounds the error of the mean from above.
    assert abs(draws.mean() - want) < 4.5 * draws.std() / rows**0.5 and draws.std() > 1e-3


def test_temperature_moves_where_and_not_how_much():
    logits = jnp.asarray([[[0.3, -1.0, 2.0]]])
    for temperature in (0, 0.5, 1, 3.0):
        made = se.tempered(logits, temperature)
        np.testing.assert_allclose(jax.nn.logsumexp(made, -1), jax.nn.logsumexp(logits, -1), rtol=1e-12)
        share = jax.nn.softmax(made, -1)[0, 0, 2]
        want = 1.0 if temperature == 0 else jax.nn.softmax(logits / temperature, -1)[0, 0, 2]
        np.testing.assert_allclose(share, want, rtol=1e-12)
