"""Prefix linear attention: values of layer and function, what reads what, and texts that go on behind a prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import masks
from models.mixers import MIXERS, Context, prefixed
from models.mixers.slots import Slots
from tests.models.values.mixers_test import CLOSE, H, N, T, both
from tests.plain import learners
from tests.plain.drawn import drawn, spec

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(("prefix", "conv", "decay"), [(3, 0, True), (5, 4, False), (20, 0, False)])
def test_the_layer_is_a_loop_over_its_tokens(prefix, conv, decay):
    """Two documents a row, of 7 and 4 tokens: a prefix within both, within one, and longer than either."""
    options = {"chunk_size": 3, "conv": conv, "decay": decay, "prefix": prefix}
    plain = lambda p, x: learners.linear_attention(p, x, N=N, prefix=prefix)  # noqa: E731
    got, want = both("linear_attention", plain, linear_attention=options)
    np.testing.assert_allclose(got, want, **CLOSE)


def test_the_function_is_its_equation():
    """y_i = q_i (sum_{j <= i} k_j v_j + sum_{j <= M} k'_j v'_j) over the same sums of keys alone."""
    rng, (B, T, N, H, P, M) = np.random.default_rng(0), (2, 6, 3, 4, 5, 2)
    q, k = (rng.uniform(0.1, 2, (B, T, N, H)) for _ in range(2))
    v, first, second = rng.normal(size=(B, T, N, P)), rng.uniform(0.1, 2, (B, M, N, H)), rng.normal(size=(B, M, N, P))
    got = prefixed.prefix_linear_attention(q, k, v, first, second)
    bare = prefixed.prefix_linear_attention(q, k, v, first, second, normalise=False)
    for b, i, n in np.ndindex(B, T, N):
        S = sum(np.outer(k[b, j, n], v[b, j, n]) for j in range(i + 1))
        S = S + sum(np.outer(first[b, j, n], second[b, j, n]) for j in range(M))
        s = k[b, : i + 1, n].sum(0) + first[b, :, n].sum(0)
        np.testing.assert_allclose(bare[b, i, n], q[b, i, n] @ S, rtol=1e-12)
        np.testing.assert_allclose(got[b, i, n], q[b, i, n] @ S / (q[b, i, n] @ s), rtol=1e-12)


def layer(**options):
    made = spec(linear_attention={"chunk_size": 3, "conv": 3, **options})
    run, _ = drawn(lambda rngs: MIXERS["linear_attention"](made, rngs=rngs), 0)
    return made, run


def whole(module, x, ids=None):
    return module(x, Context(jnp.arange(x.shape[1])[None], ids, masks.Causal()))[0]


@pytest.mark.parametrize("documents", [False, True])
def test_who_reads_whom(documents):
    """Each token reads the first five and those before it: the gradient of an output says so."""
    made, run = layer(prefix=5)
    x = np.random.default_rng(1).normal(size=(1, T, made.D))
    ids = jnp.ones((1, T), jnp.int32) if documents else None
    reads = run(jax.jacrev(lambda module, x: whole(module, x, ids)[0].sum(-1), argnums=1), x)  # [T, 1, T, D]
    read, t = np.abs(reads[:, 0]).max(-1) > 1e-12, np.arange(T)
    np.testing.assert_array_equal(read, (t[None] <= t[:, None]) | (t[None] < 5))


def test_a_prompt_and_steps_are_the_whole_row():
    """Two prompts of 6 and 8 tokens behind a prefix of 5, the shorter with padding, then token by token."""
    made, run = layer(prefix=5)
    x = np.random.default_rng(2).normal(size=(2, T, made.D))
    sizes = np.array([6, 8])

    def steps(module, x):
        state = module.init_state(2, T)
        at = jnp.arange(8)
        places = jnp.where(at < sizes[:, None], at, -1)
        y, state = module(x[:, :8], Context(places, None, masks.Causal(), slots=Slots.empty(2, T)), state)
        out = [[y[b, : sizes[b]]] for b in range(2)]
        for step in range(3):
            now = sizes + step
            each = jnp.stack([x[b, now[b]] for b in range(2)])[:, None]
            y, state = module(each, Context(now[:, None], None, masks.Causal(), slots=Slots.empty(2, T)), state)
            for b in range(2):
                out[b].append(y[b])
        return [jnp.concatenate(parts) for parts in out]

    want = run(whole, x)
    for b, got in enumerate(run(steps, x)):
        np.testing.assert_allclose(got, want[b, : sizes[b] + 3], **CLOSE)


def test_the_two_forms_of_a_document_agree():
    """A row that is one document by its ids, and a row without ids."""
    _, run = layer(prefix=4)
    x = np.random.default_rng(3).normal(size=(2, T, N * H))
    for b, got in enumerate(run(lambda module, x: whole(module, x, jnp.ones((2, T), jnp.int32)), x)):
        np.testing.assert_allclose(got, run(whole, x)[b], **CLOSE)
