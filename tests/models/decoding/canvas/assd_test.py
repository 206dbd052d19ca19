"""ASSD: exact check 12, by enumeration in float64 and by chi-square."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.canvas import assd
from models.objectives import any_subset
from tests.models import tiny_laws

ORDERS = ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0])


def tables():
    return {"oracle": tiny_laws.oracle_table(tiny_laws.joint("A")), "tab": tiny_laws.tab_table(3, 4, seed=2)}


def sequential(table, order, prompt):
    law = tiny_laws.order_law(table, order)
    if prompt is None:
        return law
    keep = np.zeros_like(law)
    index = [slice(None)] * 4
    for rank, token in enumerate(prompt):
        index[order[rank]] = token
    keep[tuple(index)] = law[tuple(index)]
    return keep / keep.sum()


@pytest.mark.parametrize("kind", ["oracle", "tab"])
@pytest.mark.parametrize("prompt", [None, [2], [1, 0]])
def test_law_is_sequential_and_calls_are_bounded(kind, prompt, x64):
    """Check 12: TV < 1e-13 for three orders and drafts 1 to 4; k = 1 costs 2n - 1, from 2 on at most n."""
    table = tables()[kind]
    denoise, n = tiny_laws.denoiser(table), 4 - len(prompt or [])
    for order, draft in itertools.product(ORDERS, (1, 2, 3, 4)):
        law, calls = assd.exact_law(denoise, order=order, draft=draft, prompt=prompt, vocab_size=3)
        assert tiny_laws.tv(law, sequential(table, order, prompt)) < 1e-13
        if draft == 1:
            assert abs(calls - (2 * n - 1)) < 1e-12
        else:
            assert calls <= n + 1e-12


@pytest.mark.parametrize("draft,prompt", [(1, None), (2, None), (3, [1]), (4, None)])
def test_draws_follow_the_law(draft, prompt):
    """Chi-square at 1e-4 against sequential decoding, and the mean calls against the enumeration."""
    table, order, batch = tables()["tab"], ORDERS[1], 80_000
    denoise = tiny_laws.denoiser(table, jnp.float32)
    run = lambda key: assd.sample(denoise, key, order=order, draft=draft, prompt=prompt, batch=batch)  # noqa: E731
    tokens, calls = map(np.asarray, jax.jit(run)(jax.random.key(draft)))
    statistic, limit = tiny_laws.chi_square(tiny_laws.histogram(tokens, 3), sequential(table, order, prompt))
    assert statistic < limit
    assert tiny_laws.power(81, batch) > 0.99
    with jax.enable_x64(True):
        _, expected = assd.exact_law(tiny_laws.denoiser(table), order=order, draft=draft, prompt=prompt, vocab_size=3)
    assert abs(calls.mean() - expected) <= 4.5 * calls.std() / batch**0.5 + 1e-6
    n = 4 - len(prompt or [])
    assert (calls == 2 * n - 1).all() if draft == 1 else calls.max() <= n


def test_two_stream_form_canvas_prompts_and_requests():
    """One-pass conditionals give the same tokens; a canvas is a prompt; a request is the same in any row."""
    table = tables()["tab"]
    denoise = tiny_laws.denoiser(table, jnp.float32)

    def one_pass(tokens, order, seen):
        rank = any_subset.ranks(order)
        z = jnp.where(rank[:, None, :] < seen[:, :, None], tokens[:, None], 3)  # [B, T, T]: what each position sees
        return jnp.diagonal(denoise(z, None), axis1=1, axis2=2).swapaxes(1, 2)

    options = {"order": ORDERS[2], "draft": 3, "vocab_size": 3}
    plain = jax.jit(lambda key: assd.sample(denoise, key, batch=64, **options))(jax.random.key(0))
    streamed = jax.jit(lambda key: assd.sample(one_pass, key, batch=64, two_stream=True, **options))(jax.random.key(0))
    np.testing.assert_array_equal(plain[0], streamed[0])
    np.testing.assert_array_equal(plain[1], streamed[1])
    canvas = jnp.array([3, 1, 3, 3])
    requests = jnp.array([5, 9])
    some, calls = assd.sample(denoise, jax.random.key(0), batch=2, prompt=canvas, requests=requests, **options)
    swap, again = assd.sample(denoise, jax.random.key(0), batch=2, prompt=canvas, requests=requests[::-1], **options)
    assert (np.asarray(some)[:, 1] == 1).all() and (np.asarray(some) < 3).all() and int(calls.max()) <= 3
    np.testing.assert_array_equal(some, swap[::-1])
    np.testing.assert_array_equal(calls, again[::-1])
    with pytest.raises(ValueError, match="draft=0"):
        assd.sample(denoise, jax.random.key(0), order=ORDERS[0], draft=0, batch=1)
