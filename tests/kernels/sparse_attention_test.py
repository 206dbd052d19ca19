"""Kernels of sparse prefill: lists of a head walked on TPUs and GPUs give what float64 does, and compile."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels import masks
from kernels.attention import sparse, sparse_gpu, sparse_lanes, sparse_tpu
from kernels.platforms import lower_for_cuda, races_found
from tests.kernels.described import compile_for_tpu
from tests.models.memory.prefill_test import PATTERNS, ROWS, SIZE, H, K, N, drawn, seen

KERNELS = (sparse_tpu, sparse_gpu)
SINKS = (0.5, -1.0, 2.0, 0.0)
CASES = {
    "plain": {},
    "capped": {"softcap": 3.0, "sinks": SINKS, "mask": masks.Causal() & masks.Window(30, 30)},
}


@functools.cache
def given(case, dtype=jnp.float32, which=(0, 1, 2, 3)):
    """(sizes, q, k, v, lists) of some rows of unlike lengths; the lists are found in float64."""
    exact = [x[list(which)] for x in drawn()]
    q, k, v = (x.astype(dtype) for x in map(jnp.asarray, exact))
    options = CASES[case]
    sinks = None if "sinks" not in options else jnp.asarray(SINKS)
    heads, mask = sparse.Heads.of(PATTERNS, SIZE), options.get("mask", masks.Causal())
    n = -(-SIZE // heads.block)
    size = sparse_lanes.Sizes(N, K, H, heads.block, n, SIZE, mask, options.get("softcap"), sinks is not None)
    lists = jax.jit(lambda q, k: sparse.find(q, k, heads, jnp.asarray(ROWS)[jnp.asarray(which)]))(*exact[:2])
    return size, q, k, v, sparse_lanes.Listed.of(lists, size, sinks)


def within(size, q, k, v):
    """Dense attention of one row under what its heads see, in float64, and the largest score."""
    T = len(q)
    mask = seen(*(x.astype(np.float64) for x in (q, k)), size.block) & np.asarray(size.mask.dense(T, T))
    x = np.einsum("tnh,snh->nts", q, np.repeat(k, N // K, axis=1)) / np.sqrt(H)
    x = x if size.softcap is None else size.softcap * np.tanh(x / size.softcap)
    e = np.where(mask, np.exp(x), 0)
    total = e.sum(-1, keepdims=True) + (np.exp(np.asarray(SINKS))[:, None, None] if size.sunk else 0)
    return np.einsum("nts,snh->tnh", e / total, np.repeat(v, N // K, axis=1)), np.abs(x).max()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("module", KERNELS, ids=lambda module: module.__name__.rpartition("_")[2])
def test_equals_float64(module, case):
    watched = module is sparse_tpu and case == "plain"  # Whether a tile is read while it is copied: slow, so two rows.
    which = (1, 2) if watched else (0, 1, 2, 3)
    size, q, k, v, listed = given(case, which=which)
    out = module.forward(size, q, k, v, listed, interpret=pltpu.InterpretParams(detect_races=True) if watched else True)
    assert not watched or not races_found()
    out = np.asarray(sparse_lanes.token_major(out, size, len(which)), np.float64)
    for row, of in enumerate(which[:3]):
        n = ROWS[of]
        want, top = within(size, *(np.asarray(x[of, :n], np.float64) for x in drawn()))
        # A score is a sum of H products, rounded H + 4 times; so much of itself each weight errs, and values are means.
        near = 2 * (H + 4) * np.finfo(np.float32).eps * max(top, 1) * np.abs(drawn()[2]).max()
        np.testing.assert_allclose(out[row, :n], want, rtol=0, atol=near)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("module", KERNELS, ids=lambda module: module.__name__.rpartition("_")[2])
def test_bfloat16_is_rounded_weights(module):
    """Weights are rounded to 8 bits before they meet the values; all else is as in float32."""
    size, q, k, v, listed = given("plain", jnp.bfloat16)
    out = module.forward(size, q, k, v, listed, interpret=True)
    want = sparse_lanes.forward(size, *(x.astype(jnp.float32) for x in (q, k, v)), listed)
    near = 2.0**-8 * float(jnp.abs(v.astype(jnp.float32)).max())
    real = lambda x: np.asarray(sparse_lanes.token_major(x, size, len(ROWS)))[1, : ROWS[1]]  # noqa: E731
    np.testing.assert_allclose(real(out), real(want), rtol=0, atol=near)


LONG = 8192
HEADS = [sparse.Pattern("vertical_slash", 1000, 200), sparse.Pattern("a_shape", 100, 800)] * 2


def program(dtype, width):
    heads = sparse.Heads.of(HEADS, LONG)
    shapes = [jax.ShapeDtypeStruct((1, LONG, heads, width), dtype) for heads in (4, 2, 2)]
    run = lambda q, k, v, length: sparse.sparse_attention(q, k, v, heads, length=length)  # noqa: E731
    return run, (*shapes, jax.ShapeDtypeStruct((1,), jnp.int32))


@pytest.mark.parametrize(("generation", "dtype", "width"), [
    ("v5e", jnp.bfloat16, 64), ("v5p", jnp.float32, 128), ("v6e", jnp.bfloat16, 128),
])  # fmt: skip
def test_compiles_for_a_chip_without_an_array_of_all_pairs(generation, dtype, width):
    run, shapes = program(dtype, width)
    compiled = compile_for_tpu(run, *shapes, generation=generation)
    assert compiled.as_text().count("tpu_custom_call") == 1
    assert compiled.memory_analysis().temp_size_in_bytes < LONG * LONG


def test_lowers_for_cuda_without_an_array_of_all_pairs():
    run, shapes = program(jnp.bfloat16, 64)
    text = lower_for_cuda(run, *shapes)
    assert text.count("@__gpu$xla.gpu.triton") == 1 and f"{LONG}x{LONG}x" not in text


def test_blocks_that_no_kernel_takes_are_loops_there():
    """Blocks of 8 tokens: the program of a TPU and of a GPU is that of plain JAX."""
    heads = sparse.Heads.of([sparse.Pattern("block_sparse", 4, 8)], 256)
    shape = jax.ShapeDtypeStruct((1, 256, 1, 32), jnp.bfloat16)
    run = lambda q, n: sparse.sparse_attention(q, q, q, heads, length=n)  # noqa: E731
    traced = jax.jit(run).trace(shape, jax.ShapeDtypeStruct((1,), jnp.int32))
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "tpu_custom_call" not in text and "triton" not in text and "stablehlo.while" in text


def test_refuses_in_words():
    heads = sparse.Heads.of([sparse.Pattern("a_shape", 1, 4)], 8)
    q, length = jnp.zeros((1, 8, 1, 16)), jnp.asarray([8])
    with pytest.raises(ValueError, match="implementation='magic' is not known; use None or one of"):
        sparse.sparse_attention(q, q, q, heads, length=length, implementation="magic")
    with pytest.raises(NotImplementedError, match="runs on tpu only; use implementation='lanes' or None"):
        sparse.sparse_attention(q, q, q, heads, length=length, implementation="pallas_tpu")
    size, *_ = given("plain")
    small, lists = size._replace(block=8), given("plain")[-1]
    for module, says in ((sparse_tpu, "a multiple of 16 tokens, not 8"), (sparse_gpu, "blocks of 16, 32, 64, ... tok")):
        with pytest.raises(NotImplementedError, match=says):
            module.forward(small, q, q, q, lists)
    with pytest.raises(NotImplementedError, match="heads up to 256 wide, not H=300"):
        sparse_gpu.forward(size._replace(H=300), q, q, q, lists)
    for module in KERNELS:
        with pytest.raises(NotImplementedError, match="bfloat16 or float32, not float16"):
            module.forward(size, *(q.astype(jnp.float16),) * 3, lists)


def test_named_loops_are_those_of_this_platform():
    heads = sparse.Heads.of(PATTERNS, SIZE)
    q, k, v = (jnp.asarray(x, jnp.float32) for x in drawn())
    run = lambda **more: sparse.sparse_attention(q, k, v, heads, length=jnp.asarray(ROWS), **more)  # noqa: E731
    np.testing.assert_array_equal(run(), run(implementation="lanes"))
