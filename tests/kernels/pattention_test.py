"""Pattention: values and gradients of every implementation, its invariances, growth, and kernels for absent chips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from kernels.pattention import dispatch, explain, gpu, pattention, pattention_reference, tpu, xla
from kernels.pattention.rules import GELUS, NORMALIZATIONS
from kernels.pattention.shapes import BENCH, ODD, TILED, Shape
from kernels.platforms import lower_for_cuda
from tests.kernels.described import compile_for_tpu

SMALL = Shape(12, 8, 20, 6)
IMPLEMENTATIONS = ("xla", "tpu", "gpu")


def inputs(shape: Shape, dtype=jnp.float64, seed=0, scale=0.3):
    """x [T, D], keys [P, D], values [P, V], dout [T, V]; scores of order one, both signs."""
    sizes = ((shape.T, shape.D), (shape.P, shape.D), (shape.P, shape.V), (shape.T, shape.V))
    keys = jax.random.split(jax.random.key(seed), 4)
    arrays = [jax.random.normal(key, size, jnp.float32) for key, size in zip(keys, sizes, strict=True)]
    return [(array * (scale if i == 0 else 1)).astype(dtype) for i, array in enumerate(arrays)]


def kept(shape: Shape):
    """A mask that drops three parameter tokens in ten, differently for every token."""
    return jax.random.bernoulli(jax.random.key(9), 0.7, (shape.T, shape.P))


def run(fn, x, keys, values, dout, tau, **options):
    """The result and the gradients of x, keys, values and tau."""

    @jax.jit
    def both(x, keys, values, tau):
        out, pull = jax.vjp(lambda x, keys, values, tau: fn(x, keys, values, tau=tau, **options), x, keys, values, tau)
        return (out, *pull(dout.astype(out.dtype)))

    return both(x, keys, values, tau)


def assert_close(got, want, shape: Shape, eps: float, tau_scale=None):
    """Error at most eps times the number of terms that meet in one number, relative to the largest entry."""
    terms = shape.T + shape.D + shape.P + shape.V
    for name, g, w in zip(("out", "dx", "dkeys", "dvalues", "dtau"), got, want, strict=True):
        scale = tau_scale if name == "dtau" else jnp.max(jnp.abs(w))
        assert jnp.all(jnp.isfinite(g)), name
        assert float(jnp.max(jnp.abs(g - w))) <= eps * terms * float(scale), name


def tau_terms(arrays, tau, **options) -> float:
    """Sum of the sizes of what is added up in the gradient of tau (they cancel)."""
    x, keys, values, dout = arrays
    fn = functools.partial(pattention_reference, **options)
    _, slope = jax.jvp(lambda tau: fn(x, keys, values, tau=tau), (tau,), (jnp.ones_like(tau),))
    return float(jnp.sum(jnp.abs(slope * dout)))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape, masked, gelu", [(ODD, False, "tanh"), (TILED, True, "exact")])
def test_values_and_gradients_in_float64(x64_in_threads, shape, masked, gelu, implementation, normalization):
    arrays, tau = inputs(shape), jnp.float64(7.0)
    options = dict(normalization=normalization, gelu=gelu, mask=kept(shape) if masked else None)
    want = run(pattention_reference, *arrays, tau, **options)
    got = run(pattention, *arrays, tau, implementation=implementation, interpret=implementation != "xla", **options)
    assert got[0].dtype == jnp.float64
    assert_close(got, want, shape, 2.0**-52, tau_terms(arrays, tau, **options))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_reference_is_the_formula(x64_in_threads, normalization):
    x, keys, values, _ = (np.asarray(a) for a in inputs(SMALL))
    erf = np.vectorize(__import__("math").erf)
    gelu = lambda z: 0.5 * z * (1 + erf(z / np.sqrt(2)))  # noqa: E731
    a, n = x @ keys.T, SMALL.P
    if normalization == "l2_gelu":
        s = gelu(a * np.sqrt(n) / np.linalg.norm(a, axis=1, keepdims=True))
    elif normalization == "gelu_l2":
        s = gelu(a) * np.sqrt(n) / np.linalg.norm(gelu(a), axis=1, keepdims=True)
    else:
        s = n * np.exp(a) / np.exp(a).sum(1, keepdims=True)
    got = pattention(jnp.asarray(x), jnp.asarray(keys), jnp.asarray(values), normalization=normalization)
    np.testing.assert_allclose(got, s @ values, rtol=0, atol=2.0**-52 * 40 * np.abs(s @ values).max())


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_chunks_of_tokens_change_nothing(x64_in_threads, monkeypatch, normalization):
    """Eleven tokens a chunk, the last one short, under two leading axes, one mask for all of them."""
    arrays = inputs(Shape(75, 8, 20, 6))
    x, dout = (a.reshape(3, 25, -1) for a in (arrays[0], arrays[3]))
    args, mask = (x, arrays[1], arrays[2], dout, jnp.float64(3.0)), kept(Shape(25, 8, 20, 6))
    want = run(pattention_reference, *args, normalization=normalization, mask=mask)
    for kind in ("forward", "backward"):
        monkeypatch.setattr(xla, kind, functools.partial(getattr(xla, kind), limit=3 * 11 * 20 * 8))
    got = run(pattention, *args, normalization=normalization, mask=mask, implementation="xla")
    assert_close(got, want, Shape(75, 8, 20, 6), 2.0**-52, jnp.sum(jnp.abs(want[0] * dout)))


def bf16_bounds(x, keys, values, dout, tau, normalization):
    """How far results of bfloat16 kernels may be from exact ones on the same inputs: every rounding, to first order.

    u = 2^-8 is half a unit in the last place. Rounded are: the scores of l2_gelu on a GPU, the weights, the two parts
    of da (and da itself once more), each result, and the saved result that the coupling of gelu_l2 and softmax is from.
    """
    u, gelu = 2.0**-8, functools.partial(jax.nn.gelu, approximate=False)
    slope = jax.vmap(jax.vmap(jax.grad(gelu)))
    a, ds, size = x @ keys.T, dout @ values.T, jnp.abs
    if normalization == "l2_gelu":
        n = jnp.linalg.norm(a, axis=1, keepdims=True)
        z = tau * a / n
        s, ds_da = gelu(z), slope(z) * z
        dz = ds * slope(z)
        c = jnp.sum(dz * a, axis=1, keepdims=True) / n**2
        parts, along = tau / n * (size(dz) + size(a * c)), 0
    elif normalization == "gelu_l2":
        r = tau / jnp.linalg.norm(gelu(a), axis=1, keepdims=True)
        s, ds_da, along = gelu(a) * r, 0, size(gelu(a) * slope(a)) * r / tau**2 * r
        inner = jnp.sum(s * ds, axis=1, keepdims=True)
        parts = size(r * slope(a) * (ds - gelu(a) * r / tau**2 * inner))
    else:
        p = jax.nn.softmax(a)
        s, ds_da, along = tau**2 * p, 0, p
        parts = size(s * (ds - jnp.sum(p * ds, axis=1, keepdims=True)))
    out = u * ((size(s) + size(ds_da)) @ size(values) + size(s @ values))
    da = 2 * u * parts + along * jnp.sum(out * size(dout), axis=1, keepdims=True)
    return out, da @ size(keys), da.T @ size(x), u * size(s).T @ size(dout)


def assert_within_roundings(got, exact, tau, normalization):
    """Results of bfloat16 kernels against the reference on `exact`, the same inputs in float64."""
    want = run(pattention_reference, *exact, tau.astype(jnp.float64), normalization=normalization)
    bounds, terms = bf16_bounds(*exact, float(tau), normalization), sum(exact[1].shape)
    for name, g, w, bound in zip(("out", "dx", "dkeys", "dvalues"), got, want, bounds, strict=False):
        assert g.dtype == jnp.bfloat16
        # the result is rounded once more; sums are float32
        bound = bound + 2.0**-8 * jnp.abs(w) + 2.0**-23 * terms * jnp.max(jnp.abs(w))
        assert bool(jnp.all(jnp.abs(g.astype(jnp.float64) - w) <= bound)), name


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_within_its_roundings(x64_in_threads, implementation, normalization):
    arrays, tau = inputs(ODD, jnp.bfloat16), jnp.float32(ODD.P**0.5)
    options = dict(implementation=implementation, interpret=implementation != "xla")
    got = run(pattention, *arrays, tau, normalization=normalization, **options)
    assert_within_roundings(got, [a.astype(jnp.float64) for a in arrays], tau, normalization)


@pytest.mark.parametrize("gelu", GELUS)
@pytest.mark.parametrize("implementation", (None, *IMPLEMENTATIONS))
def test_float32(implementation, gelu):
    arrays, tau = inputs(TILED, jnp.float32), jnp.float32(5.0)
    options = dict(implementation=implementation, interpret=implementation in ("tpu", "gpu"), gelu=gelu)
    got = run(pattention, *arrays, tau, **options)
    with jax.enable_x64(True):
        exact = [a.astype(jnp.float64) for a in arrays]
        want = run(pattention_reference, *exact, jnp.float64(5.0), gelu=gelu)
        scale = tau_terms(exact, jnp.float64(5.0), gelu=gelu)
        assert_close(got, want, TILED, 2.0**-23, scale)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-6, 1e6), normalization=st.sampled_from(("l2_gelu", "gelu_l2")))
def test_invariances(seed, scale, normalization):
    with jax.enable_x64(True):
        x, keys, values, _ = inputs(SMALL, seed=seed)
        call = functools.partial(pattention, normalization=normalization, tau=3.0)
        out, tol = call(x, keys, values), dict(rtol=0, atol=2.0**-52 * 40 * 3 * 20**0.5)
        order = jax.random.permutation(jax.random.key(seed), SMALL.P)
        np.testing.assert_allclose(call(x, keys[order], values[order]), out, **tol)
        if normalization == "l2_gelu":
            np.testing.assert_allclose(call(scale * x, keys, values), out, **tol)
            np.testing.assert_allclose(call(x, scale * keys, values), out, **tol)
        there = np.sort(order[:13])
        mask = jnp.zeros(SMALL.P, bool).at[there].set(True)
        np.testing.assert_allclose(call(x, keys, values, mask=mask), call(x, keys[there], values[there]), **tol)
        rows = jnp.broadcast_to(mask, (SMALL.T, SMALL.P))
        np.testing.assert_allclose(call(x, keys, values, mask=rows), call(x, keys[there], values[there]), **tol)


def test_dropped_softmax_token_scores_zero_and_still_counts(x64_in_threads):
    """Exactly the released code: the score is 0 before the exponential, so its weight is exp(0), not 0."""
    x, keys, values, _ = inputs(SMALL)
    mask = jnp.arange(SMALL.P) != 3
    got = pattention(x, keys, values, normalization="softmax", mask=mask)
    want = pattention(x, keys.at[3].set(0), values, normalization="softmax")
    np.testing.assert_array_equal(got, want)
    assert float(jnp.max(jnp.abs(got - pattention(x, keys.at[3].set(1), values, normalization="softmax")))) > 1e-3


@pytest.mark.parametrize("normalization", ("l2_gelu", "gelu_l2"))
@pytest.mark.parametrize("implementation", ("reference", *IMPLEMENTATIONS))
def test_row_of_zero_scores(implementation, normalization):
    x, keys, values, dout = inputs(SMALL, jnp.float32)
    x = x.at[4].set(0)
    options = dict(implementation=implementation, interpret=implementation in ("tpu", "gpu"))
    got = run(pattention, x, keys, values, dout, jnp.float32(4.0), normalization=normalization, **options)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in got)
    np.testing.assert_array_equal(got[0][4], 0)
    assert float(jnp.max(jnp.abs(got[0][5]))) > 0


@pytest.mark.parametrize("normalization", ("l2_gelu", "gelu_l2"))
@pytest.mark.parametrize(
    "implementation, dtype, tolerance",
    [(name, jnp.float64, 1e-12) for name in IMPLEMENTATIONS] + [(name, jnp.float32, 1e-6) for name in ("xla", "gpu")],
)
def test_growth_by_zero_keys(x64_in_threads, implementation, normalization, dtype, tolerance):
    x, keys, values, dout = inputs(SMALL, dtype)
    more = 17
    grown = jnp.concatenate([keys, jnp.zeros((more, SMALL.D), dtype)])
    wider = jnp.concatenate([values, jax.random.normal(jax.random.key(3), (more, SMALL.V), dtype)])
    tau = jnp.asarray(SMALL.P**0.5, dtype)
    options = dict(normalization=normalization, implementation=implementation, interpret=implementation != "xla")
    old = run(pattention, x, keys, values, dout, tau, **options)[0]
    out, dx, dkeys, dvalues, _ = run(pattention, x, grown, wider, dout, tau, **options)
    size = float(jnp.max(jnp.abs(old)))
    assert float(jnp.max(jnp.abs(out - old))) <= tolerance * size
    recomputed = pattention(x, grown, wider, normalization=normalization)  # tau = sqrt of the new P
    assert float(jnp.max(jnp.abs(recomputed - old))) > 0.1 * size
    assert bool(jnp.all(jnp.max(jnp.abs(dkeys[SMALL.P :]), axis=1) > 0)), "every new key learns at once"
    np.testing.assert_array_equal(dvalues[SMALL.P :], 0)


def program(normalization, masked=False, implementation=None):
    """Forward and backward in one program."""

    def both(x, keys, values, dout, *mask):
        call = functools.partial(pattention, normalization=normalization, implementation=implementation)
        out, pull = jax.vjp(functools.partial(call, mask=mask[0] if masked else None), x, keys, values)
        return out, pull(dout)

    return both


def structs(shape: Shape, dtype=jnp.bfloat16, masked=False):
    """Shapes of the program's arguments."""
    sizes = ((shape.T, shape.D), (shape.P, shape.D), (shape.P, shape.V), (shape.T, shape.V))
    mask = [jax.ShapeDtypeStruct((shape.T, shape.P), jnp.bool_)] * masked
    return [jax.ShapeDtypeStruct(size, dtype) for size in sizes] + mask


