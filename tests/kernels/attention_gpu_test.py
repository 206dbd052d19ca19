"""The GPU flash kernels: equal to float64 in the interpreter, and lowered for CUDA at full size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import attention, gpu
from kernels.attention.scoring import Scoring
from kernels.masks import Causal, Segments
from kernels.platforms import lower_for_cuda
from tests.kernels import attention_cases as cases


@pytest.mark.parametrize("case", cases.cases(), ids=lambda case: case.name)
def test_equals_float64(case):
    given = cases.inputs(case)
    actual, wanted = cases.kernel_results(gpu, case, given), cases.reference_results(case, given)
    cases.assert_close(actual, wanted, relative=2e-6)


def test_bfloat16_is_within_its_roundings():
    case = cases.Case("bfloat16", Causal(), 200, 200, N=2, K=2, H=64)
    given = cases.inputs(case, jnp.bfloat16)
    actual, wanted = cases.kernel_results(gpu, case, given), cases.reference_results(case, given)
    cases.assert_within_roundings(actual, wanted, case, given)


def test_what_nobody_sees_may_be_nan():
    ids = (np.arange(150) < 70).astype(np.int32)[None]
    case = cases.Case("poison", Causal() & Segments(ids), 150, 150)
    clean = cases.inputs(case)
    poisoned = [jnp.where(ids[..., None, None] > 0, x, jnp.nan) for x in clean[:3]]
    expected = cases.kernel_results(gpu, case, clean)
    actual = cases.kernel_results(gpu, case, (*poisoned, *clean[3:]))
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name])


@pytest.mark.parametrize("T", [8192, 131072])
@pytest.mark.parametrize("name", cases.accelerator_masks(8192))
def test_lowers_for_cuda(name, T):
    masks = cases.accelerator_masks(T)
    if name not in masks:
        pytest.skip("a dense mask of 131,072 squared has 17 GB")
    mask, extra = masks[name]
    for (fn, shapes), kernels in zip(cases.programs(gpu, mask, extra, T), (1, 2), strict=True):
        assert lower_for_cuda(fn, *shapes).count("@__gpu$xla.gpu.triton") == kernels


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("H", [32, 80, 256])
def test_lowers_for_every_width(H, dtype):
    q = jax.ShapeDtypeStruct((2, 1000, 2, H), dtype)
    lower_for_cuda(lambda q: gpu.forward(q, q, q, Scoring(Causal(), 1.0, softcap=30.0)), q)


def test_refuses_in_words():
    q = jnp.zeros((1, 8, 1, 512))
    with pytest.raises(NotImplementedError, match="up to 256 wide, not H=512"):
        gpu.forward(q, q, q, Scoring(Causal(), 1.0))
    q = jnp.zeros((1, 8, 1, 32))
    with pytest.raises(NotImplementedError, match="no bias; use implementation='chunked'"):
        gpu.forward(q, q, q, Scoring(Causal(), 1.0, jnp.zeros((1, 1, 8, 8))))


def test_a_cuda_program_made_on_a_cpu_host_holds_the_kernels():
    q = jax.ShapeDtypeStruct((1, 2048, 4, 64), jnp.bfloat16)

    def loss(q, k, v):
        return attention(q, k, v, mask="causal & window(256)").astype(jnp.float32).sum()

    assert lower_for_cuda(loss, q, q, q).count("@__gpu$xla.gpu.triton") == 1
    assert lower_for_cuda(jax.grad(loss, argnums=(0, 1, 2)), q, q, q).count("@__gpu$xla.gpu.triton") == 3


def test_lowers_with_64_bit_types_on(x64):
    q = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 256), jnp.int32)

    def loss(q, ids):
        out = attention(q, q, q, mask=Causal() & Segments(ids), implementation="pallas_gpu")
        return out.sum()

    assert lower_for_cuda(jax.grad(loss), q, ids).count("@__gpu$xla.gpu.triton") == 3
