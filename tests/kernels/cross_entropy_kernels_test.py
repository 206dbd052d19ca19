"""The kernels of cross-entropy: values and gradients against float64, roundings, bytes, chips that are not here."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu

from configs import base
from kernels.cross_entropy import cross_entropy, gpu, token_nll, tpu, unsupported
from kernels.cross_entropy.reference import Options, rows_of
from kernels.platforms import lower_for_cuda, races_found
from models.lm import LM
from models.objectives import next_token
from models.spec import Spec
from tests.kernels.described import compile_for_tpu

# (M, D, V), none a multiple of a tile: one tile; halves of the vocabulary with one tile of tokens; three tiles of
# tokens in one part; two in halves. And whole tiles. Two steps along D on a GPU, two slabs, blocks with a rest.
SIZES = {"one": (37, 8, 29), "halves": (37, 40, 500), "tokens": (300, 24, 500), "both": (150, 16, 1000),
         "whole": (128, 8, 256)}  # fmt: skip
OPTIONS = {"plain": Options(), "z": Options(1e-2, 0.5), "cap": Options(1e-2, 0.5, 3.0)}
CASES = [("one", "cap"), ("halves", "cap"), ("tokens", "z"), ("both", "cap"), ("whole", "plain")]


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles and blocks so small that the sizes above have many."""
    monkeypatch.setattr(tpu, "TOKENS", 128)
    monkeypatch.setattr(tpu, "CLASSES", (128,))
    monkeypatch.setattr(gpu, "BLOCK_BYTES", 160_000)


