"""Score samplers: the analytic step of the absorbing graph is ancestral sampling; the uniform one follows its
kernel."""

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.canvas import diffusion
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

    bend = sigma[:-1] * np.log(4.0 / 1e-3) / steps  # dt sigma'(t)
    for method in ("analytic", "euler", "released"):
        law = np.full(size, 1 / size)
        for now, then, first_order in zip(sigma[:-1], sigma[1:], bend, strict=True):
            p, d = np.exp(-now) * prior + (1 - np.exp(-now)) / size, now - then
            d = first_order if method == "released" else d
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


def test_the_released_step_of_the_log_linear_schedule_by_hand():
    """sigma' = (1 - e) / (1 - (1 - e) t), e = 1e-3: from t = 1/2 in two steps of one masked token, score 0.4 to each.

    Call 1 at t = 1 moves with chance min(1, 2 x 0.4 x 999 / 2) = 1; put there by hand, call 2 moves to either alike.
    """
    times = [1.0, 0.5, 0.0]
    seen = []

    def log_score(z, t):
        seen.append(t)
        return jnp.log(jnp.full((*z.shape, 2), 0.4)) + 0 * t[:, None, None]

    tokens, _ = diffusion.sample(
        log_score, jax.random.key(0), batch=64, length=1, vocab_size=2, steps=2, method="released"
    )
    assert (np.asarray(tokens) < 2).all() and len(set(np.asarray(tokens)[:, 0].tolist())) == 2
    small = 1e-4  # One short step from t = 1/2: the chance of moving is dt sigma'(1/2) (s_0 + s_1), 1.1e-4.
    step = small * (1 - 1e-3) / (1 - (1 - 1e-3) * 0.5)
    law = score_entropy.euler_step(log_score(jnp.array([[2]]), jnp.array([0.5])), [[2]], step, "absorb", 2)
    np.testing.assert_allclose(law[0, 0], [0.4 * step, 0.4 * step, 1 - 0.8 * step], rtol=1e-6)
    schedule = schedules.get("loglinear")
    np.testing.assert_allclose(schedule.dsigma(jnp.asarray(times)), [999.0, 0.999 / 0.5005, 0.999], rtol=1e-4)
