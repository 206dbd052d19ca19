"""Bench rows of mixtures of experts: a layer beside a dense one of the same FLOPs, and the grouped matmul by itself.

experts/layer          sorted dispatch, the same with `jax.lax.ragged_dot`, every expert on every token, everything
                       but the experts' products (routing, sorting, adding up), and a SwiGLU layer of width K F
experts/matmul         the grouped matmul beside `ragged_dot` and beside one matrix for all rows
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import ops
from experiments.bench.comparison import Comparison, Planned
from kernels.grouped_matmul import grouped_matmul
from models.experts import banks, dispatch, routers

BASELINE = "dense layer"


@dataclasses.dataclass(frozen=True)
class Layer:
    """T tokens of width D, E gated experts of hidden width F, K of them for each token."""

    T: int
    D: int
    F: int
    E: int
    K: int
    dtype: str

    def args(self) -> tuple[list[jax.Array], jax.Array]:
        """x, router, gate, up, down of the experts, and the cotangent of the output."""
        T, D, F, E = self.T, self.D, self.F, self.E
        *drawn, cotangent = ops.normal(self.dtype, (T, D), (D, E), (E, D, F), (E, D, F), (E, F, D), (T, D))
        return [
            a / np.sqrt(a.shape[-2]).astype(a.dtype) if a.ndim > 1 and i else a for i, a in enumerate(drawn)
        ], cotangent

    def dense_args(self) -> tuple[list[jax.Array], jax.Array]:
        """The same for a layer without a router, of hidden width K F."""
        made = dataclasses.replace(self, F=self.F * self.K, E=1)
        (x, _, *weights), cotangent = made.args()
        return [x, *(w[0] for w in weights)], cotangent

    def flops(self) -> float:
        """Forward and backward, of the experts' products."""
        return 3 * 2 * 3 * self.T * self.K * self.D * self.F


def _layer(form: str, K: int, x: jax.Array, router: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array):
    made = routers.softmax_after(routers.logits(x, router), K)
    if form == "every expert":
        return dispatch.dense(x, *made[2:], lambda x: banks.ffn(x, up, down, gate=gate)).astype(x.dtype)
    bank = {
        "sorted": functools.partial(banks.grouped_ffn, up=up, down=down, gate=gate),
        "ragged_dot": lambda rows, sizes: _ragged(rows, sizes, gate, up, down),
        "routing alone": lambda rows, sizes: rows * (sizes[0] >= 0),
    }[form]
    return dispatch.by_sorting(x, *made[2:], len(up), bank).astype(x.dtype)


def _ragged(rows: jax.Array, sizes: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    hidden = jax.nn.silu(jax.lax.ragged_dot(rows, gate, sizes)) * jax.lax.ragged_dot(rows, up, sizes)
    return jax.lax.ragged_dot(hidden, down, sizes)


def _dense(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    return jax.checkpoint(lambda gate, up: jax.nn.silu(gate) * up)(x @ gate, x @ up) @ down


def planned(platform: str) -> Iterator[Planned]:
    """A layer at E 8, K 2, T 4096, D 512 on a CPU; fine-grained experts on an accelerator too."""
    layers = [Layer(4096, 512, 1408, 8, 2, "float32")]
    if platform != "cpu":
        layers = [Layer(16384, 2048, 5632, 8, 2, "bfloat16"), Layer(16384, 2048, 1408, 64, 6, "bfloat16")]
    for layer in layers:
        size = f"{layer.T}x{layer.D}x{layer.F}/E{layer.E}K{layer.K}"
        yield Planned(f"experts/layer/{size}/f+b", functools.partial(_row, f"experts/layer/{size}/f+b", layer))
        for backward in (False, True):
            name = f"experts/matmul/{size}/{'f+b' if backward else 'fwd'}"
            yield Planned(
                name,
                functools.partial(_matmul, name, layer, backward),
                functools.partial(_ahead_of_time, layer, backward),
            )


def _row(name: str, layer: Layer) -> Comparison:
    forms = ("sorted", "ragged_dot", "every expert", "routing alone")
    forwards = {form: functools.partial(_layer, form, layer.K) for form in forms} | {BASELINE: _dense}
    args = dict.fromkeys(forms, layer.args()) | {BASELINE: layer.dense_args()}
    work = layer.flops()
    return ops.row(
        name, forwards, args, True, baseline=BASELINE, check=functools.partial(_check, layer),
        flops={form: work * (layer.E / layer.K if form == "every expert" else form != "routing alone")
               for form in forwards},
        work=(layer.T, "tokens"), rounds=9,
    )  # fmt: skip


def _check(layer: Layer) -> str:
    """Sorted and ragged against every expert on every token, on 256 tokens."""
    short = dataclasses.replace(layer, T=256)
    forwards = {form: functools.partial(_layer, form, layer.K) for form in ("sorted", "ragged_dot")}
    exact = functools.partial(_layer, "every expert", layer.K)
    # bfloat16 logits choose other experts than float32 ones: the check is in float32.
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), short.args())
    return ops.wrong(forwards, exact, wide, True, ops.tolerance("float32", 8, layer.F))


def _matmul_args(layer: Layer) -> tuple[list[jax.Array], jax.Array]:
    """Rows sorted by expert, loads as a fair draw has them."""
    M, D, F, E = layer.T * layer.K, layer.D, layer.F, layer.E
    x, w, cotangent = ops.normal(layer.dtype, (M, D), (E, D, F), (M, F))
    return [x, w], cotangent


def _sizes(layer: Layer) -> jax.Array:
    drawn = np.random.default_rng(0).multinomial(layer.T * layer.K, [1 / layer.E] * layer.E)
    return jnp.asarray(drawn, jnp.int32)


def _matmul_forwards(layer: Layer, implementation: str | None = None) -> dict[str, ops.Forward]:
    sizes = _sizes(layer)
    return {
        "grouped": lambda x, w: grouped_matmul(x, w, sizes, implementation=implementation),
        "ragged_dot": lambda x, w: jax.lax.ragged_dot(x, w, sizes),
    }


def _matmul(name: str, layer: Layer, backward: bool) -> Comparison:
    forwards = _matmul_forwards(layer) | {"one matrix": lambda x, w: x @ w[0]}
    short = dataclasses.replace(layer, T=256)
    exact = lambda x, w: grouped_matmul(x, w, _sizes(short), implementation="reference")  # noqa: E731
    check = functools.partial(
        ops.wrong, _matmul_forwards(short), exact, _matmul_args(short), backward,
        ops.tolerance(layer.dtype, 3, layer.D),
    )  # fmt: skip
    flops = 2 * layer.T * layer.K * layer.D * layer.F * (3 if backward else 1)
    return ops.row(
        name, forwards, _matmul_args(layer), backward, baseline="one matrix", check=check, flops=flops,
        work=(layer.T * layer.K, "rows"), rounds=7,
    )  # fmt: skip


def _ahead_of_time(layer: Layer, backward: bool, generation: str) -> dict[str, Any]:
    args = jax.eval_shape(lambda: _matmul_args(layer))
    return ops.ahead_of_time({"grouped": _matmul_forwards(layer, "pallas_tpu")["grouped"]}, args, backward, generation)
