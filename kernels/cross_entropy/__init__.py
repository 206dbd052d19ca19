"""Cross-entropy of a linear head that never holds `[tokens, V]` in float32 when that is large.

Letters: M tokens, D width, V vocabulary. The training form computes the gradients of features and head in the forward
pass, chunk by chunk, so that no logits are kept or recomputed (the idea of Liger Kernel's fused linear cross-entropy,
Hsu et al. 2024; written here for XLA). Kernels of a TPU and a GPU hold tiles of logits on chip in both passes instead.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels.cross_entropy import gpu, reference, tpu
from kernels.cross_entropy.reference import Options, rows_of
from kernels.lowering import by_platform

__all__ = ["IMPLEMENTATIONS", "MAX_LOGITS", "cross_entropy", "token_nll", "unsupported"]

MAX_LOGITS = 1 << 25  # Elements of one chunk of logits: 128 MiB in float32.
KERNELS = {"pallas_tpu": tpu, "pallas_gpu": gpu}
IMPLEMENTATIONS = (None, "chunked", *KERNELS)
_PLATFORMS = {"pallas_tpu": "tpu", "pallas_gpu": "cuda"}


def token_nll(
    features: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    scale: float = 1.0,
    softcap: float = 0.0,
    implementation: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Negative log-likelihood of every token, in nats, differentiable in features and head.

    Args:
      features: `[M, D]`.
      head: `[V, D]`.
      targets: `[M]` ids in 0..V-1.
      scale: multiplies the logits.
      softcap: `cap * tanh(logits / cap)`; 0 = off.
      implementation: as in `cross_entropy`.
      interpret: as in `cross_entropy`.

    Returns:
      `[M]` float32 (float64 for float64 features).
    """
    return _token_nll(features, head, targets, (Options(0.0, float(scale), float(softcap)), implementation, interpret))


def unsupported(implementation: str, features: Any, head: Any) -> str | None:
    """Why the kernel "pallas_tpu" or "pallas_gpu" does not take features `[M, D]` and a head `[V, D]`, or None."""
    if max(jnp.dtype(x.dtype).itemsize for x in (features, head)) > 4:
        return "it computes in float32 and an input is float64"
    if 0 in (*features.shape, *head.shape):
        return "an array is empty"
    return KERNELS[implementation].too_large(features, head)


