"""LaCT's fast-weight network on a TPU: what a chunk reads of it and what the weights learn, without a `[C, F]` array.

Each kernel has a grid (rows, token tiles), a row being one head of one batch row. Its three matrices stay in VMEM over
the tiles, and so do the float32 sums over tokens. A backward kernel computes a tile again and pulls back by `jax.vjp`
of the same function. Not measured.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import choices
from kernels.lact.reference import Network, Weights
from kernels.lact.tile import applied, learned
from kernels.lowering import by_platform

TILE = 256  # tokens
ELSEWHERE = "implementation='pallas_tpu' runs on tpu only; use None."
VMEM_LIMIT = 56 * 2**20  # bytes; v5p and tpu7x have 64 MiB, v5e and v6e 128 MiB


def too_large(width: int, hidden: int, dtype: jnp.dtype) -> str | None:
    """Why a network H `width` and F `hidden` wide is not taken, or None; the backward kernel of learning holds most."""
    size = jnp.dtype(dtype).itemsize
    if size > 4:
        return f"it computes in float32 and the inputs are {jnp.dtype(dtype)}"
    lanes = [-(-n // 128) * 128 for n in (width, hidden)]
    # Weights, gradients of what is learned and sums, each in two buffers; a float32 copy of each; tiles of both widths.
    needed = lanes[0] * lanes[1] * 3 * (4 * size + 2 * 4 + 4) + TILE * (8 * lanes[0] + 10 * lanes[1]) * 4
    if needed <= VMEM_LIMIT:
        return None
    return f"{width} x {hidden} needs {needed / 2**20:.0f} MiB of VMEM, at most {VMEM_LIMIT >> 20} are taken"


def _read(refs: tuple, wide: jnp.dtype) -> list[jax.Array]:
    """Values in the accumulator's type: gradients of the same array are added there. Products round them back."""
    return [ref[...].astype(wide) for ref in refs]


def _add(sums: tuple, values: tuple) -> None:
    """Adds to the row's sums, which begin at its first tile."""

    @pl.when(pl.program_id(1) == 0)
    def _():
        for ref in sums:
            ref[...] = jnp.zeros_like(ref)

    for ref, x in zip(sums, values, strict=True):
        ref[...] += x


def _apply_body(*refs: Any, low: jnp.dtype, wide: jnp.dtype) -> None:
    *given, out = refs
    out[...] = applied(low, *_read(given, wide)).astype(out.dtype)


def _apply_backward_body(*refs: Any, low: jnp.dtype, wide: jnp.dtype) -> None:
    *given, d_out, dx, d0, d1, d2 = refs
    _, pull = jax.vjp(functools.partial(applied, low), *_read(given, wide))
    d_x, *d_weights = pull(d_out[...].astype(wide))
    dx[...] = d_x.astype(dx.dtype)
    _add((d0, d1, d2), tuple(d_weights))


def _rates(ref: Any) -> tuple:
    return tuple(ref[i : i + 1] for i in range(3))


def _learn_body(*refs: Any, low: jnp.dtype, wide: jnp.dtype) -> None:
    k, v, lr, *weights = refs[:6]
    _add(refs[6:], learned(low, *_read((k, v), wide), _rates(lr), *_read(weights, wide)))


def _learn_backward_body(*refs: Any, low: jnp.dtype, wide: jnp.dtype) -> None:
    (k, v, lr, *weights), cotangents, outs = refs[:6], refs[6:9], refs[9:]
    given = *_read((k, v), wide), _rates(lr), *_read(weights, wide)
    _, pull = jax.vjp(functools.partial(learned, low), *given)
    dk, dv, d_lr, *d_weights = pull(tuple(_read(cotangents, wide)))
    outs[0][...], outs[1][...] = dk.astype(outs[0].dtype), dv.astype(outs[1].dtype)
    for i, d in enumerate(d_lr):
        outs[2][i : i + 1] = d
    _add(outs[3:], tuple(d_weights))


def _call(body: Callable, inputs: list, outputs: list, low: jnp.dtype, interpret: bool, name: str) -> list:
    """A kernel over (rows, tiles). Arrays `[R, tiles, ...]` are cut by tile; `[R, a, b]` are matrices of a row."""
    rows, tiles = inputs[0].shape[:2]

    def spec(x):
        if len(x.shape) == 4:
            return pl.BlockSpec((None, None, *x.shape[2:]), lambda row, tile: (row, tile, 0, 0))
        return pl.BlockSpec((None, *x.shape[1:]), lambda row, tile: (row, 0, 0))

    run = pl.pallas_call(
        functools.partial(body, low=low, wide=jnp.promote_types(low, jnp.float32)),
        grid=(rows, tiles),
        in_specs=[spec(x) for x in inputs],
        out_specs=[spec(x) for x in outputs],
        out_shape=outputs,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=pltpu.InterpretParams() if interpret else False,
        name=f"lact_{name}",
    )
    return run(*inputs) if interpret else by_platform(*inputs, default=ELSEWHERE, tpu=run)


