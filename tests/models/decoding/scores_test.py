"""Score samplers: the analytic step of the absorbing graph is ancestral sampling; the uniform one follows its
kernel."""

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding import diffusion
from models.objectives import masked_diffusion as md
from models.objectives import schedules, score_entropy
from tests.models import tiny_laws

DRAWS = 80_000


def test_absorbing_analytic_sampler_has_the_ancestral_law():
    table, schedule = tiny_laws.tab_table(3, 4, seed=9), schedules.get("loglinear")
    denoise = tiny_laws.denoiser(table, jnp.float32)

    def log_score(z, t):
        log_p = jax.nn.log_softmax(md.mask_logits(denoise(z, t), 3), -1)
        return score_entropy.log_score_from_probs(log_p, schedule.sigma(t), z, "absorb")

    def run(key):
        return diffusion.sample(log_score, key, batch=DRAWS, length=4, vocab_size=3, steps=3, method="analytic")

    tokens, calls = jax.jit(run)(jax.random.key(0))
    with jax.enable_x64(True):
        exact = diffusion.exact_law(
            tiny_laws.denoiser(table), length=4, vocab_size=3, steps=3, method="ancestral", schedule="loglinear"
        )
    statistic, limit = tiny_laws.chi_square(tiny_laws.histogram(tokens, 3), exact)
    assert statistic < limit and (np.asarray(calls) == 3).all()


def test_uniform_samplers_follow_their_kernels():
    """Both steps with true scores on one token, against the product of the step kernels."""
    prior, size, steps = np.array([0.6, 0.1, 0.1, 0.2]), 4, 3
    schedule = schedules.get("geometric", sigma_min=1e-3, sigma_max=4.0)
    times = np.array(schedules.grid(steps))
    sigma = np.append(4.0 ** times[:-1] * 1e-3 ** (1 - times[:-1]), 0.0)

    def log_score(z, t):
        alpha = schedule.alpha(t)[:, None]
        p = alpha * jnp.asarray(prior, jnp.float32) + (1 - alpha) / size
        return (jnp.log(p) - jnp.log(jnp.take_along_axis(p, z, 1)))[:, None]

    for method in ("analytic", "euler"):
        law = np.full(size, 1 / size)
        for now, then in zip(sigma[:-1], sigma[1:], strict=True):
            p, d = np.exp(-now) * prior + (1 - np.exp(-now)) / size, now - then
            s = p[None] / p[:, None]
            if method == "analytic":
                moved = np.exp(d) * s - (np.exp(d) - 1) / size * s.sum(1, keepdims=True)
                kernel = moved * (np.exp(-d) * np.eye(size) + (1 - np.exp(-d)) / size)
            else:
                kernel = d / size * s * (1 - np.eye(size))
                kernel += np.diag(np.maximum(1 - kernel.sum(1), 0))
            kernel = np.maximum(kernel, 0)
            law = law @ (kernel / kernel.sum(1, keepdims=True))
        if method == "analytic":  # true scores on one token: exact up to the uniform start, which is exp(-4) away
            assert tiny_laws.tv(law, prior) < np.exp(-4)
        run = jax.jit(
            lambda key, method=method: diffusion.sample(
                log_score,
                key,
                batch=DRAWS,
                length=1,
                vocab_size=size,
                steps=steps,
                method=method,
                graph="uniform",
                schedule=schedule,
            )[0]
        )
        statistic, limit = tiny_laws.chi_square(tiny_laws.histogram(run(jax.random.key(1)), size), law)
        assert statistic < limit
