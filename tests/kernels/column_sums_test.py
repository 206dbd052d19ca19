"""Column sums: every implementation is float64 sums over a dense array, under every mask, with grouped heads and noise.

Tolerance: a column adds G T weights of at most 1 that each err by the score's rounding: scores of up to 10 in 24 bits
err by 2^-20 at most in exp, sums by 2^-23 a term; in all 4e-6 of what all terms of the column are together, and 2e-6 of
a row's lse.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import attention, tpu_common
from kernels.attention.scoring import Scoring
from kernels.column_sums import Noise, chunked, column_sums, gpu, reference, row_lse, tpu
from kernels.masks import Causal, Segments
from kernels.platforms import lower_for_cuda
from tests.kernels import attention_cases as cases
from tests.kernels.described import compile_for_tpu
from tests.plain.cache import MASK, gumbel

NOISES = {"plain": None, "noise": Noise(7, 1.5)}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(tpu_common, "blocks", lambda *sizes: (128, 128))


def hashed(noise, N, T, S):
    """[N, T, S] of the noise, by tests/plain."""
    if noise is None:
        return np.zeros((N, T, S))
    at = [np.broadcast_to(x, (N, T, S)) for x in np.ix_(range(N), S - T + np.arange(T), range(S))]
    u = np.full((N, T, S), 0, np.uint64)
    for x in (noise.seed, *at):
        u = u ^ ((np.asarray(x).astype(np.int64) + 0x9E3779B9).astype(np.uint64) & np.uint64(MASK))
        for shift, times in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            u = (u ^ (u >> np.uint64(shift))) * np.uint64(times) & np.uint64(MASK)
    u = ((u >> np.uint64(9)).astype(np.float64) + 0.5) / 2**23
    return -np.log(-np.log(u))


def wanted(case, q, k, weights, noise):
    """(sums [B, K, S], lse [B, N, T], sums of the absolute terms) by loops over rows and heads in float64."""
    q, k, weights = (np.asarray(x, np.float64) for x in (q, k, weights))
    seen = np.broadcast_to(np.asarray(case.mask.dense(case.T, case.S)), (case.B, case.N, case.T, case.S))
    g, tau = hashed(noise, case.N, case.T, case.S), noise.tau if noise else 1.0
    sums, lse = np.zeros((2, case.B, case.K, case.S)), np.full((case.B, case.N, case.T), -np.inf)
    for b in range(case.B):
        for n in range(case.N):
            head = n // (case.N // case.K)
            x = q[b, :, n] @ k[b, :, head].T / math.sqrt(case.H)
            x = case.softcap * np.tanh(x / case.softcap) if case.softcap else x
            x = np.where(seen[b, n], (x + g[n]) / tau, -np.inf)
            for i in range(case.T):
                if seen[b, n, i].any():
                    top = x[i].max()
                    e = np.exp(x[i] - top)
                    lse[b, n, i] = top + np.log(e.sum())
                    sums[:, b, head] += np.array([weights[b, i], abs(weights[b, i])])[:, None] * e / e.sum()
    return sums[0], lse, sums[1]


def test_the_hash_here_is_that_of_the_plain_form():
    made = hashed(Noise(7), 2, 3, 5)
    assert all(
        made[n, i, j] == pytest.approx(gumbel(7, n, 2 + i, j), abs=1e-12)
        for n in range(2) for i in range(3) for j in range(5)
    )  # fmt: skip


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("case", cases.cases(), ids=lambda case: case.name)
def test_equals_float64(case, noise, small_blocks):
    q, k, *_ = cases.inputs(case)
    noise = NOISES[noise]
    if noise is not None and case.name not in ("causal", "positions", "dense", "full"):
        pytest.skip("the noise does not look at the mask")
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(case.B, case.T)), jnp.float32)
    sums, lse, most = wanted(case, q, k, weights, noise)
    scoring = Scoring(case.mask, case.H**-0.5, softcap=case.softcap)
    for module, more in ((reference, {}), (chunked, {}), (tpu, {"interpret": True}), (gpu, {"interpret": True})):

        @jax.jit
        def run(q, k, weights, module=module, more=more):
            lse = module.rows(q, k, scoring, noise, **more)
            some = jnp.isfinite(lse)
            rows = jnp.where(some, lse, 0), jnp.where(some, weights[:, None], 0)
            return lse, module.columns(q, k, *rows, scoring, noise, **more)

        found_lse, found = run(q, k, weights)
        name = module.__name__
        np.testing.assert_allclose(found_lse, lse, rtol=2e-6, atol=4e-6, err_msg=name)
        assert found.shape == (case.B, case.K, case.S), name
        assert (np.abs(found - sums) <= 4e-6 * most + 1e-6).all(), (name, np.abs(found - sums).max())


def test_lse_of_attention_and_ones_make_each_query_count_once():
    """The sums of all keys are then the queries that see a key, times the heads of a group."""
    q, k = (jnp.asarray(np.random.default_rng(0).normal(size=(2, 70, heads, 16)), jnp.float32) for heads in (4, 2))
    ids = np.where(np.arange(70) < 60, 1, 0)[None].repeat(2, 0)
    mask = Causal() & Segments(ids, ids)
    _, lse = attention(q, k, k, mask=mask, return_lse=True)
    sums = column_sums(q, k, lse, mask=mask)
    np.testing.assert_allclose(sums.sum(-1), np.full((2, 2), 2.0 * 60), rtol=1e-5)
    np.testing.assert_allclose(row_lse(q, k, mask=mask), lse, rtol=1e-5, atol=1e-5)
    last = column_sums(q, k, lse, mask=mask, weights=jnp.asarray(np.arange(70) == 59, jnp.float32)[None].repeat(2, 0))
    one = jax.nn.softmax(jnp.einsum("bh,bsh->bs", q[:, 59, 0], k[:, :60, 0]) / 4)
    two = jax.nn.softmax(jnp.einsum("bh,bsh->bs", q[:, 59, 1], k[:, :60, 0]) / 4)
    np.testing.assert_allclose(last[:, 0, :60], one + two, rtol=1e-4, atol=1e-6)


def test_what_nobody_sees_may_be_nan(small_blocks):
    q, k = (np.random.default_rng(0).normal(size=(1, 150, 2, 32)).astype(np.float32) for _ in range(2))
    ids = (np.arange(150) < 70).astype(np.int32)[None]
    scoring = Scoring(Causal() & Segments(ids), 1.0)
    lse = reference.rows(q, k, scoring, None)
    some = np.isfinite(lse)
    rows = np.where(some, lse, 0), np.where(some, 1.0, 0).astype(np.float32)
    bad = np.where(ids[..., None, None] > 0, k, np.nan)
    for module, more in ((reference, {}), (chunked, {}), (tpu, {"interpret": True}), (gpu, {"interpret": True})):
        clean, found = (module.columns(q, x, *rows, scoring, None, **more) for x in (k, bad))
        np.testing.assert_array_equal(clean, found, err_msg=module.__name__)


def programs(module, T, noise):
    q, k = (jax.ShapeDtypeStruct((1, T, heads, 64), jnp.bfloat16) for heads in (2, 1))
    row = jax.ShapeDtypeStruct((1, 2, T), jnp.float32)
    scoring = Scoring(Causal(), 0.125)
    return [
        (lambda q, k, lse, w: module.columns(q, k, lse, w, scoring, noise), (q, k, row, row)),
        (lambda q, k: module.rows(q, k, scoring, noise), (q, k)),
    ]


@pytest.mark.parametrize(("generation", "noise"), [("v5e", "plain"), ("v5p", "noise"), ("v6e", "noise")])
def test_compiles_for_a_chip(generation, noise):
    for fn, shapes in programs(tpu, 8192, NOISES[noise]):
        assert "tpu_custom_call" in compile_for_tpu(fn, *shapes, generation=generation).as_text()


@pytest.mark.parametrize("noise", NOISES)
def test_lowers_for_cuda(noise):
    for fn, shapes in programs(gpu, 8192, NOISES[noise]):
        assert lower_for_cuda(fn, *shapes).count("@__gpu$xla.gpu.triton") == 1


def test_no_array_of_queries_times_keys_is_made():
    T = 4096
    q = jax.ShapeDtypeStruct((1, T, 2, 32), jnp.float32)
    lse = jax.ShapeDtypeStruct((1, 2, T), jnp.float32)
    compiled = jax.jit(lambda q, lse: column_sums(q, q, lse)).lower(q, lse).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < T * T


def test_a_program_of_each_platform_holds_its_kernel():
    q = jax.ShapeDtypeStruct((1, 2048, 2, 64), jnp.bfloat16)
    lse = jax.ShapeDtypeStruct((1, 2, 2048), jnp.float32)
    assert lower_for_cuda(lambda q, lse: column_sums(q, q, lse), q, lse).count("@__gpu$xla.gpu.triton") == 1
    text = jax.jit(lambda q, lse: column_sums(q, q, lse)).trace(q, lse).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 1


def test_refuses_in_words():
    q, lse = jnp.zeros((1, 8, 3, 16)), jnp.zeros((1, 3, 8))
    with pytest.raises(ValueError, match="N a multiple of K"):
        column_sums(q, q[:, :, :2], lse)
    with pytest.raises(ValueError, match=r"lse has shape \(1, 8, 3\); it must be one number per query, \(1, 3, 8\)"):
        column_sums(q, q, lse.swapaxes(1, 2))
    with pytest.raises(ValueError, match="weights has shape"):
        column_sums(q, q, lse, weights=jnp.ones(8))
    with pytest.raises(ValueError, match="implementation='magic' is not known"):
        column_sums(q, q, lse, implementation="magic")
    with pytest.raises(NotImplementedError, match="runs on tpu only"):
        column_sums(q, q, lse, implementation="pallas_tpu")


def test_a_query_whose_sum_is_nothing_adds_nothing():
    """Whatever its mask lets it see: as a query of weight 0, and without it the others are as they were."""
    rng = np.random.default_rng(3)
    q, k = (jnp.asarray(rng.normal(size=(1, 5, N, 8)), jnp.float32) for N in (2, 1))
    lse, weights = row_lse(q, k), jnp.ones((1, 5)).at[:, 3].set(0)
    found = column_sums(q, k, lse.at[:, :, 3].set(-jnp.inf))
    np.testing.assert_array_equal(found, column_sums(q, k, lse, weights=weights))
    assert not np.array_equal(found, column_sums(q, k, lse))
