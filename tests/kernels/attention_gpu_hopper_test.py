"""The Hopper flash kernels: equal to float64 in the simulator, without races, and lowered for CUDA at full size."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import attention, gpu_hopper, gpu_hopper_common
from kernels.attention.scoring import Scoring
from kernels.masks import Causal, Dense, Full, Segments, Sinks, Window
from kernels.platforms import lower_for_cuda
from tests.kernels import attention_cases as cases
from tests.kernels.gpu_simulator import simulator  # noqa: F401 (a fixture)

MOSAIC = "@mosaic_gpu_v2"
IDS = cases.segment_ids(2, 150)
# At least two tiles each way, odd lengths, tiles of every class, rings that wrap; arrays, sinks, caps, grouped heads.
CASES = [
    (cases.Case("causal", Causal(), 277, 277, H=128), jnp.bfloat16),
    (cases.Case("packed", Causal() & Segments(IDS), 150, 150, H=64, sinks=True, B=2), jnp.bfloat16),
    (cases.Case("window_sinks", Window(40) | Sinks(3), 150, 277, 1, 1, 64, softcap=5.0), jnp.float16),
    (cases.Case("dense", Dense(np.random.default_rng(1).random((1, 2, 140, 150)) < 0.3), 140, 150, H=64), jnp.bfloat16),
]


@pytest.mark.parametrize("case, dtype", CASES, ids=[case.name for case, _ in CASES])
def test_is_within_its_roundings_and_without_races(case, dtype, simulator):  # noqa: F811
    given = cases.inputs(case, dtype)
    fed = given
    if case.name == "packed":  # what nobody sees may be NaN
        real = IDS[:, :, None, None] > 0
        fed = (*(jnp.where(real, x, jnp.nan) for x in given[:3]), *given[3:])
    actual = cases.kernel_results(gpu_hopper, case, fed, simulator)
    wanted = cases.reference_results(case, given)
    unit = {jnp.bfloat16: 2.0**-8, jnp.float16: 2.0**-11}[dtype]
    cases.assert_within_roundings(actual, wanted, case, given, unit)


def test_a_nan_reaches_whoever_sees_it_and_nobody_else(simulator):  # noqa: F811
    q, k, v, *_ = cases.inputs(cases.Case("nan", Causal(), 60, 60, 1, 1, 64), jnp.bfloat16)
    v = v.at[0, 20, 0, 7].set(jnp.nan)
    mask = Causal() & Segments(np.repeat([1, 2], 30).astype(np.int32))
    out, _ = jax.jit(lambda *given: gpu_hopper.forward(*given, Scoring(mask, 1.0), interpret=simulator))(q, k, v)
    finite = np.isfinite(np.asarray(out, np.float32)).all((0, 2, 3))
    assert finite[:20].all() and not finite[20:30].any() and finite[30:].all()


@pytest.mark.parametrize(
    "name, T", [("causal", 8192), *((x, 131072) for x in cases.accelerator_masks(131072)), ("dense", 8192)]
)
def test_lowers_for_cuda(name, T):
    mask, extra = cases.accelerator_masks(T)[name]
    for (fn, shapes), kernels in zip(cases.programs(gpu_hopper, mask, extra, T), (1, 1), strict=True):
        assert lower_for_cuda(fn, *shapes).count(MOSAIC) == kernels


def test_a_cuda_program_made_on_a_cpu_host_holds_the_kernels(x64):
    q = jax.ShapeDtypeStruct((1, 1000, 4, 64), jnp.float16)
    k = jax.ShapeDtypeStruct((1, 1000, 2, 64), jnp.float16)

    def loss(q, k, v):
        out = attention(q, k, v, softcap=30.0, sinks=jnp.zeros(4), implementation="pallas_gpu_hopper")
        return out.astype(jnp.float32).sum()

    program = lower_for_cuda(jax.grad(loss, argnums=(0, 1, 2)), q, k, k)
    assert program.count(MOSAIC) == 2 and "triton" not in program
    with pytest.raises(NotImplementedError, match="pallas_gpu_hopper' runs on cuda only"):
        jax.jit(loss).lower(q, k, k)


def test_refuses_in_words(monkeypatch):
    q = jnp.zeros((1, 8, 1, 96), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="64 or 128 wide, not H=96; use implementation='pallas_gpu'"):
        gpu_hopper.forward(q, q, q, Scoring(Causal(), 1.0))
    q = jnp.zeros((1, 8, 1, 64))
    with pytest.raises(NotImplementedError, match="bfloat16 or float16, not float32"):
        gpu_hopper.forward(q, q, q, Scoring(Full(), 1.0))
    q = q.astype(jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="no bias; use implementation='chunked'"):
        gpu_hopper.forward(q, q, q, Scoring(Causal(), 1.0, jnp.zeros((1, 1, 8, 8))))
    with pytest.raises(NotImplementedError, match="a positive scale, not -1.0"):
        gpu_hopper.forward(q, q, q, Scoring(Causal(), -1.0))
    monkeypatch.setattr(
        gpu_hopper_common, "cuda_versions", types.SimpleNamespace(cuda_runtime_get_version=lambda: 12080)
    )
    with pytest.raises(NotImplementedError, match="CUDA 12.8, whose compiler breaks masks; use CUDA 13"):
        gpu_hopper.forward(q, q, q, Scoring(Causal(), 1.0))
