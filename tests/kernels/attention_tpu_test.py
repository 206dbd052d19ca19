"""The TPU flash kernels: equal to float64 in the simulator, compiled for real chips, and no tile too many."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import attention, schedule, tpu, tpu_common
from kernels.attention.scoring import Result, Scoring
from kernels.masks import BlockDiffusion, Causal, Segments, Window
from tests.kernels import attention_cases as cases
from tests.kernels.described import compile_for_tpu

GENERATIONS = ("v5e", "v5p", "v6e")


@pytest.fixture
def small_blocks(monkeypatch):
    """Tiles of 128 x 128, so that short sequences have several of them."""
    monkeypatch.setattr(tpu_common, "blocks", lambda *sizes: (128, 128))


@pytest.mark.parametrize("case", cases.cases(), ids=lambda case: case.name)
def test_equals_float64(case, small_blocks):
    given = cases.inputs(case)
    actual, wanted = cases.kernel_results(tpu, case, given), cases.reference_results(case, given)
    cases.assert_close(actual, wanted, relative=2e-6)


def test_bfloat16_is_within_its_roundings(small_blocks):
    case = cases.Case("bfloat16", Causal(), 200, 200, N=2, K=2, H=64)
    given = cases.inputs(case, jnp.bfloat16)
    actual, wanted = cases.kernel_results(tpu, case, given), cases.reference_results(case, given)
    cases.assert_within_roundings(actual, wanted, case, given)


def test_large_batches_run_in_parts(small_blocks, monkeypatch):
    case = cases.Case("parts", Causal() & Segments(cases.segment_ids(3, 140)), 140, 140, B=3)
    given = cases.inputs(case)
    monkeypatch.setattr(tpu_common, "MOST_CODES", 2 * 4)
    assert len(tpu_common.batches(np.zeros((3, 4)), 3)) == 2
    # Not bit for bit what the whole gives: XLA fuses the two programs of the simulator differently.
    parts, wanted = cases.kernel_results(tpu, case, given), cases.reference_results(case, given)
    cases.assert_close(parts, wanted, relative=2e-6)


def test_what_nobody_sees_may_be_nan(small_blocks):
    ids = (np.arange(150) < 70).astype(np.int32)[None]
    case = cases.Case("poison", Causal() & Segments(ids), 150, 150)
    clean = cases.inputs(case)
    poisoned = [x if x is None else jnp.where(ids[..., None, None] > 0, x, jnp.nan) for x in clean[:3]]
    expected = cases.kernel_results(tpu, case, clean)
    actual = cases.kernel_results(tpu, case, (*poisoned, *clean[3:]))
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name])


@pytest.mark.parametrize(
    "mask", [Causal(), Causal() & Window(200), BlockDiffusion(512, 64)], ids=["causal", "window", "block_diffusion"]
)
def test_grid_has_a_step_for_each_needed_tile_and_no_other(mask, small_blocks):
    q = jax.ShapeDtypeStruct((1, 1024, 4, 32), jnp.float32)
    k = jax.ShapeDtypeStruct((1, 1024, 2, 32), jnp.float32)
    lse = jax.ShapeDtypeStruct((1, 4, 1024), jnp.float32)
    needed = np.asarray(mask.dense(1024, 1024)).reshape(8, 128, 8, 128).any((1, 3)).sum()
    assert needed < 40 and schedule.count(mask, 1024, 1024, 128, 128) == needed
    forward = jax.make_jaxpr(functools.partial(tpu.forward, scoring=Scoring(mask, 1.0)))(q, k, k)
    assert _grids(forward) == [(1, 4, needed)]
    backward = jax.make_jaxpr(
        lambda q, k, v, out, lse: tpu.backward(q, k, v, Scoring(mask, 1.0), Result(out, lse), Result(out, lse))
    )
    assert _grids(backward(q, k, k, q, lse)) == [(1, 4, needed), (1, 2, needed, 2)]


def _grids(jaxpr) -> list[tuple]:
    found = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "pallas_call"]
    return [tuple(eqn.params["grid_mapping"].grid) for eqn in found]


def each_mask_once() -> list[tuple[str, int, str]]:
    """Every mask for one chip at one length, so that every chip meets both lengths."""
    places = itertools.cycle(itertools.product(GENERATIONS, (8192, 131072)))
    short = [name for name in cases.accelerator_masks(8192) if name not in cases.accelerator_masks(131072)]
    both = cases.accelerator_masks(131072)
    return [(name, 8192, "v5e") for name in short] + [
        (name, T, chip) for name, (chip, T) in zip(both, places, strict=False)
    ]


@pytest.mark.parametrize(("name", "T", "generation"), each_mask_once())
def test_compiles_for_a_chip(name, T, generation):
    _compile(name, T, generation)


@pytest.mark.exhaustive
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("T", [8192, 131072])
@pytest.mark.parametrize("name", cases.accelerator_masks(8192))
def test_compiles_for_every_chip_and_mask(name, T, generation):
    if name not in cases.accelerator_masks(T):
        pytest.skip("a dense mask of 131,072 squared has 17 GB")
    _compile(name, T, generation)


@pytest.mark.parametrize(("H", "dtype"), [(80, jnp.bfloat16), (256, jnp.float32)], ids=["80-bfloat16", "256-float32"])
def test_compiles_for_a_width(H, dtype):
    test_compiles_for_every_width(H, dtype, ("v5e",))


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("H", [32, 64, 80, 96, 192, 256])
def test_compiles_for_every_width(H, dtype, generations=GENERATIONS):
    q = jax.ShapeDtypeStruct((2, 4000, 2, H), dtype)
    for generation in generations:
        compile_for_tpu(lambda q: tpu.forward(q, q, q, Scoring(Causal(), 1.0, softcap=30.0)), q, generation=generation)


def _compile(name: str, T: int, generation: str) -> None:
    mask, extra = cases.accelerator_masks(T)[name]
    for (fn, shapes), kernels in zip(cases.programs(tpu, mask, extra, T), (1, 2), strict=True):
        program = compile_for_tpu(fn, *shapes, generation=generation)
        assert program.as_text().count('custom_call_target="tpu_custom_call"') == kernels


def test_refuses_in_words():
    q = jnp.zeros((1, 8, 1, 32), jnp.float16)
    with pytest.raises(NotImplementedError, match="bfloat16 or float32, not float16.*'chunked'"):
        tpu.forward(q, q, q, Scoring(Causal(), 1.0))
    q = jnp.zeros((1, 8, 1, 32))
    with pytest.raises(NotImplementedError, match="no bias; use implementation='chunked'"):
        tpu.forward(q, q, q, Scoring(Causal(), 1.0, jnp.zeros((1, 1, 8, 8))))


def test_a_tpu_program_made_on_a_cpu_host_holds_the_kernels():
    q = jax.ShapeDtypeStruct((1, 2048, 4, 64), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, 2048, 2, 64), jnp.bfloat16)

    def loss(q, k, v):
        return attention(q, k, v, mask="causal & window(256)").astype(jnp.float32).sum()

    forward = compile_for_tpu(loss, q, k, k).as_text()
    gradient = compile_for_tpu(jax.grad(loss, argnums=(0, 1, 2)), q, k, k).as_text()
    assert _kernels(forward) == {"attention_forward"}
    assert _kernels(gradient) == {"attention_forward", "attention_backward_queries", "attention_backward_keys"}


def _kernels(program: str) -> set[str]:
    calls = [line for line in program.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    names = ("attention_forward", "attention_backward_queries", "attention_backward_keys")
    return {name for name in names if any(name in line for line in calls)}


def test_lowers_with_64_bit_types_on(x64):
    q = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 256), jnp.int32)

    def loss(q, ids):
        out = attention(q, q, q, mask=Causal() & Segments(ids), implementation="pallas_tpu")
        return out.sum()

    assert len(_kernels(compile_for_tpu(jax.grad(loss), q, ids).as_text())) == 3