def drawn(M, D, V, seed=0):
    """(features, head, targets, weights) in numpy: a fifth of the tokens weigh nothing and have a target of -1."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 2, M) * (rng.uniform(size=M) > 0.2)
    targets = np.where(weights > 0, rng.integers(0, V, M), -1)
    return rng.normal(size=(M, D)), rng.normal(size=(V, D)), targets, weights


def plainly(x, head, targets, weights, options):
    """(loss, sum of nll, features' gradient, head's gradient) of one token after another, in numpy."""
    z_loss, scale, softcap = options
    loss = total = 0.0
    dx, dh = np.zeros_like(x), np.zeros_like(head)
    for i in np.flatnonzero(weights):
        raw = scale * (head @ x[i])
        logits = softcap * np.tanh(raw / softcap) if softcap else raw
        peak = logits.max()
        log_z = peak + np.log(np.exp(logits - peak).sum())
        nll = log_z - logits[targets[i]]
        loss, total = loss + weights[i] * (nll + z_loss * log_z**2), total + weights[i] * nll
        d = weights[i] * (1 + 2 * z_loss * log_z) * np.exp(logits - log_z)
        d[targets[i]] -= weights[i]
        d = d * scale / (np.cosh(raw / softcap) ** 2 if softcap else 1)
        dx[i] = d @ head
        dh += np.outer(d, x[i])
    return loss, total, dx, dh


def computed(implementation, x, head, targets, weights, options, **how):
    """As `plainly`, of the function."""
    call = functools.partial(cross_entropy, **options._asdict(), implementation=implementation, **how)
    run = jax.value_and_grad(lambda x, head, t, w: call(x, head, t, w), argnums=(0, 1), has_aux=True)
    return jax.tree.leaves(jax.jit(run)(x, head, jnp.asarray(targets), jnp.asarray(weights)))


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu"])
@pytest.mark.parametrize("size, options", CASES)
def test_values_and_gradients_in_float64(x64_in_threads, small_tiles, implementation, size, options):
    """Memory that nobody wrote is NaN in both interpreters, and so is what lies behind the ends of arrays."""
    given = drawn(*SIZES[size])
    want = plainly(*given, OPTIONS[options])
    got = computed(implementation, *given, OPTIONS[options], interpret=True)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2.0**-52 * sum(SIZES[size]) * max(1, np.abs(b).max()))
    # Without a gradient, and token by token.
    call = jax.jit(functools.partial(cross_entropy, **OPTIONS[options]._asdict(), implementation=implementation,
                                     interpret=True))  # fmt: skip
    np.testing.assert_allclose(call(*map(jnp.asarray, given)), want[:2], rtol=2.0**-52 * sum(SIZES[size]))


@pytest.mark.parametrize("implementation", ["chunked", "pallas_tpu", "pallas_gpu"])
def test_each_token_by_itself_with_its_gradient(x64_in_threads, small_tiles, implementation):
    x, head, _, weights = drawn(*SIZES["halves"])
    targets = np.arange(len(x)) * 13
    ct = np.where(weights > 0, weights, -1.0)  # cotangents of either sign
    run = functools.partial(
        token_nll, softcap=3.0, implementation=implementation, interpret=implementation != "chunked"
    )
    nll, pull = jax.vjp(lambda x, head: run(x, head, jnp.asarray(targets)), jnp.asarray(x), jnp.asarray(head))
    one = [plainly(x[i : i + 1], head, targets[i : i + 1], np.ones(1), Options(softcap=3.0)) for i in range(len(x))]
    bound = {"rtol": 0, "atol": 2.0**-52 * sum(SIZES["halves"]) * 30}
    np.testing.assert_allclose(nll, [o[1] for o in one], **bound)
    d_x, d_head = pull(jnp.asarray(ct))
    np.testing.assert_allclose(d_x, [c * o[2][0] for c, o in zip(ct, one, strict=True)], **bound)
    np.testing.assert_allclose(d_head, sum(c * o[3] for c, o in zip(ct, one, strict=True)), **bound)


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu"])
def test_bfloat16_within_its_roundings(implementation):
    """Features in bfloat16 under a float32 head, as a model trains: the head is rounded, sums are float32."""
    M, D, V = 80, 160, 700
    x, head, targets, weights = drawn(M, D, V, seed=2)
    x, weights = jnp.asarray(x, jnp.bfloat16), jnp.asarray(weights, jnp.float32)
    head = jnp.asarray(head / 8, jnp.float32)
    got = computed(implementation, x, head, targets, weights, OPTIONS["z"], interpret=True)
    assert [g.dtype for g in got] == [jnp.float32, jnp.float32, jnp.bfloat16, jnp.float32]
    low = np.asarray(head.astype(jnp.bfloat16), np.float64)
    x, weights = np.asarray(x, np.float64), np.asarray(weights, np.float64)
    want = plainly(x, low, targets, weights, OPTIONS["z"])
    # A logit is a float32 sum of D exact products; a log-partition sums V of their exponentials.
    unit, logits = 2.0**-24, 0.5 * np.abs(x) @ np.abs(low).T
    off = unit * (2 * D * logits.max() + V + 16 * logits.max())
    for a, b in zip(got[:2], want[:2], strict=True):
        each = (1 + 4e-2 * logits.max()) * 2 * off  # of nll, and of z_loss log_z^2
        assert abs(float(a) - b) <= weights.sum() * each + M * unit * abs(b)
    # The gradient of a logit is off by what its exponent is, relatively, and is rounded to bfloat16.
    raw = 0.5 * x @ low.T
    log_z = np.log(np.exp(raw).sum(1, keepdims=True))
    mass = weights[:, None] * (1 + 2e-2 * np.abs(log_z))
    d = 0.5 * (mass * np.exp(raw - log_z) + weights[:, None] * (np.arange(V) == targets[:, None]))
    error = (2.0**-8 + 4 * off) * d
    dx_bound = error @ np.abs(low) + V * unit * d @ np.abs(low) + 2.0**-8 * np.abs(want[2])
    assert np.all(np.abs(np.asarray(got[2], np.float64) - want[2]) <= dx_bound)
    assert np.all(np.abs(got[3] - want[3]) <= error.T @ np.abs(x) + M * unit * d.T @ np.abs(x))


def test_no_two_accesses_of_the_tpu_kernel_race(small_tiles):
    """The features' sums go to device memory and come back while other tiles are computed."""
    x, head, targets, weights = (jnp.asarray(a) for a in drawn(150, 16, 1000))
    x, head = x.astype(jnp.float32), head.astype(jnp.float32)
    log_z = jax.nn.logsumexp(x @ head.T, axis=1)
    rows = rows_of(log_z, weights.astype(jnp.float32), 0.0)
    simulator = pltpu.InterpretParams(detect_races=True, dma_execution_mode="on_wait")
    got = tpu.gradients(x, head, targets, rows, options=Options(), interpret=simulator)
    assert not races_found()
    want = plainly(
        *(np.asarray(a, np.float64) for a in (x, head)), *(np.asarray(a) for a in (targets, weights)), Options()
    )
    for a, b in zip(got, want[2:], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2.0**-24 * 1166 * np.abs(b).max() * 4)


def structs(M, D, V, dtype=jnp.bfloat16):
    """As a model trains: float32 parameters."""
    shapes = ((M, D), dtype), ((V, D), jnp.float32), ((M,), jnp.int32), ((M,), jnp.float32)
    return [jax.ShapeDtypeStruct(*s) for s in shapes]


def training(x, head, targets, weights, implementation=None):
    call = functools.partial(cross_entropy, targets=targets, weights=weights, softcap=30.0, z_loss=1e-4)
    run = jax.value_and_grad(lambda x, h: call(x, h, implementation=implementation), (0, 1), has_aux=True)
    return run(x, head)


def moved(*shapes):
    """Bytes of the inputs, and of the outputs: a gradient is as large as what it is of."""
    x, head, *rows = (np.prod(s.shape) * s.dtype.itemsize for s in shapes)
    return 2 * (x + head) + sum(rows)


