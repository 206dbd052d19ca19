"""Bench rows of `kernels/pattention`: the fused forms beside XLA's own fusion of the reference."""

import functools
from collections.abc import Iterator
from typing import Any

import jax

from experiments.bench import ops
from experiments.bench.comparison import Comparison, Planned
from kernels.pattention import pattention, shapes

BASELINE = "reference"


def planned(platform: str) -> Iterator[Planned]:
    """Rows for `platform`: the published sizes everywhere, those of a laptop model on a CPU too."""
    dtype = "float32" if platform == "cpu" else "bfloat16"
    for shape in (*shapes.BENCH, *(shapes.CPU_BENCH if platform == "cpu" else ())):
        for backward in (False, True):
            name = f"pattention/{shape.T}x{shape.D}x{shape.P}/{'f+b' if backward else 'fwd'}"
            yield Planned(
                name,
                functools.partial(_row, name, shape, dtype, backward, platform),
                functools.partial(_ahead_of_time, shape, backward),
            )


def _inputs(shape: shapes.Shape, dtype: str) -> tuple[list[jax.Array], jax.Array]:
    """x, keys, values and the cotangent of the output."""
    *inputs, cotangent = ops.normal(
        dtype, (shape.T, shape.D), (shape.P, shape.D), (shape.P, shape.V), (shape.T, shape.V)
    )
    return inputs, cotangent


def _forwards(platform: str) -> dict[str, ops.Forward]:
    kernel = {"tpu": ["tpu"], "gpu": ["gpu"], "cuda": ["gpu"]}.get(platform, [])
    return {name: functools.partial(pattention, implementation=name) for name in (*kernel, "xla", BASELINE)}


def _row(name: str, shape: shapes.Shape, dtype: str, backward: bool, platform: str) -> Comparison:
    return ops.row(
        name,
        _forwards(platform),
        _inputs(shape, dtype),
        backward,
        baseline=BASELINE,
        check=lambda: _check(shape, dtype, backward, platform),
        # Scores and their product with the values; backward a gradient of each factor. Scores computed again are not
        # counted: they are not work that was asked for.
        flops=2 * shape.T * shape.P * (shape.D + shape.V) * (1 + 2 * backward),
        rounds=5,
        work=(shape.T, "tokens"),
    )


def _check(shape: shapes.Shape, dtype: str, backward: bool, platform: str) -> str:
    """Every implementation against the reference in float32, on at most 512 of the row's tokens."""
    short = shape._replace(T=min(shape.T, 512))
    tolerance = ops.tolerance(dtype, 8, max(short))  # scores, weights, both parts of their gradient, each result
    exact = functools.partial(pattention, implementation=BASELINE)
    return ops.wrong(_forwards(platform), exact, _inputs(short, dtype), backward, tolerance)


def _ahead_of_time(shape: shapes.Shape, backward: bool, generation: str) -> dict[str, Any]:
    args = jax.eval_shape(lambda: _inputs(shape, "bfloat16"))
    return ops.ahead_of_time(
        {name: functools.partial(pattention, implementation=name) for name in ("tpu", BASELINE)},
        args,
        backward,
        generation,
    )
