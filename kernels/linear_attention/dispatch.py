"""Which form of a pass over whole chunks runs where: chosen while lowering, or named and then that one or a refusal."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from kernels.lact.chunk_scan import Body, ByPlatform, Kernels, Walk, chunk_scan
from kernels.linear_attention import gpu, tpu
from kernels.linear_attention.rows import Cut

KERNELS = {"pallas_tpu": tpu, "pallas_gpu": gpu}
BY_DEFAULT = ("pallas_tpu",)  # The GPU's were compiled by no GPU yet: they run where they are named.
_PLATFORMS = {"pallas_tpu": "tpu", "pallas_gpu": "cuda"}


def unsupported(name: str, dtype: jnp.dtype, length: int, size: int, width: int, depth: int) -> str | None:
    """Why the kernel `name` does not take `length` tokens in chunks of `size`, keys `width` and values `depth` wide."""
    if jnp.dtype(dtype).itemsize > 4:
        return f"it computes in float32 and the inputs are {jnp.dtype(dtype)}"
    if length < size:
        return f"{length} tokens are no whole chunk of {size}"
    return KERNELS[name].too_large(size, width, depth)


def over_chunks(
    body: Body, memory: jax.Array, begins: jax.Array, tokens: tuple, chunk_size: int, implementation: str | None,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """(memory after the whole chunks, out `[B, T, N, P]`, zero behind them).

    body: of `chunk_scan`, for chips without a kernel.
    memory: `[B, N, H, P]`.
    begins: `[B, T]` bool, where a document begins.
    tokens: (q, k, v, decay, beta or None) of `[B, T, N, ...]`.
    implementation: None, "chunked", or one of KERNELS.
    interpret: run that kernel in Pallas' interpreter (tests).
    """
    (q, v), length = (tokens[0], tokens[2]), begins.shape[1]
    steps = length // chunk_size
    flags = jnp.moveaxis(begins[:, : steps * chunk_size].reshape(-1, steps, chunk_size), 1, 0)
    sizes, elsewhere, plain = (q.dtype, length, chunk_size, q.shape[-1], v.shape[-1]), (), body
    if implementation in KERNELS and interpret:
        plain = _kernels(implementation, True)
    elif implementation in KERNELS:
        platform = _PLATFORMS[implementation]
        plain = f"implementation={implementation!r} runs on {platform} only; use implementation='chunked' or None."
        elsewhere = ((platform, _kernels(implementation, False)),)
    elif implementation is None:
        taken = [name for name in BY_DEFAULT if unsupported(name, *sizes) is None]
        elsewhere = tuple((_PLATFORMS[name], _kernels(name, False)) for name in taken)
    scanned = {"sizes": (chunk_size,), "steps": steps, "length": length}
    return chunk_scan(ByPlatform(plain, elsewhere), (), memory, flags, (tokens,), **scanned)


def _begins(flags: jax.Array) -> jax.Array:
    return jnp.moveaxis(flags, 0, 1).reshape(flags.shape[1], -1)


@functools.cache
def _kernels(name: str, interpret: bool) -> Kernels:
    """The kernels of one module for `chunk_scan`."""
    module = KERNELS[name]

    def forward(walk: Walk, group: int, params: tuple, memory: jax.Array, flags: jax.Array, xs: tuple) -> tuple:
        cut = Cut(walk.steps, walk.sizes[0], walk.length, group)
        return module.forward(xs[0], _begins(flags), memory, cut=cut, interpret=interpret)

    def backward(walk: Walk, group: int, residuals: tuple, cotangents: tuple) -> tuple[Any, ...]:
        (_, kept, flags, (tokens,)), cut = residuals, Cut(walk.steps, walk.sizes[0], walk.length, group)
        d_memory, d_tokens = module.backward(tokens, _begins(flags), kept, *cotangents, cut=cut, interpret=interpret)
        return (), d_memory, (d_tokens,)

    return Kernels(forward, backward)
