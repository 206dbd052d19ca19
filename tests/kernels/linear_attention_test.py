"""The chunked forms against the recurrences, with gradients, splits, documents and limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.lact.chunk_scan import Walk, chunk_scan, kept_every
from kernels.linear_attention import gated_delta_rule, init_state, linear_attention
from kernels.linear_attention.chunked import inverse
from kernels.linear_attention.shapes import SMALL
from kernels.platforms import lower_for_cuda
from tests.kernels.described import compile_for_tpu
from tests.kernels.probed import with_gradients

F64 = 1e-12  # rounding times the longest sum here (hundreds of terms of order one)


def inputs(b, t, n, h, p, seed=0):
    """(q, k, v, beta, decay) with keys of length one."""
    rng = np.random.default_rng(seed)
    q, k, v = (jnp.asarray(rng.normal(size=(b, t, n, w))) for w in (h, h, p))
    beta, decay = jnp.asarray(rng.uniform(0, 1, (b, t, n))), jnp.asarray(-rng.uniform(0, 2, (b, t, n)))
    return q, k / jnp.linalg.norm(k, axis=-1, keepdims=True), v, beta, decay


def call(kind, args, **options):
    q, k, v, beta, decay = args
    if kind == "delta":
        return gated_delta_rule(q, k, v, beta, decay, **options)
    return linear_attention(q, k, v, decay=decay if kind == "decay" else None, **options)


def close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=F64 * max(1, abs(b).max())), actual, expected
    )


@pytest.mark.parametrize("kind", ["plain", "decay", "delta"])
@pytest.mark.parametrize("shape", SMALL.values())
def test_chunked_equals_recurrent_with_gradients(x64, shape, kind):
    *size, chunk = shape
    args = inputs(*size)
    ours = with_gradients(lambda *a: call(kind, a, chunk_size=chunk)[0])(*args)
    close(ours, with_gradients(lambda *a: call(kind, a, chunk_size=1, implementation="reference")[0])(*args))


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_unit_triangular_matrices_are_inverted(x64, size):
    """Also where every key is the same: all ones, whose powers grow far beyond what float32 holds exactly."""
    drawn = np.random.default_rng(size).uniform(-1, 1, (2, 3, size, size))
    for below in (np.tril(drawn, -1), np.tril(np.ones((size, size)), -1)):
        found = inverse(jnp.asarray(below))
        identity = (np.eye(size) + below) @ found
        tolerance = F64 * np.abs(found).max()
        np.testing.assert_allclose(identity, np.broadcast_to(np.eye(size), below.shape), atol=tolerance)
    ones = inverse(jnp.asarray(below, jnp.float32))
    np.testing.assert_array_equal(ones, np.eye(size) - np.eye(size, k=-1))


def test_no_solver_of_lapack_runs_in_the_program():
    """Two of them at once wait for each other's threads for ever on two cores."""
    args = [x.astype(jnp.float32) for x in inputs(1, 128, 2, 8, 8)]
    text = jax.jit(with_gradients(lambda *a: call("delta", a)[0])).lower(*args).as_text()
    assert "lapack" not in text and "dot_general" in text


def test_recurrence_by_hand(x64):
    """The definitions with matrices in numpy, so that the reference is not its own judge."""
    q, k, v, beta, decay = (np.asarray(x)[0, :, 0] for x in inputs(1, 6, 1, 3, 2))
    for kind in ("plain", "decay", "delta"):
        memory, outs = np.zeros((3, 2)), []
        for i in range(6):
            memory = memory * (1 if kind == "plain" else np.exp(decay[i]))
            if kind == "delta":
                memory = (np.eye(3) - beta[i] * np.outer(k[i], k[i])) @ memory + beta[i] * np.outer(k[i], v[i])
            else:
                memory = memory + np.outer(k[i], v[i])
            outs.append(q[i] @ memory)
        close(call(kind, inputs(1, 6, 1, 3, 2), chunk_size=4)[0][0, :, 0], np.stack(outs))


@pytest.mark.parametrize("kind", ["decay", "delta"])
def test_splits_and_documents(x64, kind):
    args = inputs(2, 13, 2, 4, 4)
    ids = np.stack([np.repeat([0, 1, 0, 2], [3, 1, 7, 2]), np.repeat([5, 6], [12, 1])])

    def parts(*args, edges=(0, 2, 3, 9, 13)):
        state, outs = None, []
        for a, b in zip(edges[:-1], edges[1:], strict=True):
            piece = [x[:, a:b] for x in args]
            out, state = call(kind, piece, chunk_size=4, state=state, segment_ids=jnp.asarray(ids[:, a:b]))
            outs.append(out)
        return jnp.concatenate(outs, axis=1)

    def alone(*args):
        rows = []
        for b, row in enumerate(ids):
            edges = [0, *(np.flatnonzero(np.diff(row)) + 1), 13]
            docs = zip(edges[:-1], edges[1:], strict=True)
            rows.append([call(kind, [x[b : b + 1, i:j] for x in args], chunk_size=4)[0] for i, j in docs])
        return jnp.concatenate([jnp.concatenate(row, axis=1) for row in rows])

    expected = with_gradients(alone)(*args)
    close(with_gradients(parts)(*args), expected)
    close(with_gradients(functools.partial(parts, edges=(0, 13)))(*args), expected)


