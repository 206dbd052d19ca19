"""Attention: every implementation against the float64 specification, values and gradients, and what is not computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import masks
from kernels.attention import attention, explain, merge, shapes, tiling
from kernels.platforms import lower_for_cuda
from tests.kernels.described import compile_for_tpu

T = 62
GENERATOR = np.random.default_rng(5)
IDS = np.sort(GENERATOR.integers(1, 5, (2, T)))
IDS[:, -6:] = 0
PARENTS = np.array([-1] + [int(GENERATOR.integers(-1, i)) for i in range(1, T)])
SLOTS = np.stack([np.where(GENERATOR.random(T) < 0.2, -1, GENERATOR.permutation(T)) for _ in range(2)])
ORDER = GENERATOR.permutation(T)
WITH_ARRAYS = {
    "segments": masks.Segments(IDS) & masks.Causal(),
    "positions": masks.Positions(ORDER, SLOTS, "causal"),
    "any_order": masks.AnyOrder(ORDER, strict=True),
    "tree": masks.Tree(PARENTS),
    "dense_heads": masks.Dense(GENERATOR.random((1, 4, T, T)) < 0.2),
    "lengths": masks.Prefix(np.array([0, 17])),
    "not_segments": ~masks.Segments(IDS),
}
SINGLE = [
    *WITH_ARRAYS.values(), masks.Full(), masks.Causal(-2), masks.Window(5, 3), masks.Prefix(9), masks.Sinks(2),
    masks.BlockCausal(7), masks.BlockDiffusion(31, 4),
]  # fmt: skip
# The bound of the issue for float32: 17 ulp. A sum of n products errs by about sqrt(n) ulp of its largest term, n <= 97
# here for scores and values; 1000 for the one long shape.
F32 = 2e-6


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 16 by 8, so that short sequences have many, whole, partial and ragged."""
    monkeypatch.setattr(tiling, "sizes", lambda T, S, backward: (16, 8, 16 * 8 * 4))


def inputs(B, T, S, N, K, H, dtype=np.float32, seed=0):
    generator = np.random.default_rng(seed)
    lengths = ((T, N), (S, K), (S, K), (T, N))
    return tuple(jnp.asarray(generator.normal(size=(B, n, heads, H)).astype(dtype)) for n, heads in lengths)


def results(q, k, v, g, bias=None, sinks=None, **options):
    """out, lse (0 for empty rows, kept apart) and the gradients of a loss that uses both, and bias and sinks too."""
    given = {"bias": bias, "sinks": sinks}

    def loss(arrays):
        q, k, v, extra = arrays
        out, lse = attention(q, k, v, **extra, return_lse=True, **options)
        seen = lse > -jnp.inf
        value = (out.astype(g.dtype) * g).sum() + jnp.sin(jnp.where(seen, lse, 0)).sum()
        return value, (out, jnp.where(seen, lse, 0), seen)

    (_, (out, lse, seen)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))((q, k, v, given))
    return {"out": out, "lse": lse, "seen": seen, "dq": grads[0], "dk": grads[1], "dv": grads[2], **grads[3]}


