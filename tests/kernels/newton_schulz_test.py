"""Newton-Schulz against singular values, its kernels against the reference, and the compilers of chips not here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kernels.lact import lact
from kernels.newton_schulz import COEFFICIENTS, gpu, newton_schulz, tpu
from kernels.newton_schulz.reference import newton_schulz_gradient, newton_schulz_reference, triples
from kernels.newton_schulz.shapes import PUBLISHED, SMALL
from kernels.platforms import lower_for_cuda
from tests.kernels.described import compile_for_tpu

KERNELS = {"tpu": tpu.newton_schulz_kernel, "gpu": gpu.newton_schulz_kernel}


def draw(shape, dtype=np.float64, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("shape", SMALL.values())
def test_acts_on_singular_values_alone(x64, shape, name):
    """U s V^T goes to U p(s) V^T, with p the odd polynomial of the steps applied to s / (||s|| + 1e-7)."""
    g = np.asarray(draw(shape))
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    s = s / (np.sqrt(np.sum(s**2, -1, keepdims=True)) + 1e-7)
    for a, b, c in triples(5, name):
        s = a * s + b * s**3 + c * s**5
    # A step multiplies rounding by at most its a (4.08): about 4^5 over five steps.
    np.testing.assert_allclose(
        newton_schulz(jnp.asarray(g), 5, name), (u * s[..., None, :]) @ vt, atol=1e-15 * 4**5 * 10
    )


def test_published_ranges_of_singular_values(x64):
    for name, low, high in (("quintic5", 0.97, 1.15), ("nvs", 0.67, 1.21)):
        values = np.linspace(0.05, 1, 200)
        g = jnp.asarray(np.diag(values))
        out = np.linalg.svd(newton_schulz(g * 1.0, 5, name), compute_uv=False)
        scaled = values / np.linalg.norm(values)
        assert out.max() <= high
        assert out[np.argsort(-values)][scaled > 0.05].min() >= low


def test_steps_zero_and_repeats(x64):
    g = draw((4, 6))
    assert newton_schulz(g, 0) is g
    one = newton_schulz(g, 1, [(1.5, -0.5, 0.0)])
    x = g / (jnp.linalg.norm(g) + 1e-7)
    np.testing.assert_allclose(one, 1.5 * x - 0.5 * x @ x.T @ x, atol=1e-15)
    assert triples(7, "quintic5")[4:] == (COEFFICIENTS["quintic5"][-1],) * 3


def test_muon_of_the_library_computes_the_same(x64):
    """Why the optimizer needs no kernel of ours. Their epsilon is 1e-8 and ours 1e-7, of a norm of about 20."""
    g = draw((24, 16))
    muon = optax.contrib.scale_by_muon(beta=0.0, nesterov=False)
    update, _ = muon.update(g, muon.init(g))
    np.testing.assert_allclose(newton_schulz(g, 5, "nvs"), update, atol=1e-7 / 20 * 4**5)


def test_zero_matrix_is_safe_with_gradient():
    for dtype in (jnp.float32, jnp.bfloat16):
        value, grad = jax.value_and_grad(lambda g: newton_schulz(g).astype(jnp.float32).sum())(jnp.zeros((4, 6), dtype))
        assert value == 0 and bool(jnp.all(jnp.isfinite(grad)))


def test_gradient_against_differences(x64):
    g, direction, weight = draw((3, 4)), draw((3, 4), seed=1), draw((3, 4), seed=2)
    f = jax.jit(lambda g: jnp.sum(weight * newton_schulz(g)))
    step = 1e-5  # error of a central difference: step^2 * third derivative, here about 1e-10 * 1e3
    numeric = (f(g + step * direction) - f(g - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(jax.grad(f)(g) * direction), numeric, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 4, 6), (6, 4)])
def test_gradient_by_hand_equals_that_of_the_steps(x64, shape):
    g, cotangent, schedule = draw(shape), draw(shape, seed=1), triples(5, "quintic5")
    _, pull = jax.vjp(functools.partial(newton_schulz_reference, schedule=schedule), g)
    by_hand = newton_schulz_gradient(g, cotangent, schedule)
    # Rounding of a step is multiplied by at most 4 in each that follows, forward and backward.
    np.testing.assert_allclose(by_hand, pull(cotangent)[0], rtol=0, atol=2.0**-53 * 4**10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("shape", SMALL.values())
def test_kernel_in_interpret_mode_equals_reference(shape, name, dtype):
    g = draw(shape, dtype)
    schedule = triples(5, "quintic5")
    out = jax.jit(functools.partial(KERNELS[name], schedule=schedule, interpret=True))(g)
    assert out.dtype == dtype and out.shape == g.shape
    # Sums in another order: eps per product, multiplied by at most 4 per step (as above).
    tolerance = float(jnp.finfo(dtype).eps) * (4**5 if dtype == jnp.float32 else 4)
    expected = newton_schulz_reference(g, schedule)
    np.testing.assert_allclose(out.astype(jnp.float32), expected.astype(jnp.float32), atol=tolerance)


@pytest.mark.parametrize(("generation", "shape", "dtype"), [
    pytest.param(chip, shape, dtype, marks=() if (chip == "v5p") == (dtype == jnp.float32) else pytest.mark.exhaustive)
    for chip in ("v5e", "v5p", "v6e")
    for shape, dtype in (((12, 384, 384), jnp.bfloat16), ((12, 768, 768), jnp.float32))
])  # fmt: skip
def test_tpu_kernel_compiles(generation, shape, dtype):
    assert shape in PUBLISHED.values()
    program = compile_for_tpu(newton_schulz, jax.ShapeDtypeStruct(shape, dtype), generation=generation)
    assert "newton_schulz" in program.as_text()


def test_tpu_gradient_and_odd_sizes_compile():
    loss = jax.grad(lambda g: newton_schulz(g, implementation="pallas_tpu").sum())
    compile_for_tpu(loss, jax.ShapeDtypeStruct((2, 63, 100), jnp.float32))


@pytest.mark.parametrize(
    "shape,dtype", [((12, 128, 128), jnp.bfloat16), ((2, 63, 100), jnp.bfloat16), ((2, 33, 64), jnp.float32)]
)
def test_gpu_kernel_lowers(shape, dtype):
    assert "newton_schulz" in lower_for_cuda(newton_schulz, jax.ShapeDtypeStruct(shape, dtype))


def test_what_does_not_fit_is_refused_by_name_and_falls_back_by_default():
    large = jax.ShapeDtypeStruct((384, 384), jnp.float32)
    with pytest.raises(NotImplementedError, match="384 x 384"):
        jax.eval_shape(functools.partial(newton_schulz, implementation="pallas_gpu"), large)
    assert "triton" not in lower_for_cuda(newton_schulz, large)
    assert "triton" not in lower_for_cuda(newton_schulz, jax.ShapeDtypeStruct((63, 100), jnp.float32))
    with pytest.raises(NotImplementedError, match="MiB of VMEM"):
        wide = jax.ShapeDtypeStruct((2048, 2048), jnp.float32)
        jax.eval_shape(functools.partial(newton_schulz, implementation="pallas_tpu"), wide)
    with pytest.raises(ValueError, match="'fast'"):
        newton_schulz(jnp.ones((2, 2)), implementation="fast")
    with pytest.raises(ValueError, match="steps=-1"):
        newton_schulz(jnp.ones((2, 2)), -1)


def test_lact_with_newton_schulz_compiles_for_tpu_and_lowers_for_cuda():
    tokens = jax.ShapeDtypeStruct((1, 512, 2, 128), jnp.bfloat16)
    rates = jax.ShapeDtypeStruct((1, 512, 2, 3), jnp.float32)
    weights = (jax.ShapeDtypeStruct((1, 2, 128, 128), jnp.float32),) * 3

    def loss(q, k, v, lr, weights):
        out, _ = lact(q, k, v, lr, weights, chunk_size=128, newton_schulz_steps=5, momentum=lr[..., 0])
        return jnp.sum(out.astype(jnp.float32))

    step = jax.grad(loss, (0, 1, 2, 3, 4))
    args = (tokens, tokens, tokens, rates, weights)
    assert "newton_schulz" in compile_for_tpu(step, *args).as_text()
    assert "newton_schulz" in lower_for_cuda(step, *args)
