"""LaCT against a loop written from the definition, and the equalities it promises: splits, documents, no leak."""

import functools
import itertools
import operator

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.lact import init_state, lact
from kernels.lact.shapes import SMALL
from tests.kernels.probed import probe, with_gradients

# float64 rounding times the longest chain of sums in these shapes (about a thousand terms), relative to the result.
F64 = 1e-12
NS5 = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]


def inputs(b, t, n, h, f, seed=0, shared=True, dtype=np.float64):
    """(q, k, v, lr, weights), momentum."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    one = 1 if shared else b
    weights = (draw(one, n, f, h) / h**0.5, draw(one, n, h, f) / f**0.5, draw(one, n, f, h) / h**0.5)
    lr = jnp.asarray(rng.uniform(0.01, 0.3, size=(b, t, n, 3)), dtype)
    momentum = jnp.asarray(rng.uniform(0.1, 0.9, size=(b, t, n)), dtype)
    return (draw(b, t, n, h), draw(b, t, n, h), draw(b, t, n, h), lr, weights), momentum


def network(weights, x):
    """f_W of tokens `[T, H]`, one head."""
    w0, w1, w2 = weights
    gate = x @ w0.T
    return (gate / (1 + jnp.exp(-gate)) * (x @ w2.T)) @ w1.T


def orthogonalised(d, triples):
    x = d.T if d.shape[0] > d.shape[1] else d
    x = x / (jnp.sqrt(jnp.sum(x**2)) + 1e-7)

    def one_step(x, abc):
        s = x @ x.T
        return abc[0] * x + (abc[1] * s + abc[2] * s @ s) @ x, None

    x, _ = jax.lax.scan(one_step, x, jnp.asarray(triples, x.dtype))
    return x.T if d.shape[0] > d.shape[1] else x


def naive_head(q, k, v, lr, weights, momentum, chunk, triples, normalize, order):
    """One row and head, one document, from the definition; the update is an automatic gradient of the loss."""

    def rows(w):
        return jnp.sqrt(jnp.sum(w**2, axis=1, keepdims=True))

    def weighed(w, i, piece):
        return -jnp.sum(lr[piece, i] * jnp.sum(network(w, k[piece]) * v[piece], axis=1))

    norms = [rows(w) for w in weights]
    main, fast, buffer = list(weights), list(weights), [jnp.zeros_like(w) for w in weights]
    outs, length = [], q.shape[0]
    for begin in range(0, length, chunk):
        piece = slice(begin, min(begin + chunk, length))
        if order == "apply_then_update":
            outs.append(network(fast, q[piece]))
            if begin + chunk >= length:
                break
        update = [-jax.grad(weighed)(fast, i, piece)[i] for i in range(3)]
        if momentum is not None:
            update = [d + jnp.mean(momentum[piece]) * m for d, m in zip(update, buffer, strict=True)]
            buffer = update
        if triples:
            update = [orthogonalised(d, triples) for d in update]
        main = [w + d for w, d in zip(main, update, strict=True)]
        fast = main
        if normalize != "none":
            fast = [n * w / (rows(w) + 1e-5) for w, n in zip(main, norms, strict=True)]
        if normalize == "post":
            main = fast
        if order == "update_then_apply":
            outs.append(network(fast, q[piece]))
    return jnp.concatenate(outs)


def naive(args, momentum, chunk, triples=(), normalize="post", order="apply_then_update"):
    """`naive_head` for every row and head."""
    q, k, v, lr, weights = args
    weights = [jnp.broadcast_to(w, (q.shape[0], *w.shape[1:])) for w in weights]
    one = functools.partial(naive_head, chunk=chunk, triples=triples, normalize=normalize, order=order)
    heads = jax.vmap(one, in_axes=(1, 1, 1, 1, 0, None if momentum is None else 1), out_axes=1)
    return jax.vmap(heads, in_axes=(0, 0, 0, 0, 0, None if momentum is None else 0))(q, k, v, lr, weights, momentum)


def close(actual, expected, tolerance=F64):
    scale = max(1.0, float(jnp.max(jnp.abs(expected), initial=0.0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def trees_close(actual, expected, tolerance=F64):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(functools.partial(close, tolerance=tolerance), actual, expected)


def cases():
    """Always run: every two options together."""
    for case in itertools.product(("post", "pre", "none"), (0, 5), (False, True), ("apply_then_update",)):
        normalize, steps, with_momentum, _ = case
        always = with_momentum == ((steps == 5) == (normalize == "pre"))
        yield pytest.param(*case, marks=() if always else pytest.mark.exhaustive)
    for normalize, steps, with_momentum in (("post", 0, False), ("post", 5, True), ("pre", 5, True)):
        yield normalize, steps, with_momentum, "update_then_apply"


@pytest.mark.parametrize("normalize,steps,with_momentum,order", cases())
def test_equals_the_definition_with_gradients(x64, normalize, steps, with_momentum, order):
    args, momentum = inputs(2, 8, 1, 4, 6, shared=not with_momentum)
    momentum = momentum if with_momentum else None
    options = dict(chunk_size=3, newton_schulz_steps=steps, normalize=normalize, order=order)
    out, grads = with_gradients(lambda a, m: lact(*a, momentum=m, **options)[0])(args, momentum)
    expected, grads_n = with_gradients(lambda a, m: naive(a, m, 3, NS5[:steps], normalize, order))(args, momentum)
    close(out, expected)
    # Newton-Schulz raises singular values near 0 by up to 4.08 * 3.95 * ... = 493: so much rounding may grow.
    trees_close(grads, grads_n, F64 * (500 if steps else 1))


@pytest.mark.parametrize("name", SMALL)
def test_shapes_of_the_list(x64, name):
    *shape, chunk = SMALL[name]
    args, momentum = inputs(*shape)
    out, _ = lact(*args, chunk_size=chunk, momentum=momentum)
    close(out, naive(args, momentum, chunk))


def test_repeated_coefficients(x64):
    args, _ = inputs(1, 12, 1, 4, 4)
    out, _ = lact(*args, chunk_size=4, newton_schulz_steps=3, coefficients="nvs")
    close(out, naive(args, None, 4, [(3.4445, -4.7750, 2.0315)] * 3))


def run_split(args, momentum, cuts, segment_ids=None, **options):
    """The same tokens in several calls; the first starts from `init_state`."""
    *tokens, weights = args
    dtype = tokens[0].dtype
    size = options["chunk_size"]
    batch = tokens[0].shape[0]
    state = init_state(weights, batch, chunk_size=size, dtype=dtype, rate_dtype=dtype, momentum=momentum is not None)
    outs, edges = [], [0, *sorted(cuts), tokens[0].shape[1]]
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        if a < b:
            gate = None if momentum is None else momentum[:, a:b]
            ids = None if segment_ids is None else segment_ids[:, a:b]
            piece = [x[:, a:b] for x in tokens]
            out, state = lact(*piece, weights, momentum=gate, state=state, segment_ids=ids, **options)
            outs.append(out)
    return jnp.concatenate(outs, axis=1), state


@pytest.mark.parametrize("normalize,steps", [("post", 5), ("pre", 0)])
@pytest.mark.parametrize("cuts", [(3, 4, 5, 9)])
def test_split_anywhere_equals_whole_with_gradients_and_state(x64, normalize, steps, cuts):
    args, momentum = inputs(2, 11, 1, 4, 4)
    options = dict(chunk_size=4, newton_schulz_steps=steps, normalize=normalize)
    first = operator.itemgetter(0)
    (out, state), grads = with_gradients(lambda a, m: lact(*a, momentum=m, **options), first)(args, momentum)
    (out_s, state_s), grads_s = with_gradients(lambda a, m: run_split(a, m, cuts, **options), first)(args, momentum)
    close(out_s, out)
    trees_close(grads_s, grads, F64 * (500 if steps else 1))
    np.testing.assert_array_equal(state_s.fill, state.fill)
    trees_close(state_s.carry, state.carry, F64 * (500 if steps else 1))
    held = jnp.arange(4) < state.fill[0]
    trees_close(*[jax.tree.map(lambda x: x[:, held], s.chunk) for s in (state_s, state)])


@pytest.mark.parametrize("normalize", ["post", "pre"])
def test_token_by_token_in_a_scan_equals_whole(x64, normalize):
    args, momentum = inputs(2, 13, 2, 4, 4)
    *tokens, weights = args
    options = dict(chunk_size=4, newton_schulz_steps=5, normalize=normalize)
    state = init_state(weights, 2, chunk_size=4, dtype=jnp.float64, rate_dtype=jnp.float64, momentum=True)

    @jax.jit
    def decode(state, tokens, momentum):
        def body(state, xs):
            *token, gate = [x[:, None] for x in xs]
            out, state = lact(*token, weights, momentum=gate, state=state, **options)
            return state, out[:, 0]

        xs = [jnp.moveaxis(x, 1, 0) for x in (*tokens, momentum)]
        return jax.lax.scan(body, state, xs)

    last, outs = decode(state, tokens, momentum)
    whole, expected = jax.jit(lambda a, m: lact(*a, momentum=m, **options))(args, momentum)
    close(jnp.moveaxis(outs, 0, 1), whole)
    trees_close(last.carry, expected.carry)


def test_update_then_apply_goes_on_at_chunk_edges(x64):
    args, momentum = inputs(1, 12, 1, 4, 4)
    *tokens, weights = args
    options = dict(chunk_size=4, order="update_then_apply")
    whole, last = lact(*args, momentum=momentum, **options)
    first, state = lact(*[x[:, :8] for x in tokens], weights, momentum=momentum[:, :8], **options)
    rest, state = lact(*[x[:, 8:] for x in tokens], weights, momentum=momentum[:, 8:], state=state, **options)
    close(jnp.concatenate([first, rest], axis=1), whole)
    trees_close(state, last)


def packed(lengths, total):
    """Segment ids of documents of these lengths; the same id comes back later on purpose."""
    ids = np.concatenate([np.full(n, i % 2) for i, n in enumerate(lengths)])
    return np.resize(np.pad(ids, (0, max(0, total - len(ids))), constant_values=7), total)


@functools.cache
def alone_run(lengths, normalize):
    """Every document in a call of its own."""
    args, momentum = inputs(2, 13, 1, 4, 4)

    def f(args, momentum):
        rows = []
        for b, row in enumerate(lengths):
            edges = np.cumsum([0, *row])
            outs = []
            for i, j in zip(edges[:-1], edges[1:], strict=True):
                one = [x[b : b + 1, i:j] for x in args[:4]]
                gate = momentum[b : b + 1, i:j]
                outs.append(lact(*one, args[4], momentum=gate, chunk_size=3, normalize=normalize)[0])
            rows.append(jnp.concatenate(outs, axis=1))
        return jnp.concatenate(rows)

    return with_gradients(f)(args, momentum)


@pytest.mark.parametrize(
    "lengths,normalize,cuts",
    [
        (((7, 6), (1, 12)), "post", ()),
        pytest.param(((7, 6), (1, 12)), "post", (2, 7), marks=pytest.mark.exhaustive),
        (((3, 3, 1, 6), (13,)), "pre", ()),
        (((3, 3, 1, 6), (13,)), "pre", (2, 7)),
        pytest.param(((2, 2, 2, 2, 2, 2, 1), (4, 9)), "post", (), marks=pytest.mark.exhaustive),
        (((2, 2, 2, 2, 2, 2, 1), (4, 9)), "post", (2, 7)),
    ],
)
def test_packing_equals_each_document_alone(x64, lengths, normalize, cuts):
    args, momentum = inputs(2, 13, 1, 4, 4)
    ids = jnp.asarray(np.stack([packed(row, 13) for row in lengths]))

    def f(args, momentum):
        if not cuts:
            return lact(*args, momentum=momentum, segment_ids=ids, chunk_size=3, normalize=normalize)[0]
        return run_split(args, momentum, cuts, ids, chunk_size=3, normalize=normalize)[0]

    out, grads = with_gradients(f)(args, momentum)
    alone, grads_alone = alone_run(lengths, normalize)
    close(out, alone)
    trees_close(grads, grads_alone)


packed_run = jax.jit(lambda a, m, s: lact(*a, momentum=m, segment_ids=s, chunk_size=3)[0])
alone_by_definition = jax.jit(lambda a, m: naive(a, m, 3))


@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**31))
def test_random_packings(lengths, seed):
    with jax.enable_x64(True):
        total = 16
        ids = packed(lengths, total)
        edges = [0, *(np.flatnonzero(np.diff(ids)) + 1), total]
        args, momentum = inputs(1, total, 1, 4, 4, seed)
        out = packed_run(args, momentum, jnp.asarray(ids)[None])
        for i, j in zip(edges[:-1], edges[1:], strict=True):
            piece = ([*(x[:, i:j] for x in args[:4]), args[4]], momentum[:, i:j])
            close(out[:, i:j], alone_by_definition(*piece))


def test_no_leak_by_gradient_and_perturbation(x64):
    args, momentum = inputs(1, 13, 1, 4, 4)
    *tokens, weights = args

    def once(x, m):
        return lact(*x, weights, momentum=m, chunk_size=4, newton_schulz_steps=5)[0][0]

    def reached(jacobian):  # [T out, T in]
        return np.any(np.asarray(jacobian)[:, :, :, 0] != 0, axis=(1, 2, *range(4, jacobian.ndim - 1)))

    run = jax.jit(once)
    jac_q, jac_k, jac_v, jac_lr = jax.jit(jax.jacrev(once))(tokens, momentum)
    chunk = np.arange(13) // 4
    np.testing.assert_array_equal(reached(jac_q), np.eye(13, dtype=bool))
    for jac in (jac_k, jac_v, jac_lr):
        # Each chunk reaches every later one (so the test can see) and neither its own nor an earlier one.
        np.testing.assert_array_equal(reached(jac), chunk[None, :] < chunk[:, None])
    changed = [tokens[0], *[x.at[:, 8:].add(1.0) for x in tokens[1:]]]
    np.testing.assert_array_equal(run(changed, momentum)[:12], run(tokens, momentum)[:12])
    assert jnp.any(run(changed, momentum)[12:] != run(tokens, momentum)[12:])


@pytest.mark.parametrize("order", ["apply_then_update", "update_then_apply"])
def test_linear_fast_weight_is_linear_attention(x64, order):
    """With silu(W0 x) = 1 for every token (W0 reads a constant feature at the g with silu(g) = 1, and does not learn)
    and W2 = identity (not learning), f(x) = W1 x; plain SGD at chunk 1 then adds lr v k^T per token."""
    b, t, n, h = 2, 9, 2, 4
    (q, k, v, lr, (_, w1, _)), _ = inputs(b, t, n, h, h)
    g = 1.0
    for _ in range(50):  # Newton's method for g * sigmoid(g) = 1
        s = 1 / (1 + np.exp(-g))
        g -= (g * s - 1) / (s * (1 + g * (1 - s)))
    q, k = q.at[..., 0].set(1.0), k.at[..., 0].set(1.0)
    w0 = jnp.zeros((1, n, h, h)).at[..., 0].set(g)
    w2 = jnp.broadcast_to(jnp.eye(h), (1, n, h, h))
    lr = lr * jnp.asarray([0.0, 1.0, 0.0])
    out, _ = lact(q, k, v, lr, (w0, w1, w2), chunk_size=1, normalize="none", order=order)
    seen = jnp.tril(jnp.ones((t, t)), 0 if order == "update_then_apply" else -1)
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * seen
    linear = jnp.einsum("bnts,bsn,bsnh->btnh", scores, lr[..., 1], v) + jnp.einsum("btnh,nfh->btnf", q, w1[0])
    close(out, linear)


@pytest.mark.parametrize("normalize", ["post", "pre"])
def test_zero_and_rank_poor_updates_are_safe(normalize):
    args, momentum = inputs(1, 16, 1, 8, 8, dtype=np.float32)
    q, k, v, lr, weights = args
    rank_one = jnp.broadcast_to(k[:, :1], k.shape)
    options = dict(chunk_size=4, momentum=momentum, newton_schulz_steps=5, normalize=normalize)
    run = jax.jit(jax.value_and_grad(lambda *a: probe(lact(*a, **options)[0]), (0, 1, 2, 3, 4)))
    for keys, values in ((k, jnp.zeros_like(v)), (jnp.zeros_like(k), v), (rank_one, v)):
        value, grads = run(q, keys, values, lr, weights)
        assert jnp.isfinite(value) and all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("steps,tolerance", [(0, 5e-6), (5, 1e-4)])
def test_float32_is_close_to_float64(x64, steps, tolerance):
    args, momentum = inputs(1, 24, 2, 8, 8)
    run = jax.jit(lambda a, m: lact(*a, chunk_size=8, momentum=m, newton_schulz_steps=steps)[0])
    single = run(*jax.tree.map(lambda x: x.astype(jnp.float32), (args, momentum)))
    assert single.dtype == jnp.float32
    close(single, run(args, momentum), tolerance)


def test_bfloat16_tokens_keep_float32_weights(x64):
    args, momentum = inputs(1, 24, 2, 8, 8)
    low = [x.astype(jnp.bfloat16) for x in args[:3]]
    exact = [x.astype(jnp.float64) for x in low]
    out, state = lact(*low, args[3].astype(jnp.float32), [w.astype(jnp.float32) for w in args[4]], chunk_size=8)
    assert out.dtype == jnp.bfloat16 and state.carry.main[0].dtype == jnp.float32
    # Two updates and two layers round operands (2^-8 each), relative to the largest output.
    close(out.astype(jnp.float64), lact(*exact, *args[3:], chunk_size=8)[0], 8 * 2**-8)


def test_errors_name_the_argument():
    args, momentum = inputs(1, 8, 1, 4, 4, dtype=np.float32)
    q, k, v, lr, weights = args
    for change, message in (
        (dict(chunk_size=0), "chunk_size=0"),
        (dict(normalize="l2"), "normalize='l2'"),
        (dict(order="both"), "order='both'"),
        (dict(coefficients="quintic"), "coefficients='quintic'"),
        (dict(momentum=momentum[:, :4]), r"momentum has shape \(1, 4, 1\)"),
        (dict(state=lact(*args, chunk_size=8)[1]), "state has"),
        (dict(state=lact(*args, chunk_size=4)[1], momentum=momentum), "no momentum buffer"),
    ):
        with pytest.raises(ValueError, match=message):
            lact(*args, **{"chunk_size": 4, "newton_schulz_steps": 5, **change})
    with pytest.raises(ValueError, match=r"lr has shape"):
        lact(q, k, v, lr[..., :2], weights, chunk_size=4)
    with pytest.raises(ValueError, match=r"weights\[1\]"):
        lact(q, k, v, lr, (weights[0], weights[1][:, :, :2], weights[2]), chunk_size=4)
    with pytest.raises(NotImplementedError, match="pallas_tpu"):
        lact(*args, chunk_size=4, implementation="pallas_tpu")
    with pytest.raises(NotImplementedError, match="segment_ids"):
        lact(*args, chunk_size=4, order="update_then_apply", segment_ids=jnp.zeros((1, 8), jnp.int32))
