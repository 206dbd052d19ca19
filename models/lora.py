"""Projection "lora": a linear map and a product of two thin ones beside it (Hu et al. 2021, arXiv:2106.09685)."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models import parameters
from models.facts import Facts
from models.products import by_rows
from models.spec import Spec

SCALINGS = ("rank", "root")
MAPS = ("q", "k", "v", "o", "up", "down")
ROLE = "adapter"


def factor(alpha: float, rank: int, scaling: str) -> float:
    """What the product of the thin maps is multiplied by: alpha / r ("rank"), or alpha / sqrt(r) ("root").

    Source: Hu et al. 2021, section 4.1; "root" is rsLoRA (Kalajdzievski 2023, arXiv:2312.03732).
    """
    return alpha / {"rank": rank, "root": math.sqrt(rank)}[scaling]


def merged(kernel: jax.Array, lora_in: jax.Array, lora_out: jax.Array, scale: float) -> jax.Array:
    """W + s A B, the one kernel that computes what a map and its adapter compute together.

    Args:
      kernel: W `[..., D_in, D_out]`.
      lora_in: A `[..., D_in, r]`.
      lora_out: B `[..., r, D_out]`.
      scale: s, of `factor`.

    Returns:
      `[..., D_in, D_out]`, summed in float32 or wider, in the type of the kernel.
    """
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    product = jnp.matmul(lora_in.astype(wide), lora_out.astype(wide), precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(wide) + scale * product).astype(kernel.dtype)


def fold(params: Mapping[str, jax.Array], scale: Callable[[str], float]) -> dict[str, jax.Array]:
    """Parameters by path, "PATH/lora_in" and "PATH/lora_out" merged into "PATH/kernel"; `scale` is asked by PATH."""
    ends = "/lora_in", "/lora_out"
    found = {path: value for path, value in params.items() if not path.endswith(ends)}
    for path in params:
        if path.endswith(ends[0]):
            base = path.removesuffix(ends[0])
            told = (params[f"{base}/{name}"] for name in ("kernel", "lora_in", "lora_out"))
            found[f"{base}/kernel"] = merged(*told, scale(base))
    return found


class Lora(nnx.Module):
    """`x W (+ b) + s (x A) B`: A `[D_in, r]` starts as N(0, 1 / D_in), B `[r, D_out]` as zeros.

    W and b are as in `dense`; what trains is for `optimizer.freeze` to say. A map that `lora.maps` does not name is
    dense.
    """

    def __init__(
        self,
        spec: Spec,
        d_in: int,
        d_out: int,
        *,
        axes: tuple[str | None, str | None],
        residual: bool = False,
        bias: bool = False,
        name: str = "",
        rngs: nnx.Rngs,
    ):
        o = spec.options["lora"]
        std = parameters.kernel_std(spec, d_in, axes[0], residual=residual)
        self.kernel = parameters.param(parameters.normal(std), rngs, (d_in, d_out), axes, "kernel", spec)
        self.bias = parameters.param(parameters.zeros, rngs, (d_out,), axes[1:], "bias", spec) if bias else None
        self.scale = factor(o["alpha"], o["rank"], o["scaling"])
        beside, thin = not o["maps"] or name in o["maps"], parameters.normal(1 / math.sqrt(d_in))
        make = lambda *told: parameters.param(*told, ROLE, spec) if beside else None  # noqa: E731
        self.lora_in = make(thin, rngs, (d_in, o["rank"]), (axes[0], None))
        self.lora_out = make(parameters.zeros, rngs, (o["rank"], d_out), (None, axes[1]))
        self.dtype, self.partition = spec.dtype, spec.partition

    @property
    def keeps_input_alone(self) -> bool:
        """Beside x the gradient of B needs x A."""
        return self.lora_in is None

    def __call__(self, x: jax.Array) -> jax.Array:
        maps = [p[...].astype(self.dtype) for p in (self.kernel, self.lora_in, self.lora_out) if p is not None]

        def multiply(x: jax.Array) -> jax.Array:
            y = x @ maps[0]
            return y if len(maps) == 1 else y + self.scale * ((x @ maps[1]) @ maps[2])

        y = by_rows(multiply, x.astype(self.dtype), self.partition)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """Names of maps that no part has."""
        for name in options["maps"]:
            if name not in MAPS:
                yield f"model.lora.maps has {name!r}, which is no map; use some of {', '.join(MAPS)}."
