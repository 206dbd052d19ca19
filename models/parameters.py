"""Parameters that know their logical axes and their role, and the initialisers that configs name."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from models.spec import Spec

# fast: where weights start that are trained inside the forward pass. frozen: a number that is saved and never trained.
# running: one that its part's `advance` renews each step (models/running.py). Optimizer, decay, average move neither.
# adapter: what is trained beside a kernel that is not (models/lora.py).
ROLES = ("kernel", "embedding", "norm", "bias", "fast", "frozen", "running", "adapter")
MULTIPLIED = ("kernel", "adapter")
UNTRAINED = ("frozen", "running")


def param(
    init: Callable, rngs: nnx.Rngs, shape: Sequence[int], axes: Sequence[str | None], role: str, spec: Spec
) -> nnx.Param:
    """A parameter of `shape` whose dimensions carry the logical `axes`; `role` decides weight decay (see ROLES).

    It has the dtype of the spec's parameters. One of role "running" is float32 or wider: a count must not be rounded.
    """
    assert len(shape) == len(axes) and role in ROLES, (shape, axes, role)
    dtype = jnp.promote_types(spec.param_dtype, jnp.float32) if role == "running" else spec.param_dtype
    return nnx.Param(init(rngs.params(), tuple(shape), dtype), axes=tuple(axes), role=role)


def kernel_size(part: nnx.Module) -> int:
    """Numbers in the kernels of a part and in what stands beside them; each costs a token one multiply-add."""
    variables = nnx.to_flat_state(nnx.state(part, nnx.Param))
    return sum(math.prod(v.shape) for _, v in variables if v.get_metadata("role") in MULTIPLIED)


def normal(std: float) -> Callable:
    """Samples N(0, std^2)."""
    return lambda key, shape, dtype: std * jax.random.normal(key, shape, dtype)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """All zeros."""
    return jnp.zeros(shape, dtype)


def ones(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """All ones."""
    return jnp.ones(shape, dtype)


def kernel_std(spec: Spec, fan_in: int, axis: str | None, *, residual: bool) -> float:
    """Standard deviation of a projection by `config.model.init`, from `fan_in` inputs along the logical `axis`.

    `residual`: its output joins the residual stream. A parametrization with a base scales the base's deviation.
    """
    if spec.init == "fan_in":
        return 1 / math.sqrt(fan_in)
    layers = spec.L if spec.sizes.rule.branch == 0 else spec.L / spec.sizes.depth
    share = 1 / math.sqrt(2 * layers) if spec.init == "normal_depth" and residual else 1.0
    return spec.init_std * share * spec.sizes.init(axis)


INITS = ("normal", "fan_in", "normal_depth")