@pytest.mark.parametrize(("generation", "shape"), [
    pytest.param(chip, shape, marks=() if (chip == "v5p") == (shape == BENCH[1]) else pytest.mark.exhaustive)
    for chip in ("v5e", "v5p", "v6e") for shape in BENCH[:2]
], ids=str)  # fmt: skip
def test_tpu_kernels_compile_and_keep_no_scores(shape, generation):
    compiled = compile_for_tpu(program("l2_gelu"), *structs(shape), generation=generation)
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3
    # the backward's two float32 halves of dx and five row numbers (128 lanes each); nothing of the size of [T, P]
    bound = 4 * shape.T * (2 * shape.D + 5 * 128)
    assert compiled.memory_analysis().temp_size_in_bytes <= bound < 4 * shape.T * shape.P


@pytest.mark.parametrize(
    "dtype, shape, masked", [(jnp.bfloat16, Shape(1024, 768, 1024, 768), True), (jnp.float32, ODD, False)]
)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_tpu_kernels_compile_for_every_rule(normalization, dtype, shape, masked):
    text = compile_for_tpu(program(normalization, masked), *structs(shape, dtype, masked)).as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3


@pytest.mark.parametrize("masked", (False, True))
@pytest.mark.parametrize("shape", (*BENCH, ODD), ids=str)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gpu_kernels_lower(normalization, shape, masked):
    for implementation, kernels in (("gpu", 2), (None, 1)):  # by default the backward pass is left to XLA
        text = lower_for_cuda(program(normalization, masked, implementation), *structs(shape, masked=masked))
        assert text.count("__gpu$xla.gpu.triton") == kernels


