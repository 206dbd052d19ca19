"""The plain functions keep their names and arguments, take numpy arrays and lists, and stay in float64."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.canvas import assd, diffusion, guided
from models.objectives import block_diffusion, insertion, masked_diffusion, neodiff, padding, schedules, score_entropy

STATED = {
    schedules.get: "name, clip",
    masked_diffusion.log_probs: "logits, z, mask_id",
    masked_diffusion.token_loss: "logits, x, z, t, schedule, mask_id, steps",
    masked_diffusion.nelbo_exact: "denoise, x, vocab_size, mask_id",
    masked_diffusion.nelbo: "denoise, x, key, samples",
    block_diffusion.training_mask: "length, block",
    block_diffusion.nelbo_exact: "denoise, x, block",
    score_entropy.absorbing: "log_score, sigma, z, x",
    score_entropy.uniform: "log_score, sigma, z, x",
    score_entropy.analytic_step: "log_score, z, step",
    insertion.target: "x, dropped, vocab_size",
    padding.rainbow: "answer, length, eos, pads",
    neodiff.tau_pmf: "t, K",
    neodiff.labels: "losses, t, K",
    diffusion.sample: "denoise, key, *, batch, length, vocab_size, mask_id, steps, method",
    diffusion.exact_law: "denoise",
    assd.sample: "conditionals, key, *, order, draft, prompt, batch",
    guided.decode: "denoise, guide",
}


@pytest.mark.parametrize("function", STATED, ids=lambda f: f"{f.__module__.rpartition('.')[2]}.{f.__name__}")
def test_the_stated_arguments_are_there(function):
    given, _, named = STATED[function].partition("*, ")
    parameters = inspect.signature(function).parameters
    plain = [name for name in given.split(", ") if name]
    assert list(parameters)[: len(plain)] == plain
    for name in filter(None, named.split(", ")):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY


def test_plain_arrays_stay_in_float64(x64):
    rng = np.random.default_rng(0)
    logits, x, z = rng.normal(size=(2, 3, 4)), np.array([[0, 1, 2], [3, 2, 1]]), np.array([[4, 1, 4], [4, 4, 4]])
    schedule = schedules.get("poly", clip=1e-4, k=3)
    found = [
        schedule.alpha(0.3), schedule.dalpha(0.3), schedule.weight(0.3),
        masked_diffusion.log_probs(logits, z, 4),
        masked_diffusion.token_loss(logits, x, z, np.array([0.5, 1.0]), "cosine_mdlm", 4),
        masked_diffusion.nelbo_exact(lambda z, t: jnp.zeros((*z.shape, 4)), x, 4, 4),
        block_diffusion.nelbo_exact(lambda z, t: np.zeros((*z.shape, 4)), x, 2, 4),
        score_entropy.absorbing(logits, np.array([0.5, 2.0]), z, x),
        score_entropy.uniform(logits, 0.7, x[:, ::-1], x),
        score_entropy.analytic_step(logits, x, 0.1, "uniform"),
        insertion.target([5, 7, 5], {0, 2}, 8),
        neodiff.tau_pmf(0.4, 10),
    ]  # fmt: skip
    assert [value.dtype for value in found] == [np.float64] * len(found)
    np.testing.assert_allclose(found[5], 3 * np.log(4), rtol=1e-12)
    np.testing.assert_allclose(found[6], 3 * np.log(4), rtol=1e-12)
    assert padding.rainbow([1, 2], 6, 9, [10, 11]).tolist() == [1, 2, 9, 10, 11, 10]
    assert block_diffusion.training_mask(4, 2).dtype == bool and neodiff.labels([0.9, 0.1], 0.5, 10).shape == (2,)
