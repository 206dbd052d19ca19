"""Pattention: attention of tokens to parameter tokens (TokenFormer), with kernels that never keep [tokens, P]."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from kernels.pattention import xla
from kernels.pattention.dispatch import IMPLEMENTATIONS, explain, select
from kernels.pattention.reference import pattention_reference
from kernels.pattention.rules import (
    GELUS,
    NORMALIZATIONS,
    Given,
    Returned,
    Rule,
    accumulator,
    inverse,
    row_factor,
    vary_over,
    varying,
)

__all__ = ["explain", "pattention", "pattention_reference"]


def pattention(
    x: Array,
    keys: Array,
    values: Array,
    *,
    normalization: str = "l2_gelu",
    tau: float | Array | None = None,
    gelu: str = "exact",
    mask: Array | None = None,
    implementation: str | None = None,
    axis_name: str | None = None,
    interpret: bool = False,
) -> Array:
    """Attention of every token to P parameter tokens: x [.., D], keys [P, D], values [P, V] -> [.., V].

    With a = x keys^T and the mask applied, the weights over P are
      l2_gelu   gelu(tau a / |a|)            (the released default)
      gelu_l2   tau gelu(a) / |gelu(a)|
      softmax   tau^2 softmax(a)             (tau^2 = P by default, the released code's factor)

    A row whose scores are all 0 gives 0 for l2_gelu and gelu_l2, with gradient 0. Sums are float32, float64 for float64
    inputs; the result has the promoted type of x, keys and values. The backward pass computes the scores again: it
    keeps the inputs, one number per row and (gelu_l2, softmax) the result.

    Args:
      x: [.., D].
      keys: [P, D].
      values: [P, V].
      tau: positive, a number or a (possibly traced, differentiable) scalar; default sqrt(P). Growth by zero keys
        changes nothing for l2_gelu and gelu_l2 as long as tau does not change.
      normalization: l2_gelu, gelu_l2 or softmax.
      gelu: exact or tanh.
      mask: bool [P] or [.., P] (anything that broadcasts to it); the score of a dropped parameter token is 0.
      implementation: reference, xla, tpu, gpu, or None for the best of the platform that the program is lowered for.
      axis_name: inside shard_map, the mesh axis over which keys, values (and mask) are sharded along P. x and the
        result are the same on all its members; tau defaults to the square root of the whole P. The row statistic is
        one psum (softmax: a maximum and a psum) of one number per token, the result one psum in the sums' type.
      interpret: run the tpu or gpu kernel in Pallas' interpreter (tests).

    Raises:
      ValueError: shapes and names that do not fit.
      NotImplementedError: a named implementation that cannot run.

    Source: TokenFormer (arXiv:2410.23168), section 3.1, and its released code.
    """
    rule = Rule(normalization, gelu, implementation, axis_name, interpret)
    _check(x, keys, values, mask, tau, rule)
    dtype = jnp.result_type(x, keys, values)
    x, keys, values = (array.astype(dtype) for array in (x, keys, values))
    if tau is None:
        tau = (keys.shape[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name))) ** 0.5
    tau = jnp.asarray(tau, accumulator(dtype))
    if implementation == "reference":
        return pattention_reference(x, keys, values, normalization=normalization, tau=tau, gelu=gelu, mask=mask)
    if mask is not None and mask.ndim == 1:  # a key of zeros is a score of 0, in every row
        keys, mask = jnp.where(mask[:, None], keys, 0), None
    elif mask is not None:
        mask = jnp.broadcast_to(mask, (*x.shape[:-1], keys.shape[0]))
    single = x.ndim == 1
    if single:
        x, mask = x[None], None if mask is None else mask[None]
    x, keys, values, mask, tau = _vary_alike(axis_name, x, keys, values, mask, tau)
    out = _pattention(rule, x, keys, values, mask, tau)
    if axis_name is not None:
        out = jax.lax.psum(out, axis_name).astype(dtype)
    return out[0] if single else out


def _check(x, keys, values, mask, tau, rule: Rule) -> None:
    """Refuses what does not fit, in one sentence."""
    choices = [("normalization", rule.normalization, NORMALIZATIONS), ("gelu", rule.gelu, GELUS)]
    choices += [("implementation", rule.implementation, IMPLEMENTATIONS)] * (rule.implementation is not None)
    for name, value, allowed in choices:
        if value not in allowed:
            raise ValueError(f"pattention: {name}={value!r} is unknown; use one of {', '.join(allowed)}.")
    if keys.ndim != 2 or x.ndim < 1 or x.shape[-1] != keys.shape[1]:
        raise ValueError(
            f"pattention: keys have shape {keys.shape}; for x {x.shape} use [P, {x.shape[-1] if x.ndim else 1}]."
        )
    if values.ndim != 2 or values.shape[0] != keys.shape[0]:
        raise ValueError(
            f"pattention: values have shape {values.shape}; they must be [{keys.shape[0]}, V], as the keys."
        )
    for name, array in (("x", x), ("keys", keys), ("values", values)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"pattention: {name} has type {array.dtype}; use a floating type such as float32.")
    if jnp.ndim(tau if tau is not None else 1.0) != 0 or (isinstance(tau, int | float) and not tau > 0):
        raise ValueError(f"pattention: tau={tau!r} is not a positive scalar; use sqrt(P) = {keys.shape[0] ** 0.5:.6g}.")
    whole = (*x.shape[:-1], keys.shape[0])
    if mask is not None:
        fits = mask.ndim == 1 or mask.ndim <= len(whole)
        fits = fits and all(m in (1, n) for m, n in zip(mask.shape[::-1], whole[::-1], strict=False))
        if not fits or mask.shape[-1:] != whole[-1:] or mask.dtype != jnp.bool_:
            raise ValueError(f"pattention: mask is {mask.dtype} {mask.shape}; use bool [{whole[-1]}] or {list(whole)}.")
    if rule.axis_name is not None and rule.implementation == "reference":
        raise NotImplementedError(
            "pattention: implementation='reference' has no sharded form; use 'xla' with axis_name."
        )


def _vary_alike(axis_name: str | None, *arrays: Array | None) -> list[Array | None]:
    """Inside shard_map, marks all inputs as varying over every mesh axis that any of them varies over.

    A cotangent must vary as its input does; the sum over the axes that an input did not vary over is then added by JAX.
    """
    union = frozenset().union(*(varying(array) for array in arrays if array is not None))
    if not union:
        return list(arrays)
    union |= frozenset() if axis_name is None else {axis_name}
    return [None if array is None else vary_over(array, union) for array in arrays]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pattention(rule: Rule, x: Array, keys: Array, values: Array, mask: Array | None, tau: Array) -> Array:
    """This shard's summand of the result, or the result."""
    return _forward(rule, x, keys, values, mask, tau)[0]


def _forward(rule: Rule, x: Array, keys: Array, values: Array, mask: Array | None, tau: Array) -> tuple[Array, tuple]:
    wide, axis, stat = accumulator(x.dtype), rule.axis_name, None
    if axis is not None and rule.normalization == "l2_gelu":
        stat = jnp.sqrt(jax.lax.psum(jnp.square(xla.statistic(Given(x, mask), keys, rule=rule)), axis))
        stat = vary_over(stat, varying(x))
    args = (Given(x, mask, stat), keys, values, tau)
    out, n = select("forward", rule, args, out_dtype=x.dtype if axis is None else wide)
    if axis is not None and rule.normalization == "gelu_l2":
        local, n = n, jnp.sqrt(jax.lax.psum(n * n, axis))
        out = out * (local * inverse(n))
    elif axis is not None and rule.normalization == "softmax":
        peak = jax.lax.pmax(n, axis)
        local, n = n, peak + jnp.log(jax.lax.psum(jnp.exp(n - peak), axis))
        out = out * jnp.exp(local - n)
    n = vary_over(n, varying(x))
    return out, (x, keys, values, mask, tau, n, None if rule.normalization == "l2_gelu" else out)


def _backward(rule: Rule, saved: tuple, dout: Array) -> tuple:
    x, keys, values, mask, tau, n, out = saved
    r = row_factor(n, tau, rule)

    def total(c):
        return c if rule.axis_name is None else jax.lax.psum(c, rule.axis_name)

    if rule.normalization == "l2_gelu":
        coupling = inverse(n)
    else:  # <s, ds> = <out, dout>; of a shard, its summand
        inner = jnp.sum(out.astype(n.dtype) * dout.astype(n.dtype), axis=-1, keepdims=True)
        power = 1 if rule.normalization == "gelu_l2" else 2
        coupling = total(inner) / tau**power * (inverse(n) if power == 1 else 1)
        dtau = power * jnp.sum(inner) / tau
    args = (Returned(x, mask, dout.astype(x.dtype), r, coupling), keys, values)
    dx, dkeys, dvalues, c = select("backward", rule, args, total=total)
    if rule.normalization == "l2_gelu":
        dtau = jnp.sum(c)  # d out / d tau is along a / n
    return dx, dkeys, dvalues, None, dtau


_pattention.defvjp(_forward, _backward)
