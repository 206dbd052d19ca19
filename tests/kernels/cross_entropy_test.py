"""The fused cross-entropy against plain autodiff in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import cross_entropy as op
from kernels.cross_entropy import cross_entropy, token_nll

M, D, V = 37, 8, 29


def inputs(dtype=np.float64):
    rng = np.random.default_rng(0)
    x, head = rng.normal(size=(M, D)).astype(dtype), rng.normal(size=(V, D)).astype(dtype)
    return (
        jnp.asarray(x),
        jnp.asarray(head),
        jnp.asarray(rng.integers(0, V, M)),
        jnp.asarray(rng.random(M).astype(dtype)),
    )


def definition(x, head, targets, weights, *, z_loss, scale, softcap):
    logits = x @ head.T * scale
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    log_z = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
    nll = log_z - logits[jnp.arange(M), targets]
    return jnp.sum(weights * (nll + z_loss * log_z**2)), jnp.sum(weights * nll)


@pytest.mark.parametrize("options", [(0.0, 1.0, 0.0), (1e-2, 0.5, 0.0), (1e-2, 0.5, 3.0)], ids=str)
@pytest.mark.parametrize("max_logits", [1 << 25, V * 10], ids=["one chunk", "four chunks"])
def test_values_and_gradients_equal_the_definition(x64, monkeypatch, options, max_logits):
    monkeypatch.setattr(op, "MAX_LOGITS", max_logits)
    kw = dict(zip(("z_loss", "scale", "softcap"), options, strict=True))
    x, head, targets, weights = inputs()
    loss = lambda f: jax.value_and_grad(lambda x, h: f(x, h, targets, weights, **kw), argnums=(0, 1), has_aux=True)  # noqa: E731
    (value, nll), (dx, dh) = loss(cross_entropy)(x, head)
    (want, want_nll), (want_dx, want_dh) = loss(definition)(x, head)
    for got, exact in ((value, want), (nll, want_nll), (dx, want_dx), (dh, want_dh)):
        np.testing.assert_allclose(got, exact, rtol=1e-12, atol=1e-12)
    plain = cross_entropy(x, head, targets, weights, **kw)
    np.testing.assert_allclose(plain[0], want, rtol=1e-12)


def test_token_nll_equals_the_definition(x64, monkeypatch):
    monkeypatch.setattr(op, "MAX_LOGITS", V * 10)
    x, head, targets, _ = inputs()
    logits = x @ head.T
    want = jax.nn.logsumexp(logits, axis=-1) - logits[jnp.arange(M), targets]
    np.testing.assert_allclose(token_nll(x, head, targets), want, rtol=1e-12)


def test_a_token_of_weight_zero_gives_no_gradient_whatever_its_target():
    x, head, targets, weights = inputs(np.float32)
    weights = weights.at[3].set(0.0)
    grad = jax.grad(lambda x, t: cross_entropy(x, head, t, weights)[0])
    a, b = grad(x, targets), grad(x, targets.at[3].set(0))
    np.testing.assert_array_equal(a[3], np.zeros(D))
    np.testing.assert_array_equal(a, b)


def test_large_vocabularies_never_hold_all_logits():
    """Temporaries of loss and gradient stay near one chunk of logits, far below `[M, V]` in float32."""
    tokens, width, vocab = 4096, 32, 65_536
    shapes = (jax.ShapeDtypeStruct((tokens, width), jnp.float32), jax.ShapeDtypeStruct((vocab, width), jnp.float32))
    ids, weights = jnp.zeros(tokens, jnp.int32), jnp.ones(tokens)
    f = jax.jit(jax.grad(lambda x, h: cross_entropy(x, h, ids, weights)[0], argnums=(0, 1)))
    used = f.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * 4 * op.MAX_LOGITS + 4 * 4 * vocab * width
    assert used < 0.6 * 4 * tokens * vocab


def test_bfloat16_accumulates_in_float32():
    x, head, targets, weights = inputs(np.float32)
    low = cross_entropy(x.astype(jnp.bfloat16), head.astype(jnp.bfloat16), targets, weights)[0]
    exact = cross_entropy(
        x.astype(jnp.bfloat16).astype(jnp.float32), head.astype(jnp.bfloat16).astype(jnp.float32), targets, weights
    )[0]
    assert low.dtype == jnp.float32
    # Products of bfloat16 numbers are exact in float32: only the order of D additions differs.
    np.testing.assert_allclose(low, exact, rtol=D * np.finfo(np.float32).eps * 8)