@pytest.mark.parametrize(
    "implementation, room, guard, open_gate",
    [("tpu", tpu, "_live", lambda tile, *_, **__: tile), ("gpu", gpu, "_edge", lambda *_: None)],
    ids=("tpu", "gpu"),
)
def test_what_lies_past_the_edge_does_not_leak(monkeypatch, implementation, room, guard, open_gate):
    """The interpreters put NaN past every edge and into fresh memory: unguarded, it shows."""
    arrays, tau = inputs(ODD, jnp.float32), jnp.float32(5.0)
    want = run(pattention_reference, *arrays, tau)
    good = run(pattention, *arrays, tau, implementation=implementation, interpret=True)
    assert_close(good, want, ODD, 2.0**-23, tau_terms(arrays, tau))
    monkeypatch.setattr(room, guard, open_gate)
    leaky = run(pattention, *arrays, tau, implementation=implementation, interpret=True)
    for got in leaky[:3]:
        assert not np.all(np.isfinite(got))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(
    "implementation, mesh_shape, masked",
    [
        ("xla", (1, 2), True),
        ("xla", (2, 4), False),
        ("xla", (1, 8), False),
        ("tpu", (1, 2), True),
        ("gpu", (1, 2), False),
    ],
)
def test_sharded_over_parameter_tokens(x64_in_threads, implementation, mesh_shape, masked, normalization):
    shape, tau = Shape(8, 8, 64, 6), jnp.float64(6.0)
    arrays, interpret = inputs(shape), implementation != "xla"
    mask = (kept(shape),) if masked else ()
    got = run(sharded(mesh_shape, mask, implementation, interpret, normalization), *arrays, tau)
    options = dict(normalization=normalization, mask=mask[0] if masked else None)
    want = run(pattention_reference, *arrays, tau, **options)
    assert_close(got, want, shape, 2.0**-52, tau_terms(arrays, tau, **options))


