"""LaCT's kernels: values against loops, gradients, roundings of bfloat16, what they hold, chips that are not here."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.lact import apply_fast_weights, fast_weight_gradient, gpu, lact, tpu
from kernels.platforms import lower_for_cuda
from tests.kernels.described import compile_for_tpu, moves
from tests.kernels.lact_test import NS5, inputs, naive
from tests.kernels.probed import joined, with_gradients
from tests.plain import fast_weights


def drawn(B, C, N, H, F, seed=0):
    """(x or k, v, lr, w0, w1, w2) in numpy, hidden activations of order one."""
    rng = np.random.default_rng(seed)
    k, v = (rng.normal(size=(B, C, N, H)) for _ in range(2))
    w0, w1, w2 = (rng.normal(size=(B, N, *s)) / s[1] ** 0.5 for s in ((F, H), (H, F), (F, H)))
    return k, v, rng.uniform(0.01, 0.3, (B, C, N, 3)), w0, w1, w2


def both(network, k, v, lr, *weights):
    """What is read at k and what is learned there."""
    read, learn = network
    return read(k, weights), *learn(k, v, lr, weights)


PLAIN = (apply_fast_weights, fast_weight_gradient)


@pytest.mark.parametrize("size", [(2, 37, 1, 8, 12), (1, 16, 2, 20, 40)])
@pytest.mark.parametrize("module", [tpu, gpu])
def test_values_and_gradients_in_float64(x64_in_threads, monkeypatch, module, size):
    """Two whole tiles and five tokens of a third; one tile, on a GPU three of hidden units. Gradients against those of
    the formulas in jnp."""
    monkeypatch.setattr(tpu, "TILE", 16)
    monkeypatch.setattr(gpu, "_tile", lambda width: 16)
    args = drawn(*size)
    result, gradients = with_gradients(functools.partial(both, module.INTERPRETED), joined)(*map(jnp.asarray, args))
    plain = fast_weights.applied(args[0], *args[3:]), *fast_weights.learned(*args)
    wanted = with_gradients(functools.partial(both, PLAIN), joined)(*map(jnp.asarray, args))[1]
    for got, want in zip((*result, *gradients), (*plain, *wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2.0**-52 * sum(size) * max(1, np.abs(want).max()))
        assert np.abs(got).max() > 1e-3


@pytest.mark.parametrize("order, normalize, T", [("apply_then_update", "post", 29), ("update_then_apply", "pre", 20)])
@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu"])
def test_a_layer_of_kernels_is_the_definition(x64_in_threads, implementation, order, normalize, T):
    args, momentum = inputs(1, T, 2, 8, 12)
    options = {"order": order, "normalize": normalize}

    def ours(q, k, v, lr, weights, momentum):
        given = {"chunk_size": 8, "newton_schulz_steps": 5, "implementation": implementation, "interpret": True}
        return lact(q, k, v, lr, weights, momentum=momentum, **given, **options)[0]

    def plain(q, k, v, lr, weights, momentum):
        return naive((q, k, v, lr, weights), momentum, 8, NS5, **options)

    got, want = (jax.tree.leaves(with_gradients(f)(*args, momentum)) for f in (ours, plain))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1, float(jnp.abs(b).max())))


def test_documents_go_through_kernels_too(x64_in_threads):
    args, _ = inputs(2, 21, 1, 8, 8)
    ids = jnp.asarray(np.stack([np.repeat([0, 1], [12, 9]), np.repeat([3, 4, 5], [2, 18, 1])]))
    call = lambda *args, **by: lact(*args, chunk_size=4, segment_ids=ids, **by)[0]  # noqa: E731
    kernels = {"implementation": "pallas_tpu", "interpret": True}
    got, want = (jax.tree.leaves(with_gradients(functools.partial(call, **by))(*args)) for by in (kernels, {}))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1, float(jnp.abs(b).max())))


@pytest.mark.parametrize("module", [tpu, gpu])
def test_bfloat16_within_its_roundings_at_a_published_width(x64_in_threads, module):
    """H = F = 384 as published. Operands of products are rounded; sums of their magnitudes bound what that does.

    Read: the hidden activations once and the result once. Learned: the right factor of each sum once. Weights and
    tokens are numbers of bfloat16.
    """
    low = [jnp.asarray(x, jnp.bfloat16) for x in drawn(1, 16, 1, 384, 384)]
    low[2] = low[2].astype(jnp.float32)
    k, v, lr, w0, w1, w2 = exact = [np.asarray(x, np.float64) for x in low]
    weights = [x.astype(jnp.float32) for x in low[3:]]
    got = jax.jit(functools.partial(both, module.INTERPRETED))(*low[:3], *weights)
    want = fast_weights.applied(k, w0, w1, w2), *fast_weights.learned(*exact)
    gate, up = (np.einsum("bcnh,bnfh->bcnf", k, w) for w in (w0, w2))
    back, s = np.einsum("bcnh,bnhf->bcnf", v, w1), fast_weights.sigmoid(gate)
    lr = np.moveaxis(lr, 3, 0)[..., None]
    sums = [lr[0] * back * up * (s + gate * s * (1 - s)), lr[1] * gate * s * up, lr[2] * back * gate * s]
    size, outer = np.abs, "bcni,bcnj->bnij"
    bounds = [
        np.einsum("bcnf,bnhf->bcnh", size(gate * s * up), size(w1)) + size(want[0]),
        np.einsum(outer, size(sums[0]), size(k)),
        np.einsum(outer, size(v), size(sums[1])),
        np.einsum(outer, size(sums[2]), size(k)),
    ]
    for g, w, bound in zip(got, want, bounds, strict=True):
        error = np.abs(np.asarray(g, np.float64) - w)
        # Sums of 384 terms in float32, of activations that are themselves such sums.
        assert np.all(error <= 2.0**-8 * bound + 2.0**-23 * 3 * 384 * bound.max()) and error.max() > 0


def shapes(B, T, N, H, F, dtype=jnp.bfloat16):
    s = jax.ShapeDtypeStruct
    return *(s((B, T, N, H), dtype),) * 3, s((B, T, N, 3), jnp.float32), (
        s((1, N, F, H), jnp.float32), s((1, N, H, F), jnp.float32), s((1, N, F, H), jnp.float32)
    )  # fmt: skip


def program(chunk, **options):
    def run(q, k, v, lr, weights):
        def scalar(*args):
            return jnp.sum(lact(*args, chunk_size=chunk, **options)[0].astype(jnp.float32))

        return jax.grad(scalar, (0, 1, 2, 3, 4))(q, k, v, lr, weights)

    return run


@pytest.mark.parametrize("generation, H, F", [("v5e", 384, 512), ("v5p", 768, 640), ("v6e", 384, 512)])
def test_kernels_compile_by_themselves_and_hold_no_activations(generation, H, F):
    """Two chunks of 2048 at published widths. Nothing that is F wide has tokens; of the formulas in jnp much has."""

    def wide(text):
        sizes = {tuple(map(int, x.split(","))) for x in re.findall(r"\[([\d,]+)\]", text)}
        return {x for x in sizes if x[-1] == F and math.prod(x) >= 2048 * F}

    made = shapes(1, 4096, 1, H, F)
    text = compile_for_tpu(program(2048), *made, generation=generation).as_text()
    for name in ("apply", "apply_backward", "learn", "learn_backward"):
        assert f"lact_{name}" in text
    assert not wide(text)
    assert wide(str(jax.make_jaxpr(program(2048, implementation="reference"))(*made)))


@pytest.mark.parametrize("H, F", [(384, 512), (768, 640)])
def test_kernels_move_their_arrays_once(H, F):
    found = moves(program(2048), *shapes(2, 4096, 2, H, F))
    assert set(found) == {"lact_apply", "lact_apply_backward", "lact_learn", "lact_learn_backward"}
    assert max(found.values()) == 1


def test_gpu_kernels_lower_where_they_are_named_and_hold_no_activations():
    """The gradient, which needs no result of reading; of the formulas in jnp much that is F wide has tokens."""
    texts = [
        lower_for_cuda(program(2048, implementation=name), *shapes(1, 4096, 1, 384, 640))
        for name in ("pallas_gpu", "reference")
    ]
    for name in ("read_tokens", "read_weights", "learn", "learn_tokens", "learn_weights"):
        assert f'"lact_{name}"' in texts[0], name
    activations = [re.search(r"tensor<[\dx]*x?2048x640x|tensor<[\dx]*x?640x2048x", text) for text in texts]
    assert activations[0] is None and activations[1]


def test_what_no_kernel_takes_stays_with_the_formulas():
    assert gpu.too_large(384, 4096, jnp.dtype("bfloat16")) is None
    assert "768 wide" in gpu.too_large(768, 768, jnp.dtype("bfloat16"))
    assert "float64" in gpu.too_large(8, 8, jnp.dtype("float64"))
    with pytest.raises(NotImplementedError, match="128 wide; up to 64"):
        jax.eval_shape(program(16, implementation="pallas_gpu"), *shapes(1, 32, 1, 128, 8, jnp.float32))
    with pytest.raises(NotImplementedError, match="cuda only"):
        jax.jit(program(16, implementation="pallas_gpu")).lower(*shapes(1, 32, 1, 16, 16))
    assert tpu.too_large(768, 768, jnp.dtype("bfloat16")) is None
    assert "VMEM" in tpu.too_large(2048, 2048, jnp.dtype("bfloat16"))
    assert "float64" in tpu.too_large(8, 8, jnp.dtype("float64"))
    given = shapes(1, 32, 1, 8, 8)
    assert "lact_" not in lower_for_cuda(program(16), *given).replace("lact_kernels", "")
    text = jax.jit(program(16)).lower(*given).as_text()
    assert "custom_call" not in text
    with pytest.raises(NotImplementedError, match="VMEM"):
        jax.eval_shape(program(16, implementation="pallas_tpu"), *shapes(1, 32, 1, 2048, 2048))