def _run(plain: Callable, kernel: Callable, implementation: str | None, interpret: bool, *args: jax.Array) -> Any:
    """plain(*args), or kernel(module, *args) of the platform in the making or of the named implementation."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is not known; use one of {list(IMPLEMENTATIONS)}.")
    if implementation == "chunked":
        return plain(*args)
    if interpret and implementation is not None:
        return kernel(KERNELS[implementation], *args, interpret=True)
    if implementation is None:
        taken = [name for name in KERNELS if unsupported(name, *args[:2]) is None]
        kernels = {_PLATFORMS[name]: functools.partial(kernel, KERNELS[name]) for name in taken}
        return by_platform(*args, default=plain, **kernels) if kernels else plain(*args)
    if reason := unsupported(implementation, *args[:2]):
        raise NotImplementedError(f"implementation={implementation!r} does not take this: {reason}; use 'chunked'.")
    platform = _PLATFORMS[implementation]
    reason = f"implementation={implementation!r} runs on {platform} only; use implementation='chunked' or None."
    return by_platform(*args, default=reason, **{platform: functools.partial(kernel, KERNELS[implementation])})


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _token_nll(features, head, targets, how):
    options, *where = how

    def plain(features, head, targets):
        chunks = _chunks(features, targets, num_classes=head.shape[0])
        shaped = dict(zip(("scale", "softcap"), options[1:], strict=True))
        nll = jax.lax.map(lambda c: reference.statistics(c[0], head, c[1], **shaped)[0], chunks)
        return nll.reshape(-1)[: targets.shape[0]]

    kernel = lambda module, *given, **how: module.statistics(*given, options=options, **how)[0]  # noqa: E731
    return _run(plain, kernel, *where, features, head, targets)


def _token_nll_backward(how, saved, cotangent):
    """The gradient of the sum of nll, each weighed by its cotangent."""
    return (*_forward(*saved, cotangent, how)[1], None)


_token_nll.defvjp(lambda *args: (_token_nll(*args), args[:3]), _token_nll_backward)


def cross_entropy(
    features: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    z_loss: float = 0.0,
    scale: float = 1.0,
    softcap: float = 0.0,
    implementation: str | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """`sum_i weights_i (nll_i + z_loss log(Z_i)^2)`, differentiable in features and head.

    Args:
      features: `[M, D]`.
      head: `[V, D]`.
      targets: `[M]` ids in 0..V-1 (any value where the weight is 0).
      weights: `[M]` not differentiated.
      z_loss: weight of the squared log-partition (PaLM, Chowdhery et al. 2022, section 5).
      scale: multiplies the logits.
      softcap: `cap * tanh(logits / cap)`; 0 = off.
      implementation: None takes a Pallas kernel where the program is lowered for a TPU or a CUDA GPU and `unsupported`
        has nothing against it, else "chunked", which is jnp; "pallas_tpu" or "pallas_gpu" is that kernel or an error.
      interpret: run a named kernel in Pallas' interpreter (tests).

    Returns:
      The weighted sum, and without gradient `sum_i weights_i nll_i`; both float32 (float64 for float64 features).

    Raises:
      ValueError: an unknown implementation. NotImplementedError: a named kernel that does not take these arrays, or
      in a program for another platform.
    """
    options = Options(float(z_loss), float(scale), float(softcap))
    how = options, implementation, interpret
    return _cross_entropy(features, head, targets, jax.lax.stop_gradient(weights), how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(features, head, targets, weights, how):
    options, *where = how
    kernel = functools.partial(_sums, options=options)
    return _run(functools.partial(_plain, options=options), kernel, *where, features, head, targets, weights)


def _sums(module: Any, features, head, targets, weights, *, options: Options, interpret: bool = False):
    """The two sums, by a kernel."""
    nll, log_z = module.statistics(features, head, targets, options=options, interpret=interpret)
    weights = weights.astype(nll.dtype)
    return jnp.sum(weights * (nll + options.z_loss * log_z**2)), jnp.sum(weights * nll)


def _sums_and_gradients(module: Any, features, head, targets, weights, *, options: Options, interpret: bool = False):
    """As `_plain_and_gradients`, by a kernel."""
    given, how = (features, head, targets), {"options": options, "interpret": interpret}
    nll, log_z = module.statistics(*given, **how)
    rows = rows_of(log_z, weights, options.z_loss)
    sums = jnp.sum(rows.weight * (nll + options.z_loss * log_z**2)), jnp.sum(rows.weight * nll)
    return sums, module.gradients(*given, rows, **how)


def _plain(features, head, targets, weights, *, options: Options):
    z_loss, scale, softcap = options

    def chunk(total, inputs):
        x, y, w = inputs
        nll, log_z, _ = reference.statistics(x, head, y, scale=scale, softcap=softcap)
        return (total[0] + jnp.sum(w * (nll + z_loss * log_z**2)), total[1] + jnp.sum(w * nll)), None

    zero = jnp.zeros((), jnp.promote_types(features.dtype, jnp.float32))
    return jax.lax.scan(chunk, (zero, zero), _chunks(features, targets, weights, num_classes=head.shape[0]))[0]


def _forward(features, head, targets, weights, how):
    options, *where = how
    kernel = functools.partial(_sums_and_gradients, options=options)
    plain = functools.partial(_plain_and_gradients, options=options)
    return _run(plain, kernel, *where, features, head, targets, weights)


def _plain_and_gradients(features, head, targets, weights, *, options: Options):
    """((weighted sum, sum of weighted nll), (gradient of features, gradient of head))."""
    z_loss, scale, softcap = options
    dtype = jnp.promote_types(features.dtype, jnp.float32)

    def chunk(carry, inputs):
        loss, sum_nll, d_head = carry
        x, y, w = inputs
        nll, log_z, (logits, shape_vjp) = reference.statistics(x, head, y, scale=scale, softcap=softcap)
        probabilities = jnp.exp(logits - log_z[:, None])
        hit = jax.lax.broadcasted_iota(y.dtype, logits.shape, 1) == y[:, None]
        d_logits = w[:, None] * (probabilities * (1 + 2 * z_loss * log_z[:, None]) - hit)
        (d_logits,) = shape_vjp(d_logits)
        d_logits = d_logits.astype(x.dtype)
        d_x = jnp.einsum("mv,vd->md", d_logits, head.astype(x.dtype), preferred_element_type=dtype)
        d_head = d_head + jnp.einsum("mv,md->vd", d_logits, x, preferred_element_type=dtype)
        loss = loss + jnp.sum(w * (nll + z_loss * log_z**2))
        return (loss, sum_nll + jnp.sum(w * nll), d_head), d_x.astype(x.dtype)

    chunks = _chunks(features, targets, weights, num_classes=head.shape[0])
    zero = jnp.zeros((), dtype)
    carry = (zero, zero, jnp.zeros(head.shape, dtype))
    if chunks[0].shape[0] == 1:
        carry, d_features = chunk(carry, jax.tree.map(lambda c: c[0], chunks))
    else:
        carry, d_features = jax.lax.scan(chunk, carry, chunks)
    loss, sum_nll, d_head = carry
    d_features = d_features.reshape(-1, features.shape[-1])[: features.shape[0]]
    return (loss, sum_nll), (d_features, d_head.astype(head.dtype))


def _backward(how, residuals, cotangents):
    d_features, d_head = residuals
    g = cotangents[0]
    return (g * d_features).astype(d_features.dtype), (g * d_head).astype(d_head.dtype), None, None


_cross_entropy.defvjp(_forward, _backward)


def _chunks(*arrays: jax.Array, num_classes: int) -> tuple[jax.Array, ...]:
    """Cuts `[M, ...]` arrays into `[chunks, m, ...]` with m * V <= MAX_LOGITS; padding has weight and target 0."""
    M = arrays[0].shape[0]
    count = max(1, -(-M * num_classes // MAX_LOGITS))
    size = -(-M // count)
    pad = count * size - M
    return tuple(jnp.pad(a, [(0, pad)] + [(0, 0)] * (a.ndim - 1)).reshape(count, size, *a.shape[1:]) for a in arrays)