def sharded(mesh_shape, mask, implementation, interpret, normalization="l2_gelu"):
    """pattention with tokens over `data` and parameter tokens over `tensor`."""
    devices = np.array(jax.devices()[: mesh_shape[0] * mesh_shape[1]]).reshape(mesh_shape)
    spec = PartitionSpec
    options = dict(normalization=normalization, implementation=implementation, interpret=interpret, axis_name="tensor")

    def local(x, keys, values, tau, *mask):
        return pattention(x, keys, values, tau=tau, mask=mask[0] if mask else None, **options)

    in_specs = (spec("data"), spec("tensor"), spec("tensor"), spec()) + (spec("data", "tensor"),) * len(mask)
    mesh = jax.sharding.Mesh(devices, ("data", "tensor"))
    # Pallas' interpreters do not track what varies over which axis
    mapped = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=spec("data"), check_vma=not interpret)
    return lambda x, keys, values, *, tau: mapped(x, keys, values, tau, *mask)


def test_sharded_by_default_platform_choice_and_in_chunks(monkeypatch):
    monkeypatch.setattr(dispatch, "CPU_CHUNK_BYTES", 2 * 16 * 4)
    shape, tau = Shape(16, 8, 64, 6), jnp.float32(8.0)
    arrays = inputs(shape, jnp.float32)
    got = run(sharded((2, 4), (), None, False), *arrays, tau)
    want = run(pattention_reference, *arrays, tau)
    assert_close(got, want, shape, 2.0**-23, tau_terms(arrays, tau))
    default = sharded((2, 4), (), None, False)(*arrays[:3], tau=None)  # the square root of the whole P, not a shard's
    assert float(jnp.max(jnp.abs(default - want[0]))) <= 2.0**-23 * 94 * float(jnp.max(jnp.abs(want[0])))


