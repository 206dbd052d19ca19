"""Socket Projection: what is a linear map? A part maps `[..., D_in] -> [..., D_out]`."""

from typing import Protocol

import jax
from flax import nnx

from models import parameters
from models.lora import Lora
from models.pattention import Pattention
from models.products import by_rows, times
from models.spec import Spec


class Projection(Protocol):
    """`(spec, d_in, d_out, *, axes, residual, bias, rngs)`, then `x [..., d_in] -> [..., d_out]` in `spec.dtype`.

    `name`: which map of its part it is (q, k, v, o, up, down, gate), for projections whose maps differ in size.
    `keeps_input_alone`: whether x is the only array of the forward pass that its gradients need.
    """

    keeps_input_alone: bool

    def __call__(self, x: jax.Array) -> jax.Array: ...


class Dense(nnx.Module):
    """`x W (+ b)`, one 2-D kernel, which XLA maps to one matmul."""

    keeps_input_alone = True

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
        del name  # A dense map's size is that of its ends.
        std = parameters.kernel_std(spec, d_in, axes[0], residual=residual)
        self.kernel = parameters.param(parameters.normal(std), rngs, (d_in, d_out), axes, "kernel", spec)
        self.bias = parameters.param(parameters.zeros, rngs, (d_out,), axes[1:], "bias", spec) if bias else None
        self.dtype, self.partition, self.axes = spec.dtype, spec.partition, axes

    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.partition.sends(self.axes):
            y = self._gathered(x, kernel)
        else:
            y = by_rows(lambda x: times(x, kernel, self.partition), x, self.partition)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)

    def _gathered(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        # Not `by_rows`: TPU programs then copy both sides of each product, 4 % of a step's work.
        local = lambda x, kernel: x @ self.partition.gather(kernel, self.axes)  # noqa: E731
        rows = self.partition.rows(x.ndim)
        return self.partition.run(local, (x, kernel), (rows, self.axes), rows)


PROJECTIONS = {"dense": Dense, "lora": Lora, "pattention": Pattention}


def make(spec: Spec, d_in: int, d_out: int, **kw) -> Projection:
    """The projection that `config.model.projection` names."""
    return PROJECTIONS[spec.projection](spec, d_in, d_out, **kw)
