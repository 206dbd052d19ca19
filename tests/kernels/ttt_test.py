"""TTT-Linear and TTT-MLP: the dual form against one token after another with automatic inner gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.platforms import lower_for_cuda
from kernels.ttt import TTTParams, init_state, ttt_linear, ttt_mlp
from kernels.ttt.shapes import SMALL
from tests.kernels.described import compile_for_tpu
from tests.kernels.probed import with_gradients

OPS = {"linear": ttt_linear, "mlp": ttt_mlp}
F64 = (
    1e-11  # rounding times the longest chain of sums (hundreds of terms), divided by the smallest std of LN, about 0.1
)


def inputs(kind, b, t, n, h, k, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *s: jnp.asarray(rng.normal(size=s))  # noqa: E731
    f = h if kind == "linear" else 2 * h
    layers = [(draw(1, n, h, f) / 2, draw(1, n, f) / 2)]
    if kind == "mlp":
        layers.append((draw(1, n, f, h) / 2, draw(1, n, h) / 2))
    position = jnp.asarray(rng.uniform(-0.6, 0.5, k))  # some rates are cut at 0
    params = TTTParams(tuple(layers), 1 + draw(n, h) / 4, draw(n, h) / 4, position)
    return draw(b, t, n, h), draw(b, t, n, h), draw(b, t, n, h), jnp.asarray(rng.uniform(0.05, 0.3, (b, t, n))), params


def inner(layers, scale, shift, x):
    """LN(z(x)) of one token and head."""
    for i, (w, b) in enumerate(layers):
        if i:
            x = 0.5 * x * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        x = x @ w + b
    return scale * (x - x.mean()) / jnp.sqrt(((x - x.mean()) ** 2).mean() + 1e-6) + shift


def naive_head(q, k, v, eta, layers, scale, shift, position, size):
    """One row and head from the definition: token i moves the first weights by every step up to its own."""

    def token(carry, xs):
        first, layers, total = carry
        i, q, k, v, eta = xs
        starts = i % size == 0
        first = jax.tree.map(lambda a, b: jnp.where(starts, a, b), layers, first)
        total = jax.tree.map(lambda a: jnp.where(starts, 0, a), total)
        step = jax.grad(lambda w: 0.5 * jnp.sum((inner(w, scale, shift, k) - (v - k)) ** 2))(first)
        total = jax.tree.map(lambda a, g: a + eta * g, total, step)
        rate = jnp.maximum(0, 1 / (i % size + 1) + position[i % size])
        layers = jax.tree.map(lambda w, g: w - rate * g, first, total)
        return (first, layers, total), q + inner(layers, scale, shift, q)

    zero = jax.tree.map(jnp.zeros_like, layers)
    return jax.lax.scan(token, (layers, layers, zero), (jnp.arange(q.shape[0]), q, k, v, eta))[1]


def naive(q, k, v, eta, params, size):
    heads = jax.vmap(functools.partial(naive_head, size=size), in_axes=(1, 1, 1, 1, 0, 0, 0, None), out_axes=1)
    rows = jax.vmap(heads, in_axes=(0, 0, 0, 0, None, None, None, None))
    return rows(q, k, v, eta, jax.tree.map(lambda w: w[0], params.layers), *params[1:])


def close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=F64 * max(1, abs(b).max())), actual, expected
    )


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("shape", SMALL.values())
def test_dual_form_equals_the_definition_with_gradients(x64, kind, shape):
    *size, k = shape
    args = inputs(kind, *size, k)
    ours = with_gradients(lambda *a: OPS[kind](*a, mini_batch=k)[0])(*args)
    close(ours, with_gradients(lambda *a: naive(*a, k))(*args))


def run_split(kind, args, edges, ids=None):
    *tokens, params = args
    state, outs = None, []
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        piece = [x[:, a:b] for x in tokens]
        segment_ids = None if ids is None else jnp.asarray(ids[:, a:b])
        out, state = OPS[kind](*piece, params, mini_batch=4, state=state, segment_ids=segment_ids)
        outs.append(out)
    return jnp.concatenate(outs, axis=1), state


@pytest.mark.parametrize("kind", OPS)
def test_split_equals_whole_with_gradients_and_state(x64, kind):
    args = inputs(kind, 2, 11, 1, 4, 4)
    edges = (0, 1, 4, 6, 11)
    whole = with_gradients(lambda *a: OPS[kind](*a, mini_batch=4)[0])(*args)
    close(with_gradients(lambda *a: run_split(kind, a, edges)[0])(*args), whole)
    close(run_split(kind, args, edges)[1], OPS[kind](*args, mini_batch=4)[1])


@pytest.mark.parametrize("kind", OPS)
def test_token_by_token_in_a_scan(x64, kind):
    args = inputs(kind, 2, 10, 2, 4, 4)
    *tokens, params = args

    def body(state, xs):
        out, state = OPS[kind](*[x[:, None] for x in xs], params, mini_batch=4, state=state)
        return state, out[:, 0]

    state = init_state(params, 2, mini_batch=4, dtype=jnp.float64, eta_dtype=jnp.float64)
    state, outs = jax.jit(lambda s, a: jax.lax.scan(body, s, [jnp.moveaxis(x, 1, 0) for x in a]))(state, tokens)
    out, last = OPS[kind](*args, mini_batch=4)
    close(jnp.moveaxis(outs, 0, 1), out)
    close(state, last)


@pytest.mark.parametrize("kind", OPS)
def test_packing_equals_each_document_alone(x64, kind):
    args = inputs(kind, 2, 13, 1, 4, 4)
    ids = np.stack([np.repeat([0, 1, 0, 2], [5, 1, 3, 4]), np.repeat([5, 6], [3, 10])])

    def alone(*args):
        rows = []
        for b, row in enumerate(ids):
            edges = [0, *(np.flatnonzero(np.diff(row)) + 1), 13]
            pieces = [[x[b : b + 1, i:j] for x in args[:4]] for i, j in zip(edges[:-1], edges[1:], strict=True)]
            rows.append(jnp.concatenate([OPS[kind](*piece, args[4], mini_batch=4)[0] for piece in pieces], axis=1))
        return jnp.concatenate(rows)

    expected = with_gradients(alone)(*args)
    for edges in ((0, 13), (0, 2, 7, 13)):
        close(with_gradients(lambda *a, edges=edges: run_split(kind, a, edges, ids)[0])(*args), expected)


def test_no_leak(x64):
    """Output i moves with tokens up to and including i, and with none after."""
    args = inputs("linear", 1, 10, 1, 4, 4)
    args = (*args[:4], args[4]._replace(position=None))
    jacobian = jax.jit(jax.jacrev(lambda v: ttt_linear(*args[:2], v, *args[3:], mini_batch=4)[0][0, :, 0]))(args[2])
    reached = np.any(np.asarray(jacobian)[:, :, 0, :, 0] != 0, axis=(1, 3))
    np.testing.assert_array_equal(reached, np.tril(np.ones((10, 10), bool)))


def test_low_precision_and_other_chips():
    for kind in OPS:
        *tokens, params = inputs(kind, 1, 32, 2, 16, 16)
        params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        low = [*[x.astype(jnp.bfloat16) for x in tokens[:3]], tokens[3].astype(jnp.float32) / 16]
        out, state = OPS[kind](*low, params)
        exact, _ = OPS[kind](*[x.astype(jnp.float32) for x in low], params)
        assert out.dtype == jnp.bfloat16 and state.layers[0][0].dtype == jnp.float32
        # Four or five roundings of operands in a row, times 1 / std of up to a few.
        np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=16 * 2**-8 * float(abs(exact).max()))
        loss = jax.grad(lambda *a, kind=kind: OPS[kind](*a)[0].sum().astype(jnp.float32), (0, 1, 2, 3, 4))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (*low, params))
        compile_for_tpu(loss, *shapes)
        lower_for_cuda(loss, *shapes)


def test_errors_name_the_argument():
    args = inputs("linear", 1, 4, 1, 4, 4)
    with pytest.raises(ValueError, match="2"):
        ttt_mlp(*args, mini_batch=4)
    with pytest.raises(ValueError, match="params.position"):
        ttt_linear(*args, mini_batch=8)
    with pytest.raises(ValueError, match="eta has shape"):
        ttt_linear(*args[:3], args[3][:, :2], args[4], mini_batch=4)
    with pytest.raises(ValueError, match="state has"):
        ttt_linear(*args, mini_batch=4, state=init_state(args[4], 2, mini_batch=4))
