"""NeoDiff of an LM: the loss in the loop is the plain one, what is given stays clean, sampling ends where it is led."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from configs import base
from models.decoding.canvas import neodiff as sampling
from models.lm import LM
from models.objectives import neodiff as plain
from models.objectives.neodiff import NeoDiff
from models.spec import Spec
from tests.models import tiny_laws
from tests.models.objectives.diffusion_test import B, T, V, batch, corrupted, jitted

pytestmark = pytest.mark.usefixtures("x64")
K = 6


def make(self_condition=False):
    config = base.get_config().model
    config.update({"width": 16, "num_layers": 1, "num_heads": 2, "init": "fan_in", "time_features": 4})
    config.self_condition = self_condition
    config.update({"dtype": "float64", "param_dtype": "float64"})
    model = LM(Spec.from_config(config.to_dict(), vocab_size=V + K + 1), rngs=nnx.Rngs(params=0))
    model.time.kernel[...] = jax.random.normal(jax.random.key(1), model.time.kernel.shape)
    if self_condition:
        model.condition[...] = 0.3 * jax.random.normal(jax.random.key(2), model.condition.shape)
    return model


@pytest.mark.parametrize("self_condition", [False, True])
def test_loss_is_the_plain_one_and_what_is_given_stays_clean(self_condition):
    model, objective, made = make(self_condition), NeoDiff(mask_id=V, levels=K), batch()
    noised = corrupted(objective, made)
    assert noised["conditioned"].shape == (B,)
    noised["conditioned"] = jnp.array([True, False, True])
    free, tau, x = made["scored"], noised["tau"], made["tokens"]
    assert not tau[~free].any() and (tau <= K).all() and tau.any()

    def by_hand(model):
        clean = model.embed(x)
        clean = clean / jnp.sqrt(jnp.square(clean).mean(-1, keepdims=True))
        eps = jnp.stack(
            [jax.random.normal(k, clean.shape[1:], float) for k in jax.random.wrap_key_data(noised["noise"])]
        )
        keep = plain.signal(tau, K)[..., None]
        z = jnp.where(free[..., None], jnp.sqrt(keep) * clean + jnp.sqrt(1 - keep) * eps, clean)
        kw = {"mask": objective.mask, "positions": made["positions"], "segment_ids": made["segment_ids"]}
        features, *_ = model(z, time=tau / K, **kw)
        if self_condition:
            first = jnp.where(free[..., None], features, clean) * noised["conditioned"][:, None, None]
            features, *_ = model(z + first @ model.condition[...], time=tau / K, **kw)
        logits = features @ model.head_weights().T
        error, anchor = plain.token_loss(features, clean, logits[..., :V], x)
        label = plain.labels(error + anchor, noised["next"], K, free)
        again, *_ = model(jnp.where(free[..., None], features, clean), time=noised["next"], **kw)
        late = plain.time_loss((again @ model.head_weights().T)[..., V : V + K + 1], label)
        return [jnp.where(free, value, 0).sum() for value in (error, anchor, late)]

    want = jitted(model, by_hand)
    loss, means, _ = jitted(model, objective.loss, noised, None)
    np.testing.assert_allclose([means["error"].total, means["nll"].total, means["time"].total], want, rtol=1e-9)
    np.testing.assert_allclose(loss, sum(want), rtol=1e-9)


def test_sampling_follows_the_predicted_embeddings_and_the_predicted_times():
    """A decoder that knows the end and takes note of the noise: it is told each token's own, and prompts have none."""
    goal = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (T, 4)), (B, T, 4))
    fixed = jnp.arange(T) < 3
    told = jnp.asarray([[0, K, 2] * (T // 3)] * B)

    def decode(z, tau):
        keep = plain.signal(tau, K)[..., None]
        spread = jnp.where(
            keep > 0.5, 0, z - jnp.sqrt(keep) * goal
        )  # Whatever noise is left shows in what is predicted.
        return goal + 1e-3 * spread

    def times(x, t):
        return jnp.where(t[:, None, None] > 0, jax.nn.one_hot(told, K + 1), jax.nn.one_hot(0 * told, K + 1))

    kw = {"K": K, "fixed": jnp.broadcast_to(fixed, (B, T)), "given": goal}
    x, calls = sampling.sample(decode, times, jax.random.key(1), steps=5, **kw)
    assert (calls == 10).all()
    moved = np.abs(np.asarray(x - goal)).max(-1)
    assert not moved[:, :3].any()  # The prompt, exactly.
    noisy = np.asarray(told[:, 3:] > 0) & (np.asarray(plain.signal(told[:, 3:], K)) <= 0.5)
    assert (moved[:, 3:][noisy] > 0).all() and not moved[:, 3:][~noisy].any() and noisy.any() and not noisy.all()
    again = sampling.sample(decode, times, jax.random.key(1), steps=5, requests=jnp.arange(B)[::-1], **kw)[0]
    np.testing.assert_array_equal(x[0], again[-1])  # The same request in another row of the batch.


@pytest.mark.parametrize("conditioned", [False, True])
def test_three_steps_of_one_number_follow_their_law(conditioned):
    """A clean number of -1 or 1, decoded by its mean: draws against an integral over the second step's noise."""
    steps, draws, bins = 3, 60_000, np.array([-0.9, -0.6, -0.2, 0.2, 0.6, 0.9])
    told = lambda x: jnp.where(jnp.abs(x) < 0.5, 4, 2)  # noqa: E731  The time that the predictor gives.

    def decode(z, tau, *earlier):
        keep = plain.signal(tau, K)[..., None]
        tilt = 0.4 + (0.5 * earlier[0] if earlier else 0.0)
        return jnp.tanh(z * jnp.sqrt(keep) / (1 - keep) + tilt)

    times = lambda x, t: jax.nn.one_hot(told(x[..., 0]), K + 1)  # noqa: E731
    given, fixed = jnp.zeros((draws, 1, 1)), jnp.zeros((draws, 1), bool)
    run = jax.jit(
        lambda key: sampling.sample(decode, times, key, given, fixed, K=K, steps=steps, conditioned=conditioned)[0]
    )
    counts = np.bincount(np.searchsorted(bins, np.asarray(run(jax.random.key(0))).ravel()), minlength=len(bins) + 1)

    eps = np.linspace(-9, 9, 40_001)
    mass = np.exp(-(eps**2) / 2)
    start = np.tanh(0.4)  # Of pure noise, which tells nothing.
    tau = np.asarray(told(start))
    keep = np.asarray(plain.signal(tau, K))
    z = jnp.asarray(np.sqrt(keep) * start + np.sqrt(1 - keep) * eps)[:, None, None]
    first = np.asarray(decode(z, np.full((len(eps), 1), tau), *((start,) if conditioned else ()))).ravel()
    tau = np.asarray(told(first))
    keep = np.asarray(plain.signal(tau, K))
    tilt = 0.4 + (0.5 * first if conditioned else 0.0)
    edge = (np.arctanh(bins)[:, None] - tilt) * (1 - keep) / np.sqrt(keep)  # The z that is decoded to each bin's end.
    below = scipy.stats.norm.cdf((edge - np.sqrt(keep) * first) / np.sqrt(1 - keep))
    below = (below * mass).sum(1) / mass.sum()
    law = np.diff(np.concatenate([[0.0], below, [1.0]]))
    assert 0.1 < (tau == 4).mean() < 0.9 and law.min() > 1e-4
    statistic, limit = tiny_laws.chi_square(counts, law)
    assert statistic < limit and tiny_laws.power(len(law), draws) > 0.99
