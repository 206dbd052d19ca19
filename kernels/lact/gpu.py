"""LaCT's fast-weight network on an NVIDIA GPU: Pallas (Triton) kernels without a `[C, F]` array.

A head's matrices do not fit on chip, as they do on a TPU, but every hidden unit stands by itself, so there are two
kinds of kernels, and both compute a tile of activations anew:

tokens     grid (rows, token tiles): a program walks over the hidden units; what its tokens read, or their gradients,
           are sums in registers.
weights    grid (rows, tiles of hidden units): a program walks over the tokens; what its units learn, or their
           gradients, are sums in registers.

A row is one head of one batch row. Triton wants powers of two: narrower heads and fewer units are padded with zeros,
which change nothing. Not measured.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels import choices
from kernels.lact.reference import Network, Weights
from kernels.lact.tile import applied, learned
from kernels.lowering import by_platform
from kernels.tiles import value

ELSEWHERE = "implementation='pallas_gpu' runs on cuda only; use None."
WIDEST = {2: 512, 4: 64}  # numbers of a head, by the bytes of one: registers hold a tile's sums
LEAST = 16  # of a side of a product
RATES = 4  # rows of rates: a fourth of zeros, for a power of two


def too_large(width: int, hidden: int, dtype: jnp.dtype) -> str | None:
    """Why a network H `width` and F `hidden` wide is not taken, or None."""
    size = jnp.dtype(dtype).itemsize
    if size > 4:
        return f"it computes in float32 and the inputs are {jnp.dtype(dtype)}"
    if width > WIDEST[size]:
        return f"its heads are {width} wide; up to {WIDEST[size]} are taken in {jnp.dtype(dtype)}"
    return None


def _tile(width: int) -> int:
    """Tokens, and hidden units, of a tile: fewer where heads are wide."""
    default = 64 if width <= 128 else 32 if width <= 256 else LEAST
    tried = tuple((n,) for n in (16, 32, 64, 128))
    return choices.chosen("lact", f"pallas_gpu, H {choices.length(width)}", "gpu", (default,), tried)[0]


def _side(n: int) -> int:
    return max(LEAST, pl.next_power_of_2(n))


def _tiles(x: jax.Array, size: int, width: int) -> jax.Array:
    """`[B, C, N, H]` -> `[B N, tiles, size, width]`, zeros behind the last token and number."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, width - x.shape[3])))
    x = jnp.moveaxis(x, 2, 1)
    return x.reshape(-1, x.shape[2] // size, size, width)


def _tokens(x: jax.Array, like: jax.Array) -> jax.Array:
    """The inverse of `_tiles`."""
    x = jnp.moveaxis(x.reshape(like.shape[0], like.shape[2], -1, x.shape[-1]), 1, 2)
    return x[:, : like.shape[1], :, : like.shape[3]].astype(like.dtype)


def _rates(lr: jax.Array, size: int, wide: jnp.dtype) -> jax.Array:
    """`[B, C, N, 3]` -> `[B N, tiles, RATES, size]`."""
    return _tiles(lr.astype(wide), size, RATES).swapaxes(2, 3)


def _matrices(weights: Weights, size: int, width: int, dtype: jnp.dtype) -> list[jax.Array]:
    """(w0 `[B N, F', width]`, w1 `[B N, width, F']`, w2 as w0), F' a multiple of `size`."""
    hidden = weights[0].shape[2]
    full = -(-hidden // size) * size
    sides = [(full, width), (width, full), (full, width)]
    flat = [w.reshape(-1, *w.shape[2:]).astype(dtype) for w in weights]
    return [jnp.pad(w, ((0, 0), *((0, s - n) for s, n in zip(side, w.shape[1:], strict=True))))
            for w, side in zip(flat, sides, strict=True)]  # fmt: skip


def _weights(found: list[jax.Array], like: Weights) -> Weights:
    """The inverse of `_matrices`."""
    return tuple(x[:, : w.shape[2], : w.shape[3]].reshape(w.shape).astype(w.dtype)
                 for x, w in zip(found, like, strict=True))  # fmt: skip


def _units(refs: tuple, at: Any, size: int) -> list[jax.Array]:
    """Some hidden units of (w0, w1, w2)-shaped arrays."""
    units = pl.ds(at * size, size)
    return [refs[0][units, :], refs[1][:, units], refs[2][units, :]]


def _given(refs: tuple, lead: tuple, wide: jnp.dtype) -> list:
    """Tiles of tokens in the accumulator's type; three rows of rates."""
    everything = slice(None)
    return [
        tuple(ref[(*lead, pl.ds(i, 1), everything)] for i in range(3))
        if ref.shape[-2] == RATES
        else ref[(*lead, everything, everything)].astype(wide)
        for ref in refs
    ]


def _walk(turns: int, step: Callable, shapes: Any) -> Any:
    """The sum of what step(i) returns, a tree of arrays of these shapes."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.fori_loop(0, turns, lambda i, sums: jax.tree.map(jnp.add, sums, step(i)), zeros)


def _store(refs: tuple, found: Any) -> None:
    for ref, x in zip(refs, found, strict=True):
        if isinstance(x, tuple):
            for i, row in enumerate(x):
                ref[pl.ds(i, 1), :] = row
        else:
            ref[...] = x.astype(ref.dtype)


def _tokens_body(*refs: Any, function: Callable, cut: tuple[int, int], size: int, wide: jnp.dtype) -> None:
    """refs: cut[0] arrays of tokens, cut[1] of hidden units, the results; function(tokens, units) -> results."""
    tokens, units, results = refs[: cut[0]], refs[cut[0] : sum(cut)], refs[sum(cut) :]
    given = _given(tokens, (), wide)

    def step(i):
        here = [x.astype(wide) for at in range(0, cut[1], 3) for x in _units(units[at : at + 3], i, size)]
        return function(given, here)

    turns = units[0].shape[0] // size
    _store(results, _walk(turns, step, jax.eval_shape(step, 0)))


def _weights_body(*refs: Any, function: Callable, cut: tuple[int, int], size: int, wide: jnp.dtype) -> None:
    """As `_tokens_body`, of a tile of hidden units and all tokens."""
    tokens, units, results = refs[: cut[0]], refs[cut[0] : sum(cut)], refs[sum(cut) :]
    here = [ref[...].astype(wide) for ref in units]
    step = lambda i: function(_given(tokens, (i,), wide), here)  # noqa: E731
    _store(results, _walk(tokens[0].shape[0], step, jax.eval_shape(step, 0)))


def _read(tokens: list, units: list, *, low: jnp.dtype) -> tuple:
    return (value(functools.partial(applied, low), *tokens, *units),)


def _read_tokens(tokens: list, units: list, *, low: jnp.dtype) -> tuple:
    x, d_out = tokens
    return jax.vjp(lambda x: applied(low, x, *units), x)[1](d_out)


def _read_weights(tokens: list, units: list, *, low: jnp.dtype) -> tuple:
    x, d_out = tokens
    return jax.vjp(functools.partial(applied, low, x), *units)[1](d_out)


def _learn(tokens: list, units: list, *, low: jnp.dtype) -> tuple:
    return value(functools.partial(learned, low), *tokens, *units)


def _learn_tokens(tokens: list, units: list, *, low: jnp.dtype) -> tuple:
    return jax.vjp(lambda k, v, lr: learned(low, k, v, lr, *units[:3]), *tokens)[1](tuple(units[3:]))


def _learn_weights(tokens: list, units: list, *, low: jnp.dtype) -> tuple:
    return jax.vjp(functools.partial(learned, low, *tokens), *units[:3])[1](tuple(units[3:]))


def _call(function: Callable, tokens: list, units: list, like: list, interpret: bool) -> list:
    """A kernel whose results are as the arrays in `like`, all of them of tokens or all of hidden units.

    tokens: `[R, tiles, c, H]`, rates `[R, tiles, 4, c]`.
    units: (w0, w1, w2) `[R, F, H]`, `[R, H, F]`, `[R, F, H]`, and as many more as `function` reads.
    """
    rows, tiles, size = tokens[0].shape[:3]
    by_tokens = len(like[0].shape) == 4
    wide = jnp.promote_types(tokens[0].dtype, jnp.float32)

    def spec(x):
        if len(x.shape) == 4 and by_tokens:
            return pl.BlockSpec((None, None, *x.shape[2:]), lambda row, i: (row, i, 0, 0))
        if len(x.shape) == 4 or by_tokens:
            return pl.BlockSpec((None, *x.shape[1:]), lambda row, i: (row, *[0] * (len(x.shape) - 1)))
        if x.shape[1] == units[0].shape[1]:
            return pl.BlockSpec((None, size, x.shape[2]), lambda row, i: (row, i, 0))
        return pl.BlockSpec((None, x.shape[1], size), lambda row, i: (row, 0, i))

    run = pl.pallas_call(
        functools.partial(
            _tokens_body if by_tokens else _weights_body,
            function=functools.partial(function, low=tokens[0].dtype),
            cut=(len(tokens), len(units)),
            size=size,
            wide=wide,
        ),
        grid=(rows, tiles if by_tokens else units[0].shape[1] // size),
        in_specs=[spec(x) for x in (*tokens, *units)],
        out_specs=[spec(x) for x in like],
        out_shape=like,
        compiler_params=plgpu.CompilerParams(num_warps=4 if size > LEAST else 8, num_stages=2),
        interpret=interpret,
        name=f"lact{function.__name__}",
    )
    return run(*tokens, *units) if interpret else by_platform(*tokens, *units, default=ELSEWHERE, cuda=run)


def _shapes(arrays: list, dtype: jnp.dtype) -> list:
    return [jax.ShapeDtypeStruct(x.shape, dtype) for x in arrays]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(interpret: bool, x: jax.Array, weights: Weights) -> jax.Array:
    low, width = x.dtype, _side(x.shape[-1])
    size = _tile(width)
    tokens = [_tiles(x, size, width)]
    (out,) = _call(_read, tokens, _matrices(weights, size, width, low), _shapes(tokens, low), interpret)
    return _tokens(out, x)


def _apply_backward(interpret, saved, d_out):
    x, weights = saved
    low, width = x.dtype, _side(x.shape[-1])
    size, wide = _tile(width), jnp.promote_types(x.dtype, jnp.float32)
    tokens, units = [_tiles(a, size, width) for a in (x, d_out)], _matrices(weights, size, width, low)
    (dx,) = _call(_read_tokens, tokens, units, _shapes(tokens[:1], low), interpret)
    d_weights = _call(_read_weights, tokens, units, _shapes(units, wide), interpret)
    return _tokens(dx, x), _weights(d_weights, weights)


_apply.defvjp(lambda interpret, x, weights: (_apply(interpret, x, weights), (x, weights)), _apply_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _teach(interpret: bool, k: jax.Array, v: jax.Array, lr: jax.Array, weights: Weights) -> Weights:
    width, wide = _side(k.shape[-1]), jnp.promote_types(k.dtype, jnp.float32)
    size = _tile(width)
    tokens = [_tiles(k, size, width), _tiles(v, size, width), _rates(lr, size, wide)]
    units = _matrices(weights, size, width, k.dtype)
    found = _call(_learn, tokens, units, _shapes(units, wide), interpret)
    return _weights(found, tuple(jax.ShapeDtypeStruct(w.shape, wide) for w in weights))


def _teach_backward(interpret, saved, d_learned):
    k, v, lr, weights = saved
    low, width, wide = k.dtype, _side(k.shape[-1]), jnp.promote_types(k.dtype, jnp.float32)
    size = _tile(width)
    tokens = [_tiles(k, size, width), _tiles(v, size, width), _rates(lr, size, wide)]
    units = [m for given in (weights, d_learned) for m in _matrices(given, size, width, low)]
    like = [*_shapes(tokens[:2], low), *_shapes(tokens[2:], wide)]
    *d_tokens, d_rates = _call(_learn_tokens, tokens, units, like, interpret)
    d_weights = _call(_learn_weights, tokens, units, _shapes(units[:3], wide), interpret)
    given = zip((*d_tokens, d_rates.swapaxes(2, 3)), (k, v, lr), strict=True)
    return (*(_tokens(d, x) for d, x in given), _weights(d_weights, weights))


_teach.defvjp(lambda interpret, *given: (_teach(interpret, *given), given), _teach_backward)


def apply(x: jax.Array, weights: Weights, *, interpret: bool = False) -> jax.Array:
    """As `reference.apply_fast_weights`, weights with the batch axis of x."""
    return _apply(interpret, x, weights)


def learn(k: jax.Array, v: jax.Array, lr: jax.Array, weights: Weights, *, interpret: bool = False) -> Weights:
    """As `reference.fast_weight_gradient`."""
    return _teach(interpret, k, v, lr, weights)


NETWORK = Network(apply, learn)
INTERPRETED = Network(functools.partial(apply, interpret=True), functools.partial(learn, interpret=True))
