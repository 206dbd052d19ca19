"""Grouped matmul against a loop over rows, its kernels against the reference, and the compilers of chips not here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.grouped_matmul import IMPLEMENTATIONS, gpu, grouped_matmul, tiled, tpu
from kernels.grouped_matmul.reference import grouped_matmul_reference, grouped_outer_reference
from kernels.grouped_matmul.shapes import LARGE, SMALL
from kernels.platforms import lower_for_cuda
from tests.kernels.described import compile_for_tpu

MATMUL = {"tpu": tpu.grouped_matmul_tpu, "gpu": gpu.grouped_matmul_gpu}
OUTER = {"tpu": tpu.grouped_outer_tpu, "gpu": gpu.grouped_outer_gpu}


def draw(shape, dtype=np.float64, transposed=False):
    """x, w, dy and the sizes; rows of nobody hold NaN, as what a buffer was made with may."""
    rng, E = np.random.default_rng(0), len(shape.sizes)
    x, dy = rng.normal(size=(shape.M, shape.D)), rng.normal(size=(shape.M, shape.F))
    x[sum(shape.sizes) :] = dy[sum(shape.sizes) :] = np.nan
    w = rng.normal(size=(E, shape.F, shape.D) if transposed else (E, shape.D, shape.F))
    return *(jnp.asarray(a, dtype) for a in (x, w, dy)), jnp.asarray(shape.sizes, jnp.int32)


def by_rows(x, w, dy, sizes):
    """(y, dx, dw) row by row in float64."""
    x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
    y, dx, dw, m = np.zeros((len(x), w.shape[2])), np.zeros_like(x), np.zeros_like(w), 0
    for e, count in enumerate(sizes):
        for _ in range(count):
            y[m], dx[m] = x[m] @ w[e], w[e] @ dy[m]
            dw[e] += np.outer(x[m], dy[m])
            m += 1
    return y, dx, dw


@pytest.mark.parametrize("implementation", ["reference", "tiled"])
@pytest.mark.parametrize("name", SMALL)
def test_rows_meet_the_matrix_of_their_group(x64, name, implementation, monkeypatch):
    """Values and gradients; tiles of 8 rows and sums over 3 to 6, so that groups have several and a rest."""
    monkeypatch.setattr(tiled, "ROWS", 8)
    monkeypatch.setattr(tiled, "STEP", 3)
    monkeypatch.setattr(tiled, "MOST", 6)
    x, w, dy, sizes = draw(SMALL[name])
    live = jnp.arange(len(x))[:, None] < sum(SMALL[name].sizes)

    @jax.jit
    def run(x, w, sizes):
        y, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, implementation=implementation), x, w)
        return y, *pull(jnp.where(live, dy, 0))

    for got, want in zip(run(x, w, sizes), by_rows(x, w, dy, SMALL[name].sizes), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


def test_the_tiles_as_they_are_shipped_give_the_same_on_many_rows():
    """Groups longer than a tile and than the longest sum, in float32."""
    shape = SMALL["even"]._replace(M=1500, sizes=(700, 0, 130, 600))
    x, w, dy, sizes = draw(shape, np.float32)
    live = jnp.arange(shape.M)[:, None] < sum(shape.sizes)
    run = jax.jit(lambda x, w: jax.vjp(lambda x, w: grouped_matmul(x, w, sizes), x, w)[1](jnp.where(live, dy, 0)))
    for got, want in zip(run(x, w), by_rows(x, w, dy, shape.sizes)[1:], strict=True):
        # Sums of up to 700 terms near 1: the root of their number times the rounding.
        np.testing.assert_allclose(got, want, rtol=0, atol=700 * 2**-23)


@pytest.mark.parametrize("kernel", MATMUL)
@pytest.mark.parametrize(("name", "dtype"), [*((name, jnp.float32) for name in SMALL), ("ragged", jnp.bfloat16)])
def test_kernel_in_interpret_mode_equals_reference(name, kernel, dtype, monkeypatch):
    monkeypatch.setattr(tpu, "TILES", {2: (16, 128, 128), 4: (16, 128, 128)})
    monkeypatch.setattr(gpu, "TILES", {2: (16, 16, 16), 4: (16, 16, 16)})
    shape = SMALL[name]
    tolerance = float(jnp.finfo(dtype).eps) * 8 * max(shape.sizes + (1,))  # roundings of sums of numbers near 1
    for transposed in (False, True):
        x, w, dy, sizes = draw(shape, dtype, transposed)
        run = jax.jit(functools.partial(MATMUL[kernel], transposed=transposed, interpret=True))
        want = jax.jit(functools.partial(grouped_matmul_reference, transposed=transposed))(x, w, sizes)
        got = run(x, w, sizes)
        assert got.dtype == dtype and got.shape == want.shape
        np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), rtol=0, atol=tolerance)
    got = jax.jit(functools.partial(OUTER[kernel], interpret=True))(x, dy, sizes)
    want = jax.jit(grouped_outer_reference)(x, dy, sizes)
    np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), rtol=0, atol=tolerance)


@pytest.mark.parametrize("sizes", [(5, 0, 7, 4), (0, 0, 0), (16, 16), (1, 0, 0, 40), (0, 33, 15)])
def test_visits_cover_every_row_once_in_order(sizes):
    """A visit's rows are those of its tile and group: together every row once, and tiles never go back."""
    rows, tile = 48, 16
    plan = jax.tree.map(np.asarray, tpu.visits(jnp.asarray(sizes), rows, tile))
    seen = []
    for v in range(int(plan.count[0])):
        inside = range(plan.tile[v] * tile, (plan.tile[v] + 1) * tile)
        seen += [(row, plan.group[v]) for row in inside if plan.start[v] <= row < plan.end[v]]
    assert seen == list(enumerate(np.repeat(np.arange(len(sizes)), sizes)))
    assert np.all(np.diff(plan.tile) >= 0) and len(plan.group) == rows // tile + len(sizes) - 1


