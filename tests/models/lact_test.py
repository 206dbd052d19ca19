"""The LaCT layer against its formulas token by token, what each branch may see, and decoding with Newton-Schulz."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from kernels import masks
from models.mixers import Context
from models.mixers.lact import Lact
from models.spec import Spec

B, T, C, W = 2, 17, 4, 6
NS5 = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]


def spec(dtype="float64", **options):
    config = base.get_config().model
    config.update({"width": 16, "num_heads": 4, "init": "fan_in", "dtype": dtype, "param_dtype": dtype})
    config.lact.update({"heads": 2, "chunk_size": C, "window": W, "rank": 3, "base_rate": 0.3, **options})
    return Spec.from_config(config.to_dict(), vocab_size=7)


def layer(dtype="float64", **options):
    """The layer with every parameter away from its start, so that none can be forgotten."""
    made = Lact(spec(dtype, **options), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(made)
    rng = np.random.default_rng(1)
    return graphdef, jax.tree.map(lambda p: p + jnp.asarray(0.1 * rng.normal(size=p.shape), p.dtype), params)


def inputs(dtype="float64"):
    return jnp.asarray(np.random.default_rng(0).normal(size=(B, T, 16)), dtype)


def context(positions=None):
    return Context(jnp.arange(T)[None] if positions is None else positions, None, masks.Causal())


def whole(graphdef):
    return jax.jit(lambda params, x: nnx.merge(graphdef, params)(x, context())[0])


# ==================== The formulas, in loops ====================


def silu(x):
    return x / (1 + np.exp(-x))


def rows(w):
    return np.sqrt(np.sum(w * w, axis=1, keepdims=True))


def rms(x, scale):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5) * scale


def rotated(x, theta):
    """Rotary positions 0..T-1 on `[T, N H]`, four heads, rotate-half."""
    x = x.reshape(T, 4, -1)
    half = x.shape[-1] // 2
    angle = np.arange(T)[:, None] * theta ** (-np.arange(half) / half)
    turn = x[..., :half] + 1j * x[..., half:]
    turn = turn * np.exp(1j * angle)[:, None]
    return np.concatenate([turn.real, turn.imag], axis=-1).reshape(T, -1)


def orthogonalised(d):
    x = d / (np.linalg.norm(d) + 1e-7)  # square here: F = d
    for a, b, c in NS5:
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x


def fast_head(q, k, v, rate, gate, start):
    """One row and head: apply, then update with what the chunk taught."""
    norms, (w0, w1, w2), sums = [rows(w) for w in start], start, list(start)
    buffer, out = [0, 0, 0], []
    for begin in range(0, T, C):
        at = slice(begin, begin + C)
        out += [w1 @ (silu(w0 @ x) * (w2 @ x)) for x in q[at]]
        update = [gate[at].mean() * m for m in buffer]
        for x, y, r in zip(k[at], v[at], rate[at], strict=True):
            g, u, dh = w0 @ x, w2 @ x, w1.T @ y
            s = 1 / (1 + np.exp(-g))
            update[0] = update[0] + r[0] * np.outer(dh * u * s * (1 + g * (1 - s)), x)
            update[1] = update[1] + r[1] * np.outer(y, g * s * u)
            update[2] = update[2] + r[2] * np.outer(dh * g * s, x)
        buffer = update
        sums = [m + orthogonalised(d) for m, d in zip(sums, update, strict=True)]
        w0, w1, w2 = (n * m / (rows(m) + 1e-5) for n, m in zip(norms, sums, strict=True))
    return np.array(out)


def by_the_formulas(p, x, theta=1e6):
    """The layer with qk_norm, momentum, Newton-Schulz and pre-norm on one row `[T, 16]`; p: its parameters."""
    q, k, v = x @ p["q"]["kernel"], x @ p["k"]["kernel"], x @ p["v"]["kernel"]
    q, k = rms(q, p["q_norm"]["scale"]), rms(k, p["k_norm"]["scale"])
    gates = {name: x @ p[name]["map"]["kernel"] + p[name]["bias"] for name in ("rate", "momentum", "output_scale")}
    near = []
    for h in (slice(4 * i, 4 * i + 4) for i in range(4)):
        a, b = rotated(q, theta)[:, h], rotated(k, theta)[:, h]
        for t in range(T):
            first = max(0, t - W + 1)
            weight = np.exp(a[t] @ b[first : t + 1].T / 2)
            near.append(weight @ v[first : t + 1, h] / weight.sum())
    near = np.array(near).reshape(4, T, 4).swapaxes(0, 1).reshape(T, 16)
    fq, fk = (silu(y * p["scale"][i] + p["offset"][i]) for i, y in enumerate((q, k)))
    unit = lambda y: y.reshape(T, 2, 8) / (np.linalg.norm(y.reshape(T, 2, 8), axis=2)[..., None] + 1e-5)  # noqa: E731
    fq, fk, fv = rotated(unit(fq), theta).reshape(T, 2, 8), rotated(unit(fk), theta).reshape(T, 2, 8), silu(v)
    rate = np.log1p(np.exp(gates["rate"] + np.log(np.expm1(0.3)))).reshape(T, 2, 3)
    momentum = 1 / (1 + np.exp(-gates["momentum"]))
    far = []
    for h in range(2):
        low = [p[f"left{i}"][h] @ p[f"right{i}"][h] + 0.5 * np.eye(8) for i in (0, 2)]
        start = (low[0], p["w1"][h], low[1])
        read = fast_head(fq[:, h], fk[:, h], fv[:, 8 * h : 8 * h + 8], rate[:, h], momentum[:, h], start)
        far.append(rms(read, p["fast_norm"]["scale"]) * silu(gates["output_scale"][:, h : h + 1]))
    return (near + np.concatenate(far, axis=1)) @ p["out"]["kernel"]


HARD = {"normalize": "pre", "qk_norm": True}  # with Newton-Schulz and momentum, which are on


def test_the_layer_is_its_formulas(x64):
    graphdef, params = layer(**HARD)
    plain = jax.tree.map(np.asarray, nnx.to_pure_dict(params))
    got = whole(graphdef)(params, inputs())
    for row in range(B):
        # float64 rounding, amplified by Newton-Schulz (up to 493 an update, see below) in each of four updates.
        np.testing.assert_allclose(got[row], by_the_formulas(plain, np.asarray(inputs()[row])), rtol=0, atol=1e-10)


# ==================== Decoding ====================


def in_pieces(graphdef, params, x):
    """Prompts of 9 and 5 tokens padded to 9, then steps; the outputs of row 0's T tokens and row 1's T - 4."""

    @jax.jit
    def read(params, piece, positions, state):
        return nnx.merge(graphdef, params)(piece, context(positions), state)

    state, done, outs = nnx.merge(graphdef, params).init_state(B, T), np.zeros(B, int), [[], []]
    for width, *used in ((9, 9, 5), *[(1, 1, 1)] * (T - 9)):
        at = done[:, None] + np.arange(width)
        real = np.arange(width) < np.array(used)[:, None]
        piece = jnp.where(real[..., None], jnp.take_along_axis(x, jnp.asarray(at)[..., None], axis=1), 1e3)
        out, state = read(params, piece, jnp.where(real, at, -1), state)
        for row in range(B):
            outs[row].append(out[row, : used[row]])
        done += used
    return [jnp.concatenate(row) for row in outs]


def test_prefill_and_steps_equal_the_whole_with_newton_schulz(x64):
    """Ragged prompts, padding of size 1000. Equal in float64; in float32 within what Newton-Schulz makes of rounding.

    A chunk's update D is a sum of C products, so each form has it to C eps / 2 of its norm, and the forms differ by
    C eps. One step x -> a x + b x^3 + c x^5 multiplies a small singular value, and an error on it, by a: five steps by
    4.0848 * 3.9505 * 3.7418 * 2.8769 * 2.8366 = 493. Every update adds such an error to the weights, whose rows are of
    length 1; the outputs are read through norms and projections of unit gain, hence relative to their size.
    """
    graphdef, params = layer(**HARD)
    want = whole(graphdef)(params, inputs())
    scale, gain = float(jnp.abs(want).max()), float(np.prod([a for a, _, _ in NS5]))
    for dtype in ("float64", "float32"):
        graphdef, params = layer(dtype, **HARD)
        bound = ((T - 1) // C) * gain * C * float(np.finfo(dtype).eps) * scale
        assert bound < 0.01 * scale  # Or the test could not see a wrong chunk.
        alone = whole(graphdef)(params, inputs(dtype))
        for row, got in enumerate(in_pieces(graphdef, params, inputs(dtype))):
            np.testing.assert_allclose(got, alone[row, : len(got)], rtol=0, atol=bound)


# ==================== What a token may see ====================


def reach(graphdef, params):
    """`[T, T]`: whether the output of token t depends on the input of token s."""
    weigh = jnp.asarray(np.random.default_rng(2).normal(size=16))

    def outputs(x):
        return nnx.merge(graphdef, params)(x[None], context())[0][0] @ weigh

    return np.any(np.asarray(jax.jit(jax.jacrev(outputs))(inputs()[0])) != 0, axis=-1)


def test_the_fast_branch_sees_earlier_chunks_only(x64):
    """A window of one leaves each token itself, so every other token in reach came through the fast weights."""
    chunk = np.arange(T) // C
    expected = (chunk[None] < chunk[:, None]) | np.eye(T, dtype=bool)
    np.testing.assert_array_equal(reach(*layer(window=1)), expected)


def test_the_attention_branch_sees_its_window_only(x64):
    graphdef, params = layer(newton_schulz_steps=0)
    params["fast_norm"]["scale"] = params["fast_norm"]["scale"] * 0
    back = np.arange(T)[:, None] - np.arange(T)
    np.testing.assert_array_equal(reach(graphdef, params), (back >= 0) & (back < W))


def test_another_mask_is_refused():
    graphdef, params = layer("float32")
    with pytest.raises(ValueError, match="model.mixer='lact' is causal"):
        nnx.merge(graphdef, params)(inputs("float32"), Context(jnp.arange(T)[None], None, masks.Full()))
