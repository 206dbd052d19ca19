"""Bench rows of `models/mixers`: LaCT's chunk size at equal everything else, and every mixer against the length.

A row is one layer, forward and backward to its parameters and its input, on equal tokens a call where it can be. Rows
of an accelerator have the published width 1536 in bfloat16, those of a CPU a laptop's in float32.
"""

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import base
from experiments import workdir as files
from experiments.bench import ops
from experiments.bench.comparison import Comparison, Planned
from kernels import masks
from kernels.lact import lact
from models.mixers import MIXERS, Context
from models.spec import Spec

GROUP = "mixers"
CHECKED = 320  # Tokens of a check: a chunk of 128 is learned from twice and a short one is left over.


@dataclasses.dataclass(frozen=True)
class Layer:
    """One mixer of width D with N heads on `[B, T, D]`; `options` of its group, chunk and window as they are timed."""

    mixer: str
    D: int
    N: int
    B: int
    T: int
    dtype: str
    options: tuple[tuple[str, Any], ...] = ()

    def make(self) -> tuple[Any, dict]:
        """(graph, parameters): see `nnx.split`. Drawn on one device, the same for every dtype."""
        model = base.get_config().model
        model.update({"width": self.D, "num_heads": self.N, "dtype": self.dtype, "param_dtype": "float32"})
        model.update({self.mixer: dict(self.options)})
        spec = Spec.from_config(model.to_dict(), vocab_size=1)
        return nnx.split(MIXERS[self.mixer](spec, rngs=nnx.Rngs(0)))  # ty: ignore

    def forward(self) -> ops.Forward:
        """`(parameters, x) -> out`, causal."""
        graph, _ = jax.eval_shape(self.make)
        context = lambda T: Context(jnp.arange(T)[None], None, masks.Causal())  # noqa: E731
        return lambda params, x: nnx.merge(graph, params)(x, context(x.shape[1]))[0]

    def args(self) -> tuple[list, jax.Array]:
        """(parameters, x) and the cotangent of the output."""
        x, cotangent = ops.normal(self.dtype, *[(self.B, self.T, self.D)] * 2)
        return [jax.jit(lambda: self.make()[1])(), x], cotangent

    def flops(self) -> float:
        """FLOPs of a forward and a backward pass: every kernel once a token, and the mixer's own count beyond them."""
        mixer, params = nnx.eval_shape(lambda: nnx.merge(*self.make())), jax.eval_shape(self.make)[1]
        kernels = sum(math.prod(v.shape) for _, v in nnx.to_flat_state(params) if v.get_metadata("role") == "kernel")
        return 3 * self.B * self.T * (2 * kernels + sum(mixer.context_flops(self.T, True).values()))

    def short(self) -> "Layer":
        """The same code at a size that is quick in float32 on the host, chunks wider than the fast weights."""
        options = tuple((key, 128 if key in ("chunk_size", "window") else value) for key, value in self.options)
        return dataclasses.replace(self, D=256, N=4, B=1, T=CHECKED, options=options)


class FastWeights(Layer):
    """The fast branch of LaCT alone, `kernels.lact` on four heads of width d = D / 4: matmuls and nothing else."""

    heads = 4

    def forward(self) -> ops.Forward:
        """`(q, k, v, rates, momentum, w0, w1, w2) -> out`."""
        rule = {key: value for key, value in self.options if key != "window"}

        def run(q, k, v, rates, momentum, *weights):
            return lact(q, k, v, jax.nn.softplus(rates - 7), weights, momentum=jax.nn.sigmoid(momentum), **rule)[0]

        return run

    def args(self) -> tuple[list, jax.Array]:
        """Inputs, and the cotangent of the output."""
        d, rows = self.D // self.heads, (self.B, self.T, self.heads)
        q, k, v, cotangent = ops.normal(self.dtype, *[(*rows, d)] * 4)
        rates, momentum, *weights = ops.normal("float32", (*rows, 3), rows, *[(1, self.heads, d, d)] * 3)
        q, k = (x / math.sqrt(d) for x in (q, k))
        return [q, k, v, rates, momentum, *(w / math.sqrt(d) for w in weights)], cotangent

    def flops(self) -> float:
        """Of the layer, without its projections and its window."""
        mixer = nnx.eval_shape(lambda: nnx.merge(*self.make()))
        return 3 * self.B * self.T * mixer.context_flops(self.T, True)["fast"]


def planned(platform: str) -> Iterator[Planned]:
    """LaCT at chunk 2048 and 16, the layer (Newton-Schulz or not) and its fast weights; every mixer at each length."""
    for steps in (5, 0):
        name = f"{GROUP}/lact/newton_schulz={steps}/f+b"
        yield Planned(name, functools.partial(_row, name, _chunks(platform, steps), "chunk 16"))
    name = f"{GROUP}/lact/fast_weights/f+b"
    fast = {key: FastWeights(**vars(layer)) for key, layer in _chunks(platform, 5).items()}
    yield Planned(
        name, functools.partial(_row, name, fast, "chunk 16"), functools.partial(_ahead_of_time, fast["chunk 2048"])
    )
    for length in (1024, 4096, 16384) if platform == "cpu" else (4096, 32768):
        name = f"{GROUP}/T={length}/f+b"
        yield Planned(name, functools.partial(_row, name, _mixers(platform, length), "attention"))


