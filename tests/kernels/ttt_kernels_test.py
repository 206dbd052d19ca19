"""TTT's kernels: values and gradients against the definition, what is learned from, absent chips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.platforms import lower_for_cuda
from kernels.ttt import TTTParams, gpu, tpu, ttt_linear
from tests.kernels.described import compile_for_tpu, moves
from tests.kernels.probed import with_gradients
from tests.kernels.ttt_test import F64, OPS, inputs, naive

KERNELS = [{"implementation": name, "interpret": True} for name in ("pallas_tpu", "pallas_gpu")]
each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda by: by["implementation"])
# (B, T, N, H, K): ten mini-batches in groups of three, a short one behind them; two that fill the row.
SIZES = {"linear": (1, 43, 2, 16, 4), "mlp": (1, 8, 1, 4, 4)}


def close(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=F64 * max(1, abs(b).max()))


@each_kernel
@pytest.mark.parametrize("kind", OPS)
def test_kernels_equal_the_definition_with_gradients(x64_in_threads, kernel, kind):
    *size, K = SIZES[kind]
    args = inputs(kind, *size, K)
    got = with_gradients(lambda *a: OPS[kind](*a, mini_batch=K, **kernel)[0])(*args)
    close(got, with_gradients(lambda *a: naive(*a, K))(*args))
    assert all(float(jnp.abs(g).max()) > 1e-4 for g in jax.tree.leaves(got))


@each_kernel
@pytest.mark.parametrize("kind, T", [("mlp", 23), ("linear", 16)])
def test_the_state_and_its_gradients_are_those_of_the_formulas(x64_in_threads, kernel, kind, T):
    """A row that ends in the middle of a mini-batch, and one that ends with one: that is not learned from."""
    args = inputs(kind, 1, T, 2, 4, 4)

    def last(*args, **by):
        out, state = OPS[kind](*args, mini_batch=4, **by)
        return jnp.concatenate([x.ravel() for x in (out, *jax.tree.leaves(state.layers))])

    got, want = (with_gradients(functools.partial(last, **by))(*args) for by in (kernel, {"implementation": "chunked"}))
    close(got, want)


@each_kernel
def test_bfloat16_is_rounded_as_the_formulas_are(x64_in_threads, kernel):
    """Operands of the same products are rounded: the kernel is as far from float64 as the formulas in jnp, twice."""
    args = inputs("linear", 1, 32, 1, 64, 16)
    low = [x.astype(jnp.bfloat16) for x in args[:3]] + [args[3].astype(jnp.float32)]
    params = jax.tree.map(lambda x: x.astype(jnp.float32), args[4])
    exact = ttt_linear(*(x.astype(jnp.float64) for x in low), jax.tree.map(lambda x: x.astype(jnp.float64), params))[0]
    errors = [
        float(jnp.abs(jax.jit(functools.partial(ttt_linear, **by))(*low, params)[0].astype(jnp.float64) - exact).max())
        for by in (kernel, {"implementation": "chunked"})
    ]
    assert 0 < errors[0] <= 2 * errors[1]


def shapes(B, T, N, H, F, dtype=jnp.bfloat16):
    s = jax.ShapeDtypeStruct
    sides = [(H, H)] if F == H else [(H, F), (F, H)]
    layers = tuple((s((1, N, a, b), jnp.float32), s((1, N, b), jnp.float32)) for a, b in sides)
    norm = s((N, H), jnp.float32)
    params = TTTParams(layers, norm, norm, s((16,), jnp.float32))
    return *(s((B, T, N, H), dtype),) * 3, s((B, T, N), jnp.float32), params


def program(kind, **options):
    def run(*args):
        return jax.grad(lambda *a: jnp.sum(OPS[kind](*a, **options)[0].astype(jnp.float32)), (0, 1, 2, 3, 4))(*args)

    return run


@pytest.mark.parametrize("generation, kind, F", [("v5e", "linear", 64), ("v5p", "mlp", 256), ("v6e", "linear", 64)])
def test_tpu_kernels_compile_by_themselves(generation, kind, F):
    compiled = compile_for_tpu(program(kind), *shapes(1, 512, 1, 64, F), generation=generation)
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 2


@pytest.mark.parametrize("kind, F", [("linear", 64), ("mlp", 256)])
def test_tpu_kernels_move_little_beyond_their_arrays(kind, F):
    """Backward the keys, values and rates are read on the way forth, too; the kept maps count as arrays."""
    found = moves(program(kind), *shapes(1, 2048, 4, 64, F))
    assert found["ttt_forward"] <= 1.01 and 1.1 < found["ttt_backward"] <= 1.3


@pytest.mark.parametrize("kind, H, F", [("linear", 64, 64), ("mlp", 32, 128)])
def test_gpu_kernels_lower_where_they_are_named(kind, H, F):
    """forward, and in the loop over groups again and pull."""
    text = lower_for_cuda(program(kind, implementation="pallas_gpu"), *shapes(1, 512, 2, H, F))
    assert text.count("@__gpu$xla.gpu.triton") == 3
    assert "triton" not in lower_for_cuda(program(kind), *shapes(1, 512, 2, H, F))


def test_what_no_gpu_kernel_takes_is_refused():
    for (H, F), words in {(64, 256): "128 KiB", (24, 24): "24 is no power of two"}.items():
        with pytest.raises(NotImplementedError, match=words):
            named = program("linear" if H == F else "mlp", implementation="pallas_gpu")
            jax.eval_shape(named, *shapes(1, 32, 1, H, F))
    assert "float64" in gpu.too_large(shapes(1, 32, 1, 16, 16)[4].layers, 16, jnp.dtype("float64"))
    with pytest.raises(NotImplementedError, match="runs on a CUDA GPU only"):
        jax.jit(functools.partial(ttt_linear, implementation="pallas_gpu")).lower(*shapes(1, 32, 1, 16, 16))


def test_what_no_kernel_takes_stays_with_the_formulas():
    q, k, v, eta, params = shapes(1, 32, 1, 8, 8)
    assert "custom_call" not in lower_for_cuda(program("linear"), q, k, v, eta, params)
    assert "float64" in tpu.too_large(params.layers, 2, jnp.dtype("float64"))
    assert "VMEM" in tpu.too_large(shapes(1, 32, 1, 1024, 4096)[4].layers, 512, jnp.dtype("bfloat16"))
    named = functools.partial(ttt_linear, implementation="pallas_tpu")
    with pytest.raises(NotImplementedError, match="documents or padding have no kernel"):
        jax.eval_shape(functools.partial(named, lengths=jnp.ones(1, int)), q, k, v, eta, params)
    with pytest.raises(NotImplementedError, match="runs on a TPU only"):
        jax.jit(named).lower(q, k, v, eta, params)
    with pytest.raises(NotImplementedError, match="'fast'"):
        jax.eval_shape(functools.partial(ttt_linear, implementation="fast"), q, k, v, eta, params)
