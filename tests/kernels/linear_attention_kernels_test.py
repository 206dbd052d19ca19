"""The Pallas kernels of linear attention and the gated delta rule: values, gradients, roundings, absent chips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import tiles
from kernels.lact.schedule import boundaries
from kernels.linear_attention import LinearState, gated_delta_rule, gpu, linear_attention, tpu, unsupported
from kernels.linear_attention.chunked import inverse
from kernels.platforms import lower_for_cuda
from tests.kernels.described import compile_for_tpu, moves
from tests.kernels.probed import joined, with_gradients
from tests.plain.recurrences import remembered

# (implementation, B, T, N, H, P, C): a short last chunk; memories kept at every second of five chunks; two heads each.
CASES = {
    "tpu short": ("pallas_tpu", 2, 27, 1, 8, 6, 8),
    "tpu groups": ("pallas_tpu", 1, 40, 2, 32, 32, 8),
    "gpu short": ("pallas_gpu", 2, 37, 1, 8, 20, 16),
    "gpu groups": ("pallas_gpu", 1, 80, 1, 48, 64, 16),
}


def drawn(B, T, N, H, P, seed=0):
    """((q, k, v, beta, decay, memory), segment ids) in numpy: keys of length one, documents that begin anywhere."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(B, T, N, w)) for w in (H, H, P))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    beta, decay = rng.uniform(0, 1, (B, T, N)), -rng.uniform(0, 0.3, (B, T, N))
    ids = np.cumsum(rng.uniform(size=(B, T)) < 0.15, axis=1)
    return [q, k, v, beta, decay, rng.normal(size=(B, N, H, P))], ids


def call(kind, ids, q, k, v, beta, decay, memory, **options):
    """out, and the last memory behind it as one more value: gradients of both are asked for."""
    state = LinearState(memory, jnp.asarray(ids[:, 0]))
    options |= {"state": state, "segment_ids": jnp.asarray(ids)}
    if kind == "delta":
        out, after = gated_delta_rule(q, k, v, beta, decay, **options)
    else:
        out, after = linear_attention(q, k, v, decay=decay if kind == "decay" else None, **options)
    return out, after.memory


@pytest.mark.parametrize("kind, case", [("plain", "tpu short"), ("plain", "gpu groups"), *(
    (kind, case) for kind in ("decay", "delta") for case in CASES)])  # fmt: skip
