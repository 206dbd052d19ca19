"""Pattention in a few lines of jnp: the specification that every implementation is held to."""

import jax
import jax.numpy as jnp
from jax import Array

from kernels.pattention.rules import precision


def pattention_reference(
    x: Array,
    keys: Array,
    values: Array,
    *,
    normalization: str = "l2_gelu",
    tau: float | Array | None = None,
    gelu: str = "exact",
    mask: Array | None = None,
) -> Array:
    """Attention of tokens to parameter tokens, differentiated by JAX: x [.., D], keys [P, D], values [P, V] -> [.., V].

    Sums are float32, or float64 for float64 inputs. Source: TokenFormer (arXiv:2410.23168), section 3.1; the released
    code's `l2_norm_gelu`, `gelu_l2_norm` and `softmax`, with 0 where that code divides 0 by 0.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    tau = keys.shape[0] ** 0.5 if tau is None else tau
    a = jnp.einsum("...d,pd->...p", x, keys, preferred_element_type=wide, precision=precision(x.dtype))
    if mask is not None:
        a = jnp.where(mask, a, 0)
    act = lambda z: jax.nn.gelu(z, approximate=gelu == "tanh")  # noqa: E731
    if normalization == "l2_gelu":
        s = act(tau * _unit(a))
    elif normalization == "gelu_l2":
        s = tau * _unit(act(a))
    else:
        s = tau**2 * jax.nn.softmax(a, axis=-1)
    out = jnp.einsum(
        "...p,pv->...v", s.astype(values.dtype), values, preferred_element_type=wide, precision=precision(x.dtype)
    )
    return out.astype(x.dtype)


def _unit(a: Array) -> Array:
    """a / |a| over the last axis, 0 with a zero gradient where |a| is 0 (hence the two selects)."""
    square = jnp.sum(a * a, axis=-1, keepdims=True)
    live = square > 0
    return jnp.where(live, a * jax.lax.rsqrt(jnp.where(live, square, 1)), 0)