def _chunks(platform: str, steps: int) -> dict[str, Layer]:
    """The released layer at both chunk sizes, window 2048; small chunks on fewer tokens, as their cost is linear."""
    D, N, B, T, dtype = (256, 4, 1, 8192, "float32") if platform == "cpu" else (1536, 24, 8, 16384, "bfloat16")
    made = {}
    for chunk, length in ((2048, T), (16, T // 16)):
        options = (("chunk_size", chunk), ("window", 2048), ("newton_schulz_steps", steps))
        made[f"chunk {chunk}"] = Layer("lact", D, N, B, length, dtype, options)
    return made


def _mixers(platform: str, length: int) -> dict[str, Layer]:
    """Every mixer as its paper sizes it, windows and chunks of LaCT as configs/long_context.py or as published."""
    D, N, dtype, window = (128, 4, "float32", 128) if platform == "cpu" else (1536, 24, "bfloat16", 2048)
    fast = (("chunk_size", window), ("window", window), ("newton_schulz_steps", 5))
    given = {name: () for name in MIXERS} | {"lact": fast}
    rows = max(1, (16384 if platform == "cpu" else 32768) // length)
    made = {name: Layer(name, D, N, rows, length, dtype, options) for name, options in given.items()}
    near = (("window", window), ("sinks", 4))
    return made | {"window": Layer("attention", D, N, rows, length, dtype, near)}


def _row(name: str, layers: Mapping[str, Layer], baseline: str) -> Comparison:
    return ops.row(
        name,
        {key: layer.forward() for key, layer in layers.items()},
        {key: layer.args() for key, layer in layers.items()},
        True,
        baseline=baseline,
        check=lambda: next(filter(None, (wrong(key, layer.short()) for key, layer in layers.items())), ""),
        flops={key: layer.flops() for key, layer in layers.items()},
        work=({key: layer.B * layer.T for key, layer in layers.items()}, "tokens"),
        rounds=3,
        calls=1,
    )


def _ahead_of_time(layer: FastWeights, generation: str) -> dict[str, Any]:
    """Four chunks of one row: what the compiler says of the kernels, and of the formulas in jnp beside them."""
    layer = dataclasses.replace(layer, B=1, T=8192)
    plain = dataclasses.replace(layer, options=(*layer.options, ("implementation", "reference")))
    forwards = {"kernels": layer.forward(), "formulas": plain.forward()}
    return ops.ahead_of_time(forwards, jax.eval_shape(layer.args), True, generation, layer.flops())


@functools.cache
def wrong(key: str, layer: Layer) -> str:
    """The outputs and gradients that differ from those of the same layer in float32 on the host; "" if none does."""
    exact = dataclasses.replace(layer, dtype="float32")
    try:
        host = jax.devices("cpu")[0]
    except RuntimeError:  # No platform but the accelerator was asked for.
        host = jax.devices()[0]
    args = layer.args()
    wide = jax.device_put(jax.tree.map(lambda x: x.astype(jnp.float32), args), host)
    got, expected = (
        jax.tree.leaves(ops.call(one.forward(), True)(*given)) for one, given in ((layer, args), (exact, wide))
    )
    # Operands are rounded about 16 times from the input to the last gradient; products sum in float32 at least. A step
    # of Newton-Schulz multiplies what is small by 4, rounding with it, and its result by no common scale of the rates,
    # whose gradients then cancel to nothing: hence the least scale.
    tolerance = ops.tolerance(layer.dtype, 16, layer.T)
    tolerance *= 4 if dict(layer.options).get("newton_schulz_steps") else 1
    least = max(float(jnp.abs(b).max()) for b in expected[1:]) / 100
    for a, b in zip(got, expected, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b)
        error = float(np.abs(a - b).max() / max(np.abs(b).max(), least))
        if not error <= tolerance:
            return f"{key} is off by {error:.1e} of the largest value (allowed {tolerance:.1e})"
    return ""


def plot(found: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Tokens a second against the length, a line a mixer."""
    rows = [(re.fullmatch(rf"{GROUP}/T=(\d+)/.*", r["row"]), r) for r in found if "work_per_second" in r]
    points = [(r["candidate"], int(match[1]), r["work_per_second"]) for match, r in rows if match]
    if not points:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name in dict.fromkeys(name for name, _, _ in points):
        line = sorted((length, rate) for other, length, rate in points if other == name)
        axes.plot(*zip(*line, strict=True), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="tokens a row", ylabel="tokens a second, forward and backward")
    lengths = sorted({length for _, length, _ in points})
    axes.set_xticks(lengths, labels=[f"{length:,}" for length in lengths])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    files.write_figure(path, figure, format="png", dpi=120)
    plt.close(figure)
