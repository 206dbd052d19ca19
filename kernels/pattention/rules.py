"""The pointwise mathematics of Pattention, written once and used by every implementation.

A row is one token. `scores` a [.., P] become weights s [.., P] by one of three normalisations, each of which needs a
single number per row, the row statistic n, and in the backward one more, the coupling b (all shapes [.., 1]):

    l2_gelu   n = |a|           r = tau / n          s = gelu(a r)        b = <a, dz> / n^2,       dz = ds gelu'(a r)
    gelu_l2   n = |gelu(a)|     r = tau / n          s = gelu(a) r        b = <dout, out> / (tau n)
    softmax   n = logsumexp(a)  r = n - 2 log(tau)   s = exp(a - r)       b = <dout, out> / tau^2

with ds = dout V^T. Then the gradient of the scores is

    l2_gelu   da = r (dz - a b)          gelu_l2   da = r (ds - gelu(a) b) gelu'(a)          softmax   da = s (ds - b)

For gelu_l2 and softmax the coupling <s, ds> = <s V, dout> = <out, dout>: it costs nothing. For l2_gelu it is a
reduction over P of quantities that only the backward has, so it needs a look at all of a row before da is known.
Since dx = da K = r (dz K - b a K), a kernel that keeps dz K and a K apart gets <a, dz> in the same pass over P.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

NORMALIZATIONS = ("l2_gelu", "gelu_l2", "softmax")
GELUS = ("exact", "tanh")


class Rule(NamedTuple):
    """The static arguments of Pattention, hashable."""

    normalization: str
    gelu: str
    implementation: str | None = None
    axis_name: str | None = None
    interpret: bool = False


class Given(NamedTuple):
    """What the forward pass reads of each token; chunks of tokens are cut from it as a whole.

    x: [.., T, D].
    mask: None, or bool [.., T, P].
    stat: None, or the row statistic [.., T, 1], then used as it is.
    """

    x: Array
    mask: Array | None
    stat: Array | None = None


class Returned(NamedTuple):
    """What the backward pass reads of each token; chunks of tokens are cut from it as a whole.

    x: [.., T, D].
    mask: None, or bool [.., T, P].
    dout: [.., T, V].
    r: [.., T, 1], the row factor.
    coupling: [.., T, 1], b; for l2_gelu 1 / n.
    """

    x: Array
    mask: Array | None
    dout: Array
    r: Array
    coupling: Array


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """Sums are float32, or float64 when the inputs are."""
    return jnp.promote_types(dtype, jnp.float32)


def precision(dtype: jnp.dtype) -> jax.lax.Precision:
    """float32 products are true float32 on every chip, where the default may be bfloat16 or TF32."""
    return jax.lax.Precision.DEFAULT if dtype.itemsize <= 2 else jax.lax.Precision.HIGHEST


def dot(a: Array, b: Array, form: str) -> Array:
    """A matrix product in the accumulator's type: `nt` a b^T, `nn` a b, `tn` a^T b.

    a may have leading axes, [.., T, i]; `tn` sums over all of them, a [.., T, i], b [.., T, j] -> [i, j].
    """
    if form == "tn":
        rows = tuple(range(a.ndim - 1))
        dims = ((rows, rows), ((), ()))
    else:
        dims = (((a.ndim - 1,), (1 if form == "nt" else 0,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision(a.dtype), preferred_element_type=accumulator(a.dtype))


def inverse(n: Array) -> Array:
    """1 / n, and 0 where n is 0: a row of zero scores has weights 0 and gradient 0."""
    positive = n > 0
    return jnp.where(positive, 1 / jnp.where(positive, n, 1), 0)


def gelu_slope(z: Array, gelu: str, erf: Callable = jax.lax.erf) -> tuple[Array, Array]:
    """gelu(z) and its derivative. `erf` lets a kernel bring its own where the compiler has none."""
    if gelu == "tanh":
        c, k = 0.7978845608028654, 0.044715  # c = sqrt(2 / pi)
        t = jnp.tanh(c * z * (1 + k * z * z))
        half = 0.5 * (1 + t)
        return z * half, half + 0.5 * c * z * (1 - t * t) * (1 + 3 * k * z * z)
    half = 0.5 * (1 + erf(z * 0.7071067811865476))
    return z * half, half + z * 0.3989422804014327 * jnp.exp(-0.5 * z * z)


def row_factor(stat: Array, tau: Array, rule: Rule) -> Array:
    """r of the table above, from the row statistic."""
    return stat - 2 * jnp.log(tau) if rule.normalization == "softmax" else tau * inverse(stat)


def row_statistic(scores: Array, rule: Rule) -> Array:
    """n of the table above, [.., 1], from all the scores of a row."""
    if rule.normalization == "softmax":
        return jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    normed = scores if rule.normalization == "l2_gelu" else gelu_slope(scores, rule.gelu)[0]
    return jnp.sqrt(jnp.sum(normed * normed, axis=-1, keepdims=True))


def weights(a: Array, r: Array, rule: Rule, erf: Callable = jax.lax.erf) -> Array:
    """s of the table above."""
    if rule.normalization == "l2_gelu":
        return gelu_slope(a * r, rule.gelu, erf)[0]
    if rule.normalization == "gelu_l2":
        return gelu_slope(a, rule.gelu, erf)[0] * r
    return jnp.exp(a - r)


def weights_and_slope(a: Array, r: Array, ds: Array, rule: Rule, erf: Callable = jax.lax.erf) -> tuple[Array, Array]:
    """s and dz of l2_gelu, whose coupling is still to be summed."""
    s, slope = gelu_slope(a * r, rule.gelu, erf)
    return s, ds * slope


def weights_and_gradient(
    a: Array, r: Array, ds: Array, b: Array, rule: Rule, erf: Callable = jax.lax.erf
) -> tuple[Array, Array]:
    """s and da of the table above, the coupling b known."""
    if rule.normalization == "l2_gelu":
        s, dz = weights_and_slope(a, r, ds, rule, erf)
        return s, r * (dz - a * b)
    if rule.normalization == "gelu_l2":
        g, slope = gelu_slope(a, rule.gelu, erf)
        return g * r, r * (ds - g * b) * slope
    s = jnp.exp(a - r)
    return s, s * (ds - b)


def varying(array: Array) -> frozenset[str]:
    """The mesh axes that an array varies over inside shard_map; none outside of it, or where that is not tracked."""
    return jax.typeof(array).manual_axis_type.varying


def vary_over(array: Array, axes: frozenset[str]) -> Array:
    """The array, marked as varying over `axes` too."""
    missing = axes - varying(array)
    return jax.lax.pcast(array, tuple(sorted(missing)), to="varying") if missing else array


def shape_like(like: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    """A kernel's output, varying over the mesh axes of `like`."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type)