def test_values_and_gradients_in_float64(x64_in_threads, kind, case):
    """Values against loops in numpy; gradients against those of the recurrence, which the other tests hold to loops."""
    implementation, *size, chunk = CASES[case]
    args, ids = drawn(*size)
    begins = np.asarray(boundaries(jnp.asarray(ids), jnp.asarray(ids[:, 0])))
    decay = args[4] if kind != "plain" else 0 * args[4]
    plain = remembered(*args[:3], args[3] if kind == "delta" else None, decay, begins, args[5])
    args = [jnp.asarray(x) for x in args]
    options = {"chunk_size": chunk, "implementation": implementation, "interpret": True}
    result, gradients = with_gradients(functools.partial(call, kind, ids, **options), joined)(*args)
    reference = functools.partial(call, kind, ids, implementation="reference")
    wanted = with_gradients(reference, joined)(*args)[1]
    terms = sum(size) * 2.0**-52
    for got, want in zip((*result, *gradients), (*plain, *wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=terms * max(1, np.abs(want).max()))
    assert all(float(jnp.abs(g).max()) > 1e-3 for g in (*gradients[:3], gradients[5]))


def magnitudes(kind, ids, q, k, v, beta, decay, memory):
    """The sums of magnitudes that errors are measured by: results of the recurrence with every sign a plus."""
    begins = boundaries(jnp.asarray(ids), jnp.asarray(ids[:, 0]))

    def step(memory, xs):
        q, k, v, beta, decay, begin = xs
        memory = jnp.where(begin[:, None, None, None], 0, memory * jnp.exp(decay)[..., None, None])
        if kind == "delta":
            v = beta[..., None] * (v + jnp.einsum("bnh,bnhp->bnp", k, memory))
        memory = memory + k[..., None] * v[..., None, :]
        return memory, jnp.einsum("bnh,bnhp->bnp", q, memory)

    xs = [jnp.moveaxis(x, 1, 0) for x in (q, k, v, beta, decay, begins)]
    memory, out = jax.lax.scan(step, memory, xs)
    return jnp.moveaxis(out, 0, 1), memory


def roundings(implementation, steps):
    """How many roundings to bfloat16 a product meets at most on its way to the results: (forward, backward).

    Into a chunk a memory is rounded once, out of it what is written once more; the GPU's walk also rounds the map that
    it applies. In the last chunk: scores, what is written, the result. Backwards a path has as many again on its way to
    the inputs, and the gradients that were rounded with it.
    """
    forward = (3 if implementation == "pallas_gpu" else 2) * steps + 3
    return forward, 2 * forward + 3


def rounded(B, T, N, H, P):
    """As `drawn`, in jnp: tokens in bfloat16, beta small, else magnitudes grow by half a token and say nothing."""
    args, ids = drawn(B, T, N, H, P, seed=3)
    args[3] /= 10
    return [jnp.asarray(x, jnp.bfloat16 if i < 3 else jnp.float32) for i, x in enumerate(args)], ids


def probed(kind, args, ids, **options):
    """[out, last memory, the gradient of each of args]."""
    return jax.tree.leaves(with_gradients(functools.partial(call, kind, ids, **options), joined)(*args))


def assert_within_roundings(kind, args, ids, got, met):
    """Every product that the exact results are sums of is off by the roundings it met (forward, backward) at most."""
    exact = [x.astype(jnp.float64) for x in args]
    want = probed(kind, exact, ids, implementation="reference")
    sizes, pull = jax.vjp(
        functools.partial(magnitudes, kind, ids), *(x if i == 4 else jnp.abs(x) for i, x in enumerate(exact))
    )
    bounds = [*sizes, *pull(jax.tree.map(jnp.ones_like, sizes))]  # the probe weighs results by a cosine
    for i, (g, w, bound) in enumerate(zip(got, want, bounds, strict=True)):
        # Sums are float32; a decay's gradient is a difference of running sums over the tokens.
        added = bound.sum(axis=1, keepdims=True) if i == 6 else bound
        bound = met[i > 1] * 2.0**-8 * bound + 2.0**-23 * sum(args[0].shape) * added
        assert bool(jnp.all(jnp.abs(g.astype(jnp.float64) - w) <= bound)), i


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu"])
def test_bfloat16_within_its_roundings_at_a_published_width(x64_in_threads, implementation):
    """H = P = 128 and chunks of 64, as published."""
    given = rounded(1, 128, 1, 128, 128)
    got = probed("delta", *given, chunk_size=64, implementation=implementation, interpret=True)
    assert got[0].dtype == jnp.bfloat16 and got[1].dtype == jnp.float32
    assert_within_roundings("delta", *given, got, roundings(implementation, 2))


@pytest.mark.parametrize("size", [1, 24])
def test_a_tile_is_inverted_as_the_batches_are(x64_in_threads, size):
    below = jnp.tril(jnp.asarray(np.random.default_rng(size).uniform(-1, 1, (size, size))), -1)
    found, pull = jax.vjp(tiles.inverse, below)
    want, pull_want = jax.vjp(inverse, below)
    scale = float(jnp.abs(want).max())
    np.testing.assert_allclose(found, want, rtol=0, atol=2.0**-52 * size * scale**2)
    ct = jnp.cos(jnp.arange(size * size, dtype=float)).reshape(size, size)
    # Of entries that are always zero the batches' form has no gradient.
    (got,), (want,) = pull(ct), pull_want(ct)
    np.testing.assert_allclose(jnp.tril(got, -1), want, rtol=0, atol=2.0**-52 * size**2 * scale**3)


def structs(B, T, N, H, P, dtype):
    tokens = [(B, T, N, H), (B, T, N, H), (B, T, N, P)]
    rates = [jax.ShapeDtypeStruct((B, T, N), jnp.float32)] * 2
    return [jax.ShapeDtypeStruct(s, dtype) for s in tokens] + rates + [jax.ShapeDtypeStruct(tokens[2], dtype)]


def program(kind, **options):
    """Forward and backward in one program."""

    def run(q, k, v, beta, decay, cotangent):
        def op(q, k, v, beta, decay):
            if kind == "delta":
                return gated_delta_rule(q, k, v, beta, decay, **options)[0]
            return linear_attention(q, k, v, decay=decay, **options)[0]

        out, pull = jax.vjp(op, q, k, v, beta, decay)
        return out, pull(cotangent)

    return run


COMPILED = [
    ("v5e", "delta", (1, 1024, 1, 128, 128, jnp.bfloat16), 64, 3),
    ("v5p", "delta", (1, 1024, 1, 128, 128, jnp.bfloat16), 64, 3),
    ("v6e", "delta", (1, 1024, 1, 128, 128, jnp.bfloat16), 64, 3),
    ("v5e", "decay", (1, 120, 2, 20, 36, jnp.float32), 24, 2),
]


@pytest.mark.parametrize("generation, kind, size, chunk, kernels", COMPILED)
def test_tpu_kernels_compile_by_themselves(generation, kind, size, chunk, kernels):
    """Forward, the memories that were not kept (at one chunk of 64 for 128 x 128 numbers), backward."""
    compiled = compile_for_tpu(program(kind, chunk_size=chunk), *structs(*size), generation=generation)
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == kernels


@pytest.mark.parametrize("kind", ["decay", "delta"])
def test_tpu_kernels_move_their_arrays_once(kind):
    found = moves(program(kind, chunk_size=64), *structs(2, 1024, 2, 128, 128, jnp.bfloat16))
    assert set(found) == {"linear_attention", "linear_attention_again", "linear_attention_backward"}
    assert max(found.values()) == 1


@pytest.mark.parametrize("kind, kernels", [("decay", 7), ("delta", 7)])
def test_gpu_kernels_lower_where_they_are_named(kind, kernels):
    """prepare, scan and read; prepare, entering, scan and pull, of memories that were all kept."""
    named = program(kind, chunk_size=64, implementation="pallas_gpu")
    text = lower_for_cuda(named, *structs(2, 320, 2, 64, 64, jnp.bfloat16))
    assert text.count("__gpu$xla.gpu.triton") == kernels


def test_what_no_kernel_takes_stays_with_the_formulas():
    assert "triton" not in lower_for_cuda(program("delta", chunk_size=64), *structs(1, 64, 1, 16, 16, jnp.bfloat16))
    wide = compile_for_tpu(program("decay", chunk_size=8), *structs(1, 16, 1, 8, tpu.WIDEST + 1, jnp.float32))
    assert "tpu_custom_call" not in wide.as_text()
    said = {
        (name, *sizes): unsupported(name, jnp.bfloat16, *sizes)
        for name, module in (("pallas_tpu", tpu), ("pallas_gpu", gpu))
        for sizes in ((64, 64, module.WIDEST, 16), (64, 64, 16, module.WIDEST + 1), (63, 64, 16, 16), (64, 12, 16, 16))
    }
    for (_, length, size, _, depth), reason in said.items():
        words = {16: "no whole chunk" if length < size else "chunk_size=12"}.get(depth, "wide")
        assert reason is None if (length, size, depth) == (64, 64, 16) else words in reason
    assert "float64" in unsupported("pallas_tpu", jnp.dtype("float64"), 64, 64, 16, 16)


def test_a_named_kernel_runs_there_or_refuses():
    q, k, v, beta, decay = (jnp.zeros((1, 64, 1, *w), jnp.float32) for w in ((16,), (16,), (16,), (), ()))
    for name in ("pallas_tpu", "pallas_gpu"):
        with pytest.raises(NotImplementedError, match="runs on"):
            jax.jit(functools.partial(gated_delta_rule, implementation=name))(q, k, v, beta, decay)
        with pytest.raises(NotImplementedError, match="no whole chunk of 128; use 'chunked'"):
            gated_delta_rule(q, k, v, beta, decay, chunk_size=128, implementation=name)