def _size(x: jax.Array) -> int:
    """Tokens of a tile of `[B, C, N, H]`."""
    of = f"pallas_tpu, H {choices.length(x.shape[3])}, C {choices.length(x.shape[1])}"
    return min(*choices.chosen("lact", of, "tpu", (TILE,), ((128,), (512,))), -(-x.shape[1] // 16) * 16)


def _tiles(x: jax.Array, size: int) -> jax.Array:
    """`[B, C, N, H]` -> `[B N, tiles, c, H]`, zeros behind the last token: they read zero and teach nothing."""
    x = jnp.moveaxis(jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, 0))), 2, 1)
    return x.reshape(-1, x.shape[2] // size, size, x.shape[3])


def _tokens_in(k: jax.Array, v: jax.Array, lr: jax.Array) -> list[jax.Array]:
    size = _size(k)
    return [_tiles(k, size), _tiles(v, size), _tiles(lr, size).swapaxes(2, 3)]


def _tokens(x: jax.Array, heads: int, length: int) -> jax.Array:
    """The inverse of `_tiles`."""
    return jnp.moveaxis(x.reshape(-1, heads, x.shape[1] * x.shape[2], x.shape[3]), 1, 2)[:, :length]


def _matrices(weights: Weights, low: jnp.dtype) -> list[jax.Array]:
    """`[B N, a, b]` each, in the type that products round them to."""
    return [w.reshape(-1, *w.shape[2:]).astype(low) for w in weights]


def _shapes(arrays: list, dtype: jnp.dtype) -> list:
    return [jax.ShapeDtypeStruct(x.shape, dtype) for x in arrays]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(interpret: bool, x: jax.Array, weights: Weights) -> jax.Array:
    tiles, low = _tiles(x, _size(x)), x.dtype
    outputs = [jax.ShapeDtypeStruct(tiles.shape, low)]
    (out,) = _call(_apply_body, [tiles, *_matrices(weights, low)], outputs, low, interpret, "apply")
    return _tokens(out, x.shape[2], x.shape[1])


def _apply_backward(interpret, saved, d_out):
    x, weights = saved
    low, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    size = _size(x)
    inputs = [_tiles(x, size), *_matrices(weights, low), _tiles(d_out, size)]
    outputs = [*_shapes(inputs[:1], low), *_shapes(inputs[1:4], wide)]
    dx, *sums = _call(_apply_backward_body, inputs, outputs, low, interpret, "apply_backward")
    d_weights = tuple(d.reshape(w.shape).astype(w.dtype) for d, w in zip(sums, weights, strict=True))
    return _tokens(dx, x.shape[2], x.shape[1]), d_weights


_apply.defvjp(lambda interpret, x, weights: (_apply(interpret, x, weights), (x, weights)), _apply_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _learn(interpret: bool, k: jax.Array, v: jax.Array, lr: jax.Array, weights: Weights) -> Weights:
    low, wide = k.dtype, jnp.promote_types(k.dtype, jnp.float32)
    inputs = [*_tokens_in(k, v, lr), *_matrices(weights, low)]
    sums = _call(_learn_body, inputs, _shapes(inputs[3:], wide), low, interpret, "learn")
    return tuple(d.reshape(w.shape) for d, w in zip(sums, weights, strict=True))


def _learn_backward(interpret, saved, d_learned):
    k, v, lr, weights = saved
    low, wide = k.dtype, jnp.promote_types(k.dtype, jnp.float32)
    inputs = [*_tokens_in(k, v, lr), *_matrices(weights, low), *_matrices(d_learned, low)]
    outputs = [*_shapes(inputs[:2], low), *_shapes(inputs[2:6], wide)]
    *tokens, rates, d0, d1, d2 = _call(_learn_backward_body, inputs, outputs, low, interpret, "learn_backward")
    dk, dv, d_lr = (_tokens(x, k.shape[2], k.shape[1]) for x in (*tokens, rates.swapaxes(2, 3)))
    d_weights = tuple(d.reshape(w.shape).astype(w.dtype) for d, w in zip((d0, d1, d2), weights, strict=True))
    return dk, dv, d_lr, d_weights


_learn.defvjp(lambda interpret, *given: (_learn(interpret, *given), given), _learn_backward)


def apply(x: jax.Array, weights: Weights, *, interpret: bool = False) -> jax.Array:
    """As `reference.apply_fast_weights`, weights with the batch axis of x."""
    return _apply(interpret, x, weights)


def learn(k: jax.Array, v: jax.Array, lr: jax.Array, weights: Weights, *, interpret: bool = False) -> Weights:
    """As `reference.fast_weight_gradient`."""
    return _learn(interpret, k, v, lr, weights)


NETWORK = Network(apply, learn)
INTERPRETED = Network(functools.partial(apply, interpret=True), functools.partial(learn, interpret=True))
