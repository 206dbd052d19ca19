"""What the tests of both flash kernels share: masks, inputs, the float64 answer, and the derived bound for bfloat16."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels import masks
from kernels.attention import reference
from kernels.attention.scoring import Result, Scoring
from kernels.masks import AnyOrder, BlockCausal, BlockDiffusion, Causal, Dense, Full, Prefix, Segments, Sinks, Window


class Case(NamedTuple):
    """A mask and the shape it is read at; `softcap` and `sinks` as in `attention`."""

    name: str
    mask: Any
    T: int
    S: int
    N: int = 2
    K: int = 1
    H: int = 32
    softcap: float | None = None
    sinks: bool = False
    B: int = 1


def segment_ids(B: int, length: int, seed: int = 0) -> np.ndarray:
    """Packed documents of random lengths, numbered in order, with padding (id 0) behind: int32 [B, length]."""
    rng = np.random.default_rng(seed)
    ids = 1 + (rng.random((B, length)) < 6 / length).cumsum(1)
    return np.where(np.arange(length) < length - 1 - rng.integers(0, length // 4, (B, 1)), ids, 0).astype(np.int32)


def cases() -> list[Case]:
    """Every mask and combinations of three, at odd lengths, with heads alone, grouped and shared."""
    rng = np.random.default_rng(1)
    order = np.stack([rng.permutation(277) for _ in range(2)]).astype(np.int32)
    parents = np.array([[-1, 0, 0, 1, 1, 2, -1, 6, 7]], np.int32)
    shuffled = rng.permutation(260)[None].astype(np.int32)
    return [
        Case("full", Full(), 63, 261, N=4, K=2),
        Case("causal", Causal(), 277, 277, N=4, K=2, B=2),
        Case("causal_more_queries", Causal(), 260, 130, softcap=5.0, sinks=True),
        Case("window_sinks", Causal() & (Window(40) | Sinks(3)), 270, 270, softcap=20.0),
        Case("block_causal", BlockCausal(48), 130, 260, N=2, K=2, H=80),
        Case("block_diffusion", BlockDiffusion(135, 16), 270, 270),
        Case("segments", Causal() & Segments(segment_ids(2, 277)), 277, 277, N=4, K=1, sinks=True, B=2),
        Case("prefix", (Causal() | Prefix(np.array([100, 3], np.int32))) & ~Window(5), 150, 150, B=2),
        Case("positions", masks.Positions(shuffled, shuffled - 9, "causal & window(70)"), 260, 260),
        Case("any_order", ~AnyOrder(order, True) & Full() | Sinks(1), 277, 277, B=2),
        Case("tree", masks.Tree(parents), 9, 140, softcap=3.0),
        Case("dense", Dense(rng.random((2, 2, 140, 150)) < 0.3), 140, 150, N=2, K=1, B=2),
        Case("nothing", Window(10, 10), 300, 20),
    ]


def accelerator_masks(T: int) -> dict[str, tuple[Any, tuple]]:
    """name -> (mask from its arrays, shapes of the arrays) of every kind of mask, at T = S."""
    ids = jax.ShapeDtypeStruct((1, T), jnp.int32)
    each = {
        "full": (Full, ()),
        "causal": (Causal, ()),
        "window": (lambda: Causal() & (Window(1024) | Sinks(4)), ()),
        "block_causal": (lambda: BlockCausal(96), ()),
        "block_diffusion": (lambda: BlockDiffusion(T // 2, 32), ()),
        "segments": (lambda a: Causal() & Segments(a), (ids,)),
        "prefix": (lambda a: Causal() | Prefix(a), (jax.ShapeDtypeStruct((1,), jnp.int32),)),
        "positions": (lambda a, b: masks.Positions(a, b, "causal & window(512)"), (ids, ids)),
        "any_order": (lambda a: ~AnyOrder(a, True), (ids,)),
        "tree": (masks.Tree, (ids,)),
    }
    # At 131,072 the array itself has 17 GB.
    dense = {"dense": (Dense, (jax.ShapeDtypeStruct((T, T), jnp.bool_),))} if T <= 8192 else {}
    return each | dense


def programs(module: Any, mask: Any, extra: tuple, T: int, N: int = 2, H: int = 128) -> list[tuple]:
    """(function, shapes) of the forward and of the backward pass, in bfloat16."""
    q = jax.ShapeDtypeStruct((1, T, N, H), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, T, 1, H), jnp.bfloat16)
    lse = jax.ShapeDtypeStruct((1, N, T), jnp.float32)

    def forward(q, k, v, *arrays):
        return module.forward(q, k, v, Scoring(mask(*arrays), H**-0.5))

    def backward(q, k, v, out, lse, d_out, d_lse, *arrays):
        scoring = Scoring(mask(*arrays), H**-0.5)
        return module.backward(q, k, v, scoring, Result(out, lse), Result(d_out, d_lse))

    return [(forward, (q, k, k, *extra)), (backward, (q, k, k, q, lse, q, lse, *extra))]


def inputs(case: Case, dtype: Any = jnp.float32) -> tuple:
    """q, k, v, sinks, d_out, d_lse of a case; d_lse is 0 where a row sees nothing, because lse is -inf there."""
    B, T, S, N, K, H = case.B, case.T, case.S, case.N, case.K, case.H
    rng = np.random.default_rng(len(case.name))
    q, k, v, d_out = (
        jnp.asarray(rng.normal(size=shape), dtype) for shape in ((B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H))
    )
    sinks = jnp.asarray(rng.normal(size=N), jnp.float32) if case.sinks else None
    some = np.asarray(case.mask.dense(T, S)).any(-1)
    return q, k, v, sinks, d_out, jnp.asarray(rng.normal(size=(B, N, T)) * (some | case.sinks), jnp.float32)


def kernel_results(module: Any, case: Case, given: tuple, interpret: Any = True) -> dict[str, np.ndarray]:
    """out, lse and all gradients from the kernels of `module`, in the simulator that `interpret` names."""
    scale = case.H**-0.5

    @jax.jit
    def run(q, k, v, sinks, d_out, d_lse):
        scoring = Scoring(case.mask, scale, None, case.softcap, sinks)
        result = Result(*module.forward(q, k, v, scoring, interpret=interpret))
        return *result, module.backward(q, k, v, scoring, result, Result(d_out, d_lse), interpret=interpret)

    out, lse, (dq, dk, dv, _, d_sinks) = run(*given)
    named = {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv, "d_sinks": d_sinks}
    return {name: np.asarray(x, np.float64) for name, x in named.items() if x is not None}


def reference_results(case: Case, given: tuple) -> dict[str, np.ndarray]:
    """The same in float64 from the reference."""
    with jax.enable_x64(True):
        q, k, v, sinks, d_out, d_lse = (None if x is None else jnp.asarray(np.asarray(x, np.float64)) for x in given)

        @jax.jit
        def run(q, k, v, sinks, d_out, d_lse):
            scoring = Scoring(case.mask, case.H**-0.5, None, case.softcap, sinks)
            result = Result(*reference.forward(q, k, v, scoring))
            return *result, reference.backward(q, k, v, scoring, result, Result(d_out, d_lse))

        out, lse, (dq, dk, dv, _, d_sinks) = run(q, k, v, sinks, d_out, d_lse)
        named = {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv, "d_sinks": d_sinks}
        return {name: np.asarray(x) for name, x in named.items() if x is not None}


def assert_close(actual: dict, wanted: dict, relative: float) -> None:
    """Equal within `relative` of the largest entry of each array; infinities in the same places."""
    assert actual.keys() == wanted.keys()
    for name, want in wanted.items():
        finite = np.isfinite(want)
        np.testing.assert_array_equal(np.isfinite(actual[name]), finite, err_msg=name)
        actual_finite, want = np.where(finite, actual[name], 0), np.where(finite, want, 0)
        error, largest = np.abs(actual_finite - want).max(), np.abs(want).max()
        assert error <= relative * largest, f"{name}: {error} of {largest}"


def assert_within_roundings(actual: dict, wanted: dict, case: Case, given: tuple, u: float = 2.0**-8) -> None:
    """Error bounds of the kernels in short floats from their roundings, u each: 2^-8 of bfloat16, 2^-11 of float16.

    Rounded are p before it meets v (weight P of it in out), out itself (so also delta, by u |out| . |d_out| more), ds
    before it meets q or k, and each result. Sums are float32: their error is far below and gets a tenth of the bound.
    """
    q, k, v, sinks, d_out, d_lse = (None if x is None else np.asarray(x, np.float64) for x in given)
    (B, S, K, H), group, scale = k.shape, case.N // case.K, case.H**-0.5
    k, v = (x.repeat(group, axis=2) for x in (k, v))
    seen = np.broadcast_to(np.asarray(case.mask.dense(case.T, case.S)), (case.B, case.N, case.T, case.S))
    score, slope = np.einsum("btnh,bsnh->bnts", q, k) * scale, 1.0
    if case.softcap is not None:
        score = case.softcap * np.tanh(score / case.softcap)
        slope = 1 - (score / case.softcap) ** 2
    lse = np.where(np.isfinite(wanted["lse"]), wanted["lse"], 0)
    P = np.where(seen, np.exp(np.where(seen, score - lse[..., None], 0)), 0)
    spread_out = np.einsum("bnts,bsnh->btnh", P, np.abs(v))
    d_delta = 2 * u * np.einsum("btnh,btnh->bnt", spread_out, np.abs(d_out))[..., None]
    delta = np.einsum("btnh,btnh->bnt", wanted["out"], d_out) - d_lse
    ds = P * (np.einsum("btnh,bsnh->bnts", d_out, v) - delta[..., None]) * slope
    d_ds = u * np.abs(ds) + P * d_delta * slope

    def of_group(x: np.ndarray) -> np.ndarray:
        return x.reshape(B, S, K, group, H).sum(3)

    bounds = {
        "out": u * spread_out,
        "dq": scale * np.einsum("bnts,bsnh->btnh", d_ds, np.abs(k)),
        "dk": of_group(scale * np.einsum("bnts,btnh->bsnh", d_ds, np.abs(q))),
        "dv": of_group(u * np.einsum("bnts,btnh->bsnh", P, np.abs(d_out))),
    }
    if sinks is not None:
        bounds["d_sinks"] = np.einsum("bnt,bnt->n", np.exp(sinks[:, None] - lse), d_delta[..., 0])
    for name, bound in bounds.items():
        error, bound = np.abs(actual[name] - wanted[name]), bound + u * np.abs(wanted[name])
        assert (error <= 1.1 * bound + 1e-6).all(), f"{name}: {(error / (bound + 1e-6)).max()} of the bound"
    finite = np.isfinite(wanted["lse"])
    np.testing.assert_array_equal(np.isfinite(actual["lse"]), finite)
    np.testing.assert_allclose(actual["lse"][finite], wanted["lse"][finite], rtol=0, atol=1e-5)