def exact(*arrays, **options):
    """The specification in float64."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a).astype(np.float64)) for a in arrays]
        for name in ("bias", "sinks"):
            if options.get(name) is not None:
                options[name] = jnp.asarray(np.asarray(options[name]).astype(np.float64))
        return jax.tree.map(np.asarray, results(*wide, **options, implementation="reference"))


def agree(got, wanted, bound):
    for name, right in wanted.items():
        if right is None:
            continue
        left = np.asarray(got[name]).astype(np.float64)
        assert np.isfinite(left).all(), name
        error = np.abs(left - right).max() / max(np.abs(right).max(), 1e-30)
        assert error <= bound, f"{name}: {error:.1e} > {bound:.1e}"


@pytest.mark.parametrize("shape", shapes.TEST, ids=lambda s: s.name)
def test_shapes(shape):
    arrays = inputs(shape.B, shape.T, shape.S, shape.N, shape.K, shape.H)
    wanted = exact(*arrays, mask=shape.mask)
    forms = (None, "decode") if shape.K < shape.N and shape.T < 1000 else (None,)
    for implementation in forms:
        agree(results(*arrays, mask=shape.mask, implementation=implementation), wanted, F32)


@pytest.mark.parametrize("name", WITH_ARRAYS)
def test_masks_with_arrays(name, small_tiles):
    arrays = inputs(2, T, T, 4, 2, 16)
    wanted = exact(*arrays, mask=WITH_ARRAYS[name])
    for implementation in ("chunked", "decode"):
        agree(results(*arrays, mask=WITH_ARRAYS[name], implementation=implementation), wanted, F32)


@given(
    st.lists(st.sampled_from(SINGLE), min_size=3, max_size=3),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.sampled_from([(4, 4), (4, 2), (4, 1)]),
)
@settings(max_examples=5, deadline=None, derandomize=True)
def test_combinations_of_three(three, choices, heads):
    a, b, c = three
    mask = (a & b if choices[0] else a | b) & (~c if choices[1] else c) if choices[2] else (a | (b & c))
    arrays = inputs(2, T, T, *heads, 8)
    bias = jnp.asarray(GENERATOR.normal(size=(2, 1, T, T) if choices[3] else (1, 4, 1, T)).astype(np.float32))
    wanted = exact(*arrays, mask=mask, bias=bias)
    normal = tiling.sizes
    tiling.sizes = lambda T, S, backward: (16, 8, 16 * 8 * 4)
    try:
        agree(results(*arrays, mask=mask, bias=bias, implementation="chunked"), wanted, F32)
    finally:
        tiling.sizes = normal


def test_float64_stays_float64(x64, small_tiles):
    arrays = inputs(2, 63, 97, 4, 2, 16, np.float64)
    sinks = jnp.linspace(-1.0, 1.0, 4)
    options = {"mask": "causal & window(40)", "softcap": 3.0, "sinks": sinks}
    wanted = exact(*arrays, **options)
    for implementation in ("chunked", "decode"):
        got = results(*arrays, **options, implementation=implementation)
        assert all(got[name].dtype == jnp.float64 for name in ("out", "lse", "dq", "dk", "dv", "sinks"))
        agree(got, wanted, 1e-13)


def test_the_specification_itself(x64):
    """The reference against softmax written out for one query at a time, sinks as a key whose value is zero."""
    q, k, v, _ = (np.asarray(a) for a in inputs(1, 9, 13, 4, 2, 8, np.float64))
    mask, sinks, cap = masks.parse("causal & (window(4) | sinks(1))"), np.linspace(-1, 1, 4), 2.0
    bias, seen = np.random.default_rng(1).normal(size=(1, 4, 9, 13)), mask.dense(9, 13)
    out, lse = attention(
        q, k, v, mask=mask, sinks=jnp.asarray(sinks), bias=jnp.asarray(bias), softcap=cap, return_lse=True
    )
    for n, t in np.ndindex(4, 9):
        keys = np.flatnonzero(seen[t])
        score = cap * np.tanh((k[0, keys, n // 2] @ q[0, t, n] / np.sqrt(8) + bias[0, n, t, keys]) / cap)
        total = np.exp(score).sum() + np.exp(sinks[n])
        np.testing.assert_allclose(lse[0, n, t], np.log(total), rtol=1e-13)
        np.testing.assert_allclose(out[0, t, n], np.exp(score) @ v[0, keys, n // 2] / total, rtol=1e-12)


@pytest.mark.parametrize("bias_shape", [(1, 1, 1, 63), (2, 1, 63, 1), (1, 4, 63, 63)], ids=str)
def test_bias_softcap_and_sinks(bias_shape, small_tiles):
    arrays = inputs(2, 63, 63, 4, 2, 16)
    options = {
        "mask": "causal",
        "bias": jnp.asarray(np.random.default_rng(2).normal(size=bias_shape).astype(np.float32)),
        "softcap": 2.0,
        "sinks": jnp.linspace(-1.0, 1.0, 4),
    }
    agree(results(*arrays, **options, implementation="chunked"), exact(*arrays, **options), F32)


def test_bfloat16():
    """Products and sums are float32, so only the rounding of inputs (none: they are bfloat16) and results is left."""
    arrays = [a.astype(jnp.bfloat16) for a in inputs(2, 97, 97, 4, 2, 32)]
    got, wanted = results(*arrays, mask="causal"), exact(*arrays, mask="causal")
    assert got["out"].dtype == jnp.bfloat16 and got["lse"].dtype == jnp.float32
    np.testing.assert_allclose(got["lse"], wanted["lse"], rtol=1e-5)
    # delta reads the rounded out: half an ulp (2^-9) on each of two roundings.
    agree(got, wanted, 2 * 2.0**-8)


def test_rows_that_see_nothing(small_tiles):
    q, k, v, g = inputs(1, 40, 24, 2, 1, 8)
    for implementation in ("reference", "chunked", "decode"):
        got = results(q, k, v, g, mask="causal", implementation=implementation)
        assert not np.asarray(got["seen"])[..., :16].any() and np.asarray(got["seen"])[..., 16:].all()
        assert not np.asarray(got["out"])[:, :16].any()
        assert all(np.isfinite(np.asarray(got[name])).all() for name in ("dq", "dk", "dv"))
        assert not np.asarray(got["dq"])[:, :16].any()


@pytest.mark.parametrize("implementation", ["reference", "chunked", "decode"])
def test_poisoned_padding_never_leaks(implementation, small_tiles):
    """What nobody sees, and rows that see nothing, may be NaN: the rest is bit for bit what it was."""
    q, k, v, g = inputs(2, T, T, 4, 2, 8)
    dead = jnp.asarray(IDS == 0)[..., None, None]
    empty = jnp.asarray(SLOTS < 0)[..., None, None]
    for mask, dead_q, dead_k in (
        (masks.Segments(IDS) & masks.Causal(), dead, dead),
        (masks.Positions(np.arange(T), SLOTS), jnp.zeros_like(dead), empty),
    ):
        clean = results(q, k, v, g, mask=mask, softcap=5.0, implementation=implementation)
        poisoned = [jnp.where(bad, jnp.nan, x) for bad, x in ((dead_q, q), (dead_k, k), (dead_k, v))]
        got = results(*poisoned, g, mask=mask, softcap=5.0, implementation=implementation)
        for name in ("out", "lse", "dq", "dk", "dv"):
            np.testing.assert_array_equal(got[name], clean[name], err_msg=name)


@pytest.mark.parametrize(
    "mask",
    [
        masks.Causal(),
        masks.parse("causal & window(20)"),
        masks.BlockDiffusion(32, 8),
        masks.Segments(np.repeat([[1, 2, 3, 0], [1, 1, 2, 2]], 16, axis=1)) & masks.Causal(),
    ],
    ids=str,
)
def test_empty_tiles_are_not_computed(mask, small_tiles, monkeypatch):
    """Counts the tiles whose scores are really computed, forward and backward: exactly those that hold a seen entry."""
    computed, original = [], tiling.scores
    # One lane for each row of the batch: a lane of two rows computes what either needs.
    monkeypatch.setattr(tiling, "sizes", lambda T, S, backward: (16, 8, 16 * 8 * 2))

    def counted(cut, here, q, k, i, j, partial):
        jax.debug.callback(lambda i, j: computed.append((int(i), int(j))), i, j)
        return original(cut, here, q, k, i, j, partial)

    monkeypatch.setattr(tiling, "scores", counted)
    q, k, v, g = inputs(2, 64, 64, 2, 2, 8)
    seen = np.broadcast_to(np.asarray(mask.traced(64, 64)), (2, 1, 64, 64))
    needed = int(seen.reshape(2, 4, 16, 8, 8).any((2, 4)).sum())
    jax.block_until_ready(attention(q, k, v, mask=mask, implementation="chunked"))
    jax.effects_barrier()
    assert len(computed) == needed
    assert tiling.tiles_computed(q.shape, k.shape, mask) == needed * 2
    computed.clear()
    jax.block_until_ready(jax.grad(lambda q: (attention(q, k, v, mask=mask, implementation="chunked") * g).sum())(q))
    jax.effects_barrier()
    assert len(computed) == 2 * needed


def test_few_tiles_are_computed_without_looking_for_empty_ones():
    """Three of four tiles are left by what is known (causal), one of them FULL, until documents are known as well."""
    mask = masks.Segments(np.repeat([[1, 2], [3, 3]], 4, axis=1).repeat(20, axis=1)) & masks.Causal()
    q, k, v, g = inputs(2, 160, 160, 2, 2, 8)
    lists = tiling.visits(tiling.plan(q.shape, k.shape, mask))
    assert isinstance(lists.total, np.ndarray) and lists.total.tolist() == [[1, 2]] and not lists.full.any()
    agree(results(q, k, v, g, mask=mask), exact(q, k, v, g, mask=mask), F32)


def temporaries(fn, length):
    shape = jax.ShapeDtypeStruct((1, length, 4, 64), jnp.float32)
    return jax.jit(fn).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes


def test_memory_is_linear_and_far_below_the_library():
    def grads(fn):
        return jax.grad(lambda *a: (fn(*a) ** 2).sum(), (0, 1, 2))

    ours = grads(functools.partial(attention, mask="causal", implementation="chunked"))
    library = grads(functools.partial(jax.nn.dot_product_attention, is_causal=True))
    short, long = temporaries(ours, 2048), temporaries(ours, 8192)
    assert long <= 4 * short
    assert short <= 0.4 * temporaries(library, 2048)


def test_merge_of_any_split():
    q, k, v, _ = inputs(2, 7, 40, 4, 2, 8)
    mask = masks.Dense(np.random.default_rng(3).random((2, 1, 7, 40)) < 0.3)
    attend = jax.jit(functools.partial(attention, return_lse=True, implementation="decode"))
    whole, whole_lse = attend(q, k, v, mask=mask)
    for cut in (1, 13):
        parts = []
        for keys in (slice(0, cut), slice(cut, None)):
            part = masks.Dense(mask.array[..., keys])
            parts += attend(q, k[:, keys], v[:, keys], mask=part)
        out, lse = merge(*parts)
        np.testing.assert_allclose(out, whole, atol=F32)
        np.testing.assert_allclose(lse, whole_lse, atol=4 * F32)  # log: absolute, of sums up to 40 terms
    nothing = jnp.full_like(lse, -jnp.inf)
    out, lse = merge(jnp.zeros_like(whole), nothing, jnp.zeros_like(whole), nothing)
    assert not out.any() and (lse == -jnp.inf).all()
    grads = jax.grad(lambda *a: merge(*a)[0].sum(), (0, 1, 2, 3))(whole, nothing, whole, nothing)
    assert all(np.isfinite(np.asarray(g)).all() for g in grads)


def test_library_agrees_or_refuses():
    q, k, v, _ = inputs(2, 33, 33, 4, 2, 8)
    attend = jax.jit(attention, static_argnames=("mask", "implementation"))
    for mask in ("causal", "full", "window(5, 2)", "causal & prefix(20)", masks.Prefix(np.array([0, 17]))):
        got = attend(q, k, v, mask=mask, implementation="library")
        np.testing.assert_allclose(got, attend(q, k, v, mask=mask), atol=F32 * 2)
    for mask, options in (("~causal", {}), ("causal", {"softcap": 2.0}), ("blockcausal(4)", {}), ("causal(1)", {})):
        with pytest.raises(NotImplementedError, match="library"):
            attention(q, k, v, mask=mask, implementation="library", **options)
    with pytest.raises(NotImplementedError, match="T=7 must equal S=33"):
        attention(q[:, :7], k, v, implementation="library")


def test_implementation_follows_the_lowering_platform():
    """On this CPU host a program lowered for another chip holds that chip's kernels, and says so beforehand."""
    shape = jax.ShapeDtypeStruct((1, 1024, 2, 128), jnp.bfloat16)
    grad = jax.grad(lambda q, k, v: attention(q, k, v).astype(jnp.float32).sum(), (0, 1, 2))
    assert compile_for_tpu(grad, shape, shape, shape).as_text().count("tpu_custom_call") >= 3
    assert lower_for_cuda(grad, shape, shape, shape).count("xla.gpu.triton") >= 2
    assert "custom_call" not in jax.jit(grad).lower(shape, shape, shape).as_text()
    names = {platform: explain(shape.shape, shape.shape, "causal", platform) for platform in ("cpu", "tpu", "cuda")}
    assert [names[p].split(":")[0] for p in names] == ["chunked", "pallas_tpu", "pallas_gpu"]
    assert "takes no bias" in explain(shape.shape, shape.shape, "causal", "tpu", bias=True)
    assert explain((8, 1, 8, 64), (8, 4096, 8, 64), "full", "cuda").startswith("decode")
    x = jnp.ones((1, 64, 2, 128), jnp.bfloat16)
    named = functools.partial(attention, implementation="pallas_tpu")
    for run in (named, jax.jit(named)):
        with pytest.raises(NotImplementedError, match="runs on tpu only"):
            run(x, x, x)
    assert "tpu_custom_call" in compile_for_tpu(named, shape, shape, shape).as_text()


def test_wrong_arguments_are_named():
    q, k, v, _ = inputs(2, 8, 8, 4, 2, 8)
    for match, options in (
        ("heads", {"q": q[:, :, :3]}),
        ("bias has shape", {"bias": jnp.zeros((8, 8))}),
        ("sinks has shape", {"sinks": jnp.zeros(3)}),
        ("implementation='flash'", {"implementation": "flash"}),
        ("did you mean 'causal'", {"mask": "casual"}),
        ("3 rows", {"mask": masks.Segments(np.ones((3, 8), int))}),
        ("masks.Dense", {"mask": np.ones((8, 8), bool)}),
        ("must be", {"k": k[..., :4]}),
    ):
        with pytest.raises(ValueError, match=match):
            attention(**{"q": q, "k": k, "v": v, **options})