def test_types_and_single_tokens():
    x, keys, values, _ = inputs(SMALL, jnp.float32)
    one = pattention(x[0], keys, values, mask=jnp.arange(SMALL.P) > 2)
    assert one.shape == (SMALL.V,)
    assert pattention(x.astype(jnp.bfloat16), keys, values).dtype == jnp.float32
    with jax.enable_x64(True):
        assert "float64" in explain(None, jnp.dtype(jnp.float64), "tpu")
    assert explain(None, jnp.dtype(jnp.float32), "cpu").startswith("xla")


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(normalization="l2"), "l2_gelu, gelu_l2, softmax"),
        (dict(gelu="fast"), "exact, tanh"),
        (dict(implementation="cuda"), "reference, xla, tpu, gpu"),
        (dict(tau=-1.0), "sqrt(P) = 4.47214"),
        (dict(mask=jnp.ones(19, bool)), "bool [20]"),
        (dict(mask=jnp.ones(20)), "bool [20]"),
        (dict(keys=jnp.ones((20, 7))), "[P, 8]"),
        (dict(values=jnp.ones((21, 6))), "[20, V]"),
        (dict(x=jnp.ones((12, 8), jnp.int32)), "float32"),
    ],
    ids=str,
)
def test_refusals_name_a_value_that_works(change, words):
    x, keys, values, _ = inputs(SMALL, jnp.float32)
    options = dict(x=x, keys=keys, values=values) | change
    with pytest.raises(ValueError, match="pattention: ") as error:
        pattention(options.pop("x"), options.pop("keys"), options.pop("values"), **options)
    assert words in str(error.value)


@pytest.mark.parametrize("implementation", ("tpu", "gpu"))
def test_a_named_kernel_runs_there_or_refuses(x64_in_threads, implementation):
    x, keys, values, _ = inputs(SMALL, jnp.float32)
    with pytest.raises(NotImplementedError, match="lowered for another platform"):
        jax.jit(functools.partial(pattention, implementation=implementation))(x, keys, values)
    with pytest.raises(NotImplementedError, match="float64"):
        pattention(*(a.astype(jnp.float64) for a in (x, keys, values)), implementation=implementation)
    if implementation == "gpu":
        text = lower_for_cuda(functools.partial(pattention, implementation="gpu"), x, keys, values)
        assert "__gpu$xla.gpu.triton" in text