@pytest.mark.parametrize("kind", ["decay", "delta"])
def test_token_by_token_in_a_scan(x64, kind):
    args = inputs(1, 9, 2, 4, 4)

    def body(state, xs):
        out, state = call(kind, [x[:, None] for x in xs], chunk_size=4, state=state)
        return state, out[:, 0]

    state, outs = jax.jit(lambda s, a: jax.lax.scan(body, s, [jnp.moveaxis(x, 1, 0) for x in a]))(
        init_state(1, 2, 4, 4, jnp.float64), args
    )
    whole, last = call(kind, args, chunk_size=4)
    close(jnp.moveaxis(outs, 0, 1), whole)
    close(state, last)


def test_limits(x64):
    q, k, v, beta, decay = inputs(1, 8, 1, 4, 4)
    forget = linear_attention(q, k, v, decay=jnp.full_like(decay, -1e4), chunk_size=4)[0]
    close(forget, jnp.sum(q * k, -1, keepdims=True) * v)
    # With beta = 1 and keys of length 1 a token reads back exactly what it wrote.
    close(gated_delta_rule(k, k, v, jnp.ones_like(beta), decay, chunk_size=4)[0], v)
    close(gated_delta_rule(q, k, v, jnp.zeros_like(beta), decay, chunk_size=4)[0], jnp.zeros_like(v))
    slow = jnp.arange(8.0).reshape(decay.shape) * 1000  # a decay must never overflow through masked pairs
    assert all(
        bool(jnp.isfinite(g).all()) for g in with_gradients(lambda *a: call("decay", a)[0])(q, k, v, beta, -slow)[1]
    )


def test_carries_are_left_out_where_that_halves_them():
    """Of s carries every r-th is kept and r more are made again, r the root of s; all where they are as few as xs."""
    size = lambda n: jax.ShapeDtypeStruct((n,), jnp.float32)  # noqa: E731
    every = lambda steps, xs: kept_every(Walk("", (1,), steps, steps), size(10), (size(xs),))  # noqa: E731
    assert [every(steps, 9) for steps in (1, 7, 15, 16, 18, 100)] == [1, 1, 1, 4, 4, 10]
    assert [every(100, xs) for xs in (999, 1000)] == [10, 1]


@pytest.mark.parametrize("steps,width", [(1, 40), (2, 1), (5, 1), (16, 40), (18, 40)])
def test_chunk_scan_equals_a_plain_loop(x64, steps, width):
    """Both ways of keeping carries (width 1: all of them; 40: every root-th), even and uneven groups."""
    rng = np.random.default_rng(steps)
    x, carry = jnp.asarray(rng.normal(size=(2, steps * 3 + 1, 2))), jnp.asarray(rng.normal(size=(2, width)))
    flags, scale = jnp.arange(steps), jnp.asarray(0.3)

    def body(scale, carry, flag, chunk):
        total = jnp.sum(chunk[0], axis=(1, 2))[:, None]
        carry = jnp.where(flag % 2 == 0, jnp.sin(carry + scale * total), carry * total)
        return carry, chunk[0] * jnp.mean(carry, axis=1)[:, None, None]

    def ours(scale, carry, x):
        carry, out = chunk_scan(body, scale, carry, flags, (x,), sizes=(3,), steps=steps, length=x.shape[1])
        return out + jnp.sum(carry)

    def loop(scale, carry, x):
        outs = []
        for i in range(steps):
            carry, y = body(scale, carry, i, (x[:, 3 * i : 3 * i + 3],))
            outs.append(y)
        return jnp.concatenate([*outs, jnp.zeros_like(x[:, -1:])], axis=1) + jnp.sum(carry)

    close(with_gradients(ours)(scale, carry, x), with_gradients(loop)(scale, carry, x))


def test_low_precision_and_other_chips():
    args = inputs(1, 64, 2, 16, 16)
    low = [x.astype(jnp.bfloat16) for x in args[:3]] + [x.astype(jnp.float32) for x in args[3:]]
    for kind in ("decay", "delta"):
        out, state = call(kind, low, chunk_size=16)
        exact, _ = call(kind, [x.astype(jnp.float32) for x in low], chunk_size=16)
        assert out.dtype == jnp.bfloat16 and state.memory.dtype == jnp.float32
        np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=8 * 2**-8 * float(abs(exact).max()))
        loss = jax.grad(lambda *a, kind=kind: call(kind, a, chunk_size=16)[0].sum().astype(jnp.float32))
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in low]
        compile_for_tpu(loss, *shapes)
        lower_for_cuda(loss, *shapes)


def test_errors_name_the_argument():
    q, k, v, beta, decay = inputs(1, 4, 1, 2, 2)
    with pytest.raises(ValueError, match="decay has shape"):
        linear_attention(q, k, v, decay=decay[:, :2])
    with pytest.raises(ValueError, match="chunk_size=0"):
        linear_attention(q, k, v, chunk_size=0)
    with pytest.raises(ValueError, match="state has a memory"):
        linear_attention(q, k, v, state=init_state(1, 1, 3, 2))
    with pytest.raises(NotImplementedError, match="'fast'"):
        gated_delta_rule(q, k, v, beta, implementation="fast")