@pytest.mark.parametrize("generation", ["v5e", "v5p", "v6e"])
@pytest.mark.parametrize(("name", "dtype"), [("8 experts", jnp.float32), ("64 experts", jnp.bfloat16)])
def test_tpu_kernels_compile(generation, name, dtype):
    text = compile_for_tpu(_step, *_shapes(LARGE[name], dtype), generation=generation).as_text()
    assert "grouped_matmul" in text and "grouped_outer" in text


def test_odd_sizes_compile_for_a_tpu():
    compile_for_tpu(_step, *_shapes(SMALL["ragged"], jnp.bfloat16))


@pytest.mark.parametrize(("name", "dtype"), [("8 experts", jnp.float32), ("64 experts", jnp.bfloat16)])
def test_gpu_kernels_lower(name, dtype):
    text = lower_for_cuda(_step, *_shapes(LARGE[name], dtype))
    assert "grouped_matmul" in text and "grouped_outer" in text


def _step(x, w, sizes):
    return jax.grad(lambda x, w: jnp.sum(grouped_matmul(x, w, sizes).astype(jnp.float32)), (0, 1))(x, w)


def _shapes(shape, dtype):
    of = jax.ShapeDtypeStruct
    E = len(shape.sizes)
    return of((shape.M, shape.D), dtype), of((E, shape.D, shape.F), dtype), of((E,), jnp.int32)


def test_what_does_not_fit_is_refused_by_name():
    x, w, sizes = jnp.ones((4, 2)), jnp.ones((3, 2, 5)), jnp.asarray([1, 2, 1])
    with pytest.raises(ValueError, match=r"x \(4, 2\), w \(3, 2, 5\) and sizes \(2,\) do not fit"):
        grouped_matmul(x, w, sizes[:2])
    with pytest.raises(ValueError, match="one floating type"):
        grouped_matmul(x.astype(jnp.bfloat16), w, sizes)
    with pytest.raises(ValueError, match="'fast'"):
        grouped_matmul(x, w, sizes, implementation="fast")
    for name in IMPLEMENTATIONS[2:]:
        with pytest.raises(NotImplementedError, match="another platform"):
            jax.jit(functools.partial(grouped_matmul, implementation=name)).lower(x, w, sizes)
