"""Bench rows of `kernels/linear_attention` and `kernels/ttt`: the platform's kernels beside the formulas in jnp."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import ops
from experiments.bench.comparison import Comparison, Planned
from kernels.linear_attention import gated_delta_rule, linear_attention
from kernels.ttt import TTTParams, ttt_linear

BASELINE = "chunked"
CHUNK = 64
# (B, T, N, H): many rows of a usual length, and one long one.
SHAPES = {"cpu": [(1, 1024, 4, 64)]}
OTHERS = [(8, 4096, 16, 128), (1, 32768, 16, 128)]
TTT, TTT_SHAPES, MINI_BATCH = "ttt/linear", [(8, 2048, 12, 64), (1, 32768, 12, 64)], 16
KERNEL = {"tpu": ["pallas_tpu"], "gpu": ["pallas_gpu"], "cuda": ["pallas_gpu"]}


def planned(platform: str) -> Iterator[Planned]:
    """Linear attention with decay, the gated delta rule and TTT-Linear, forward, and forward and backward."""
    dtype = "float32" if platform == "cpu" else "bfloat16"
    for kind in ("decay", "delta", TTT):
        for shape in TTT_SHAPES if kind == TTT and platform != "cpu" else SHAPES.get(platform, OTHERS):
            for backward in (False, True):
                family = kind if kind == TTT else f"linear_attention/{kind}"
                name = f"{family}/{shape[0]}x{shape[1]}/{'f+b' if backward else 'fwd'}"
                yield Planned(
                    name,
                    functools.partial(_row, name, kind, shape, dtype, backward, platform),
                    functools.partial(_ahead_of_time, kind, shape, backward),
                )


def _inputs(kind: str, shape: tuple[int, ...], dtype: str) -> tuple[list[jax.Array], jax.Array]:
    """q, k, v and the rates before their activations (decay; decay and beta; eta), and the cotangent of the output."""
    *tokens, cotangent = ops.normal(dtype, *[shape] * 4)
    return [*tokens, *ops.normal("float32", *[shape[:3]] * (1 + (kind == "delta")))], cotangent


def _forward(kind: str, implementation: str | None) -> ops.Forward:
    if kind == TTT:
        return functools.partial(_inner_model, implementation)

    def run(q, k, v, decay, *beta):
        length = jnp.sqrt(jnp.sum(jnp.square(k.astype(jnp.float32)), axis=-1, keepdims=True))
        k, decay = (k / length).astype(k.dtype), jax.nn.log_sigmoid(decay) / 16
        options = {"decay": decay, "chunk_size": CHUNK, "implementation": implementation}
        if kind == "delta":
            return gated_delta_rule(q, k, v, jax.nn.sigmoid(beta[0]), **options)[0]
        return linear_attention(q, k, v, **options)[0]

    return run


def _inner_model(implementation: str | None, q: jax.Array, k: jax.Array, v: jax.Array, eta: jax.Array):
    """TTT-Linear from the identity over 2."""
    N, H = q.shape[2:]
    maps = ((jnp.broadcast_to(jnp.eye(H) / 2, (1, N, H, H)), jnp.zeros((1, N, H))),)
    params = TTTParams(maps, jnp.ones((N, H)), jnp.zeros((N, H)), jnp.zeros(MINI_BATCH))
    eta = jax.nn.sigmoid(eta) / H
    return ttt_linear(q, k, v, eta, params, mini_batch=MINI_BATCH, implementation=implementation)[0]


def _forwards(kind: str, platform: str) -> dict[str, ops.Forward]:
    kernels = () if kind == TTT and platform != "tpu" else KERNEL.get(platform, ())
    return {name: _forward(kind, name) for name in (*kernels, BASELINE)}


def _flops(kind: str, shape: tuple[int, ...], backward: bool) -> float:
    """Scores and what they read, writing and reading the memory; with the delta rule the overlap of the keys, its side
    of the system and the solution. The inverse of the system is not counted."""
    B, T, N, H = shape
    products = 4 * CHUNK * H + 4 * H**2 + (kind == "delta") * (4 * CHUNK * H + 2 * H**2)
    if kind == TTT:  # The map at keys and queries, and what it learns; the dual form's two products of a mini-batch.
        products = 6 * H**2 + 4 * MINI_BATCH * H
    return B * T * N * products * (1 + 2 * backward)


def _row(name: str, kind: str, shape: tuple[int, ...], dtype: str, backward: bool, platform: str) -> Comparison:
    return ops.row(
        name,
        _forwards(kind, platform),
        _inputs(kind, shape, dtype),
        backward,
        baseline=BASELINE,
        check=lambda: _check(kind, shape, dtype, backward, platform),
        flops=_flops(kind, shape, backward),
        work=(shape[0] * shape[1], "tokens"),
    )


def _check(kind: str, shape: tuple[int, ...], dtype: str, backward: bool, platform: str) -> str:
    """Every implementation against the formulas in float32, on three chunks of the row."""
    short = (1, 3 * CHUNK, *shape[2:])
    tolerance = ops.tolerance(dtype, 16, 3 * CHUNK)  # three roundings a chunk and four at the end, twice backward
    return ops.wrong(
        _forwards(kind, platform), _forward(kind, BASELINE), _inputs(kind, short, dtype), backward, tolerance
    )


def _ahead_of_time(kind: str, shape: tuple[int, ...], backward: bool, generation: str) -> dict[str, Any]:
    args = jax.eval_shape(lambda: _inputs(kind, shape, "bfloat16"))
    return ops.ahead_of_time(
        {name: _forward(kind, name) for name in ("pallas_tpu", BASELINE)}, args, backward, generation,
        _flops(kind, shape, backward),
    )  # fmt: skip