@pytest.mark.parametrize("generation", [
    "v5e", *(pytest.param(chip, marks=pytest.mark.exhaustive) for chip in ("v5p", "v6e")), "tpu7x",
])  # fmt: skip
def test_compiles_for_a_tpu_within_its_bytes(generation):
    """GPT-2's vocabulary, which no tile divides: loss and gradients take at most 1.3 times the bytes of all arrays."""
    given = structs(8192, 1536, 50257)
    compiled = compile_for_tpu(training, *given, generation=generation)
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 2
    assert compiled.memory_analysis().temp_size_in_bytes <= 0.3 * moved(*given)


@pytest.mark.parametrize("size", [(100, 64, 1000, jnp.float32), (2048, 4096, 128256)])
def test_other_sizes_compile_too(size):
    """Float32 and odd; a width of 4096 and a large vocabulary."""
    given = structs(*size)
    assert compile_for_tpu(training, *given).as_text().count('custom_call_target="tpu_custom_call"') == 2
    evaluation = compile_for_tpu(token_nll, *given[:3])
    assert evaluation.as_text().count('custom_call_target="tpu_custom_call"') == 1


def largest(text):
    """Numbers of the largest array that a program in StableHLO names."""
    shapes = re.findall(r"tensor<((?:\d+x)+)[a-z]", text)
    return max(np.prod([int(n) for n in shape.split("x")[:-1]], dtype=np.int64) for shape in shapes)


def test_lowers_for_cuda_without_all_logits():
    """statistics; logits of whole blocks in a loop, and of the rest. No array is larger than the head."""
    given = structs(8192, 768, 50257)
    text = lower_for_cuda(training, *given)
    assert text.count("@__gpu$xla.gpu.triton") == 3
    assert largest(text) == 768 * 50257
    assert lower_for_cuda(token_nll, *given[:3]).count("@__gpu$xla.gpu.triton") == 1


def test_the_loss_of_a_language_model_is_the_kernels():
    config = base.get_config().model
    config.update({"width": 32, "num_layers": 1, "num_heads": 2, "softcap": 30.0})
    spec = Spec.from_config(config.to_dict(), vocab_size=300)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: LM(spec, rngs=nnx.Rngs(0))))

    def loss(params, tokens, scored):
        batch = {"tokens": tokens, "targets": tokens, "scored": scored}
        return next_token.loss(nnx.merge(graphdef, params), batch, jax.random.key(0), z_loss=1e-4).total

    given = params, *(jax.ShapeDtypeStruct((2, 64), kind) for kind in (jnp.int32, bool))
    names = (
        ("cross_entropy_statistics", "cross_entropy_gradients"),
        ("cross_entropy_statistics", "cross_entropy_logits"),
    )
    for platform, wanted in zip(("tpu", "cuda"), names, strict=True):
        traced = jax.jit(jax.grad(loss)).trace(*given)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert all(name in text for name in wanted), platform


def test_on_a_cpu_no_kernel_is_looked_at(monkeypatch):
    """The program is that of the formulas, and the two functions that make the kernels are not called."""
    for module in (tpu, gpu):
        monkeypatch.setattr(module, "statistics", None)
        monkeypatch.setattr(module, "gradients", None)
    given = structs(64, 16, 100)
    text = [
        jax.jit(functools.partial(training, implementation=name)).lower(*given).compile().as_text()
        for name in (None, "chunked")
    ]
    operations = [re.findall(r" = \S+ ([a-z-]+)\(", t) for t in text]
    assert operations[0] == operations[1] and "custom-call" not in text[0]


def test_what_no_kernel_takes_falls_back_or_is_refused_with_the_reason(x64):
    x, head = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 16), (100, 16)))
    assert unsupported("pallas_tpu", x, head) is unsupported("pallas_gpu", x, head) is None
    wide = structs(64, 16, 100, jnp.float64)
    assert "float64" in unsupported("pallas_gpu", *wide[:2])
    assert "triton" not in lower_for_cuda(training, *wide)
    many = jax.ShapeDtypeStruct((tpu.MOST_TOKENS + 1, 16), jnp.float32)
    assert "262145 tokens" in unsupported("pallas_tpu", many, head)
    broad = [jax.ShapeDtypeStruct((n, 32768), jnp.float32) for n in (64, 100)]
    assert "32768 wide" in unsupported("pallas_tpu", *broad)
    assert "2^31" in unsupported("pallas_gpu", x, jax.ShapeDtypeStruct((1 << 20, 1 << 12), jnp.float32))
    assert "empty" in unsupported("pallas_tpu", jax.ShapeDtypeStruct((0, 16), jnp.float32), head)
    with pytest.raises(NotImplementedError, match="float64; use 'chunked'"):
        jax.eval_shape(functools.partial(training, implementation="pallas_tpu"), *wide)
    for name in ("pallas_tpu", "pallas_gpu"):
        with pytest.raises(NotImplementedError, match="runs on"):
            jax.jit(functools.partial(training, implementation=name)).lower(*structs(64, 16, 100))
    with pytest.raises(ValueError, match="'magic' is not known"):
        jax.eval_shape(functools.partial(training, implementation="magic"), *structs(64, 16, 100))
