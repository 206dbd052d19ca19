"""TTT on an NVIDIA GPU: Pallas (Triton) kernels, the inner model of one head in a program's registers.

forward    grid (rows): a program walks over the mini-batches of its row.
again      grid (rows): the maps before every mini-batch of one group, from those that were kept.
pull       grid (rows): back over that group, each mini-batch by `jax.vjp` of `tile.mini_batch` inside the kernel.

The groups go from the last to the first, two kernels each, so that the maps of one group alone are in device memory
beside the kept ones. A row is one head of one batch row. Not measured.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels.lact.chunk_scan import Kernels, Walk
from kernels.tiles import value
from kernels.ttt.rows import flat, pairs, rows_of, tokens_of
from kernels.ttt.tile import mini_batch

MOST_MAPS = 32 * 2**10  # bytes of the maps of a head in float32: their sums and gradients lie beside them


def too_large(layers: Any, size: int, dtype: jnp.dtype) -> str | None:
    """Why mini-batches of `size` tokens in `dtype` under these maps are not taken, or None."""
    if jnp.dtype(dtype).itemsize > 4:
        return f"it computes in float32 and the inputs are {jnp.dtype(dtype)}"
    sides = {size, *(n for w, _ in layers for n in w.shape[2:])}
    if odd := [n for n in sorted(sides) if n < 16 or n & (n - 1)]:
        return f"{odd[0]} is no power of two from 16 on, as mini-batches, heads and hidden widths must be"
    held = 4 * sum(math.prod(w.shape[2:]) for w, _ in layers)
    if held > MOST_MAPS:
        return f"the maps of a head are {held >> 10} KiB, at most {MOST_MAPS >> 10} fit in registers"
    return None


def _inputs(walk: Walk, params: Any, flags: jax.Array, xs: tuple, wide: jnp.dtype) -> list:
    """[learns `[steps]`, scale, shift `[N, 1, H]`, rate `[1, K]`, q, k, v `[R, steps, K, H]`, eta of `[1, K]`s]."""
    (norm, rate), (q, (k, v, eta)) = params, xs
    tokens = [rows_of(x, walk) for x in (q, k, v)] + [rows_of(eta, walk)[:, :, None]]
    return [flags.astype(jnp.int32), *(x.astype(wide)[:, None] for x in norm), rate.astype(wide)[None], *tokens]


def _read(refs: tuple, at: Any, wide: jnp.dtype) -> tuple:
    """(whether the mini-batch is learned from, norm, rate, its tokens)."""
    learns, scale, shift, rate, *tokens = refs
    return learns[at], (scale[...], shift[...]), rate[...], tuple(ref[at].astype(wide) for ref in tokens)


def _after(low: jnp.dtype, maps: tuple, given: tuple) -> tuple:
    """(what is read, the maps after the mini-batch if it is learned from)."""
    learns, *given = given
    out, after = value(functools.partial(mini_batch, low), pairs(maps), *given)
    return out, tuple(jnp.where(learns != 0, x, y) for x, y in zip(jax.tree.leaves(after), maps, strict=True))


def _forward_body(*refs: Any, count: int, group: int, steps: int, low: jnp.dtype) -> None:
    given, first, (out, *rest) = refs[:8], refs[8 : 8 + count], refs[8 + count :]
    last, kept = rest[:count], rest[count:]

    def one(at, maps):
        y, after = _after(low, maps, _read(given, at, first[0].dtype))
        out[at] = y.astype(out.dtype)
        return after

    def several(at, maps):
        for ref, x in zip(kept, maps, strict=True):
            ref[at] = x
        return jax.lax.fori_loop(at * group, jnp.minimum((at + 1) * group, steps), one, maps)

    maps = tuple(ref[...] for ref in first)
    if group:
        maps = jax.lax.fori_loop(0, -(-steps // group), several, maps)
    else:
        maps = jax.lax.fori_loop(0, steps, one, maps)
    for ref, x in zip(last, maps, strict=True):
        ref[...] = x


def _again_body(*refs: Any, count: int, group: int, low: jnp.dtype) -> None:
    number, *refs = refs
    given, kept, before = refs[:8], refs[8 : 8 + count], refs[8 + count :]

    def one(inner, maps):
        for ref, x in zip(before, maps, strict=True):
            ref[inner] = x
        return _after(low, maps, _read(given, number[0] * group + inner, kept[0].dtype))[1]

    jax.lax.fori_loop(0, group, one, tuple(ref[...] for ref in kept))


def _pull_body(*refs: Any, count: int, group: int, low: jnp.dtype) -> None:
    number, *refs = refs
    given, before, d_out, refs = refs[:8], refs[8 : 8 + count], refs[8 + count], refs[9 + count :]
    d_after, (d_scale, d_shift, d_rate, *d_tokens), d_before = refs[:count], refs[count : count + 7], refs[count + 7 :]
    wide = d_scale.dtype

    def one(i, sums):
        d_maps, d_given = sums
        inner = group - 1 - i
        at = number[0] * group + inner
        learns, *here = _read(given, at, wide)
        learned = learns.astype(wide)
        _, pull = jax.vjp(functools.partial(mini_batch, low), pairs([ref[inner] for ref in before]), *here)
        found, norm, rate, tokens = pull((d_out[at].astype(wide), pairs([learned * d for d in d_maps])))
        for ref, d in zip(d_tokens, tokens, strict=True):
            ref[inner] = d.astype(ref.dtype)
        passed = [d + (1 - learned) * x for d, x in zip(jax.tree.leaves(found), d_maps, strict=True)]
        return tuple(passed), tuple(x + d for x, d in zip(d_given, (*norm, rate), strict=True))

    zeros = tuple(jnp.zeros(ref.shape, wide) for ref in (d_scale, d_shift, d_rate))
    d_maps, d_given = jax.lax.fori_loop(0, group, one, (tuple(ref[...] for ref in d_after), zeros))
    for ref, d in zip((*d_before, d_scale, d_shift, d_rate), (*d_maps, *d_given), strict=True):
        ref[...] = d


def _call(body: Any, heads: int, inputs: list, outputs: list, interpret: bool, name: str) -> list:
    """One program a row. A first axis of R is the row's, one of N its head's; outputs `[R, ...]`.

    What has neither is whole.
    """
    rows = outputs[0].shape[0]

    def spec(x):
        rest = [0] * (len(x.shape) - 1)
        if len(x.shape) > 2 and x.shape[0] == rows:
            return pl.BlockSpec((None, *x.shape[1:]), lambda row: (row, *rest))
        if len(x.shape) > 2:
            return pl.BlockSpec((None, *x.shape[1:]), lambda row: (jax.lax.rem(row, jnp.int32(heads)), *rest))
        return pl.BlockSpec(x.shape, lambda row: (0, *rest))

    return pl.pallas_call(
        body,
        grid=(rows,),
        in_specs=[spec(x) for x in inputs],
        out_specs=[spec(x) for x in outputs],
        out_shape=outputs,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name=f"ttt_{name}",
    )(*inputs)


def _like(x: Any, *lead: int) -> jax.ShapeDtypeStruct:
    """The shape and type of `[R, ...]` with `lead` behind R."""
    return jax.ShapeDtypeStruct((x.shape[0], *lead, *x.shape[1:]), x.dtype)


def forward(interpret: bool, walk: Walk, group: int, params: Any, layers: Any, flags: Any, xs: tuple) -> tuple:
    """`chunk_scan.Kernels.forward`: params (norm, rate), carry the maps, flags which mini-batches are learned from."""
    first, heads = flat(layers), xs[0].shape[2]
    inputs, leaves = _inputs(walk, params, flags, xs, first[0].dtype), jax.tree.leaves(layers)
    outputs = [_like(inputs[4]), *map(_like, first)]
    if group:
        outputs += [_like(x, -(-walk.steps // group)) for x in first]
    body = functools.partial(_forward_body, count=len(first), group=group, steps=walk.steps, low=xs[0].dtype)
    out, *found = _call(body, heads, [*inputs, *first], outputs, interpret, "forward")
    tree, count = jax.tree.structure(layers), len(first)
    last = jax.tree.unflatten(tree, [x.reshape(y.shape) for x, y in zip(found[:count], leaves, strict=True)])
    kept = None
    if group:
        saved = zip(found[count:], leaves, strict=True)
        kept = jax.tree.unflatten(tree, [jnp.moveaxis(x, 1, 0).reshape(x.shape[1], *y.shape) for x, y in saved])
    return last, tokens_of(out, heads, walk.length), kept


def backward(interpret: bool, walk: Walk, group: int, residuals: tuple, cotangents: tuple) -> tuple:
    """`chunk_scan.Kernels.backward`. Mini-batches behind the last are zeros that nothing is learned from."""
    (params, kept, flags, xs), (d_layers, d_out) = residuals, cotangents
    d_last, heads, low = flat(d_layers), xs[0].shape[2], xs[0].dtype
    groups, count, tree = -(-walk.steps // group), len(d_last), jax.tree.structure(d_layers)
    more = groups * group - walk.steps
    learns, *norm, rate, q, k, v, eta = _inputs(walk, params, flags, xs, d_last[0].dtype)
    tokens = [jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) for x in (q, k, v, eta, rows_of(d_out, walk))]
    given, results = [jnp.pad(learns, (0, more)), *norm, rate, *tokens[:4]], tokens[4]
    saved = [x.reshape(groups, *y.shape) for x, y in zip(jax.tree.leaves(kept), d_last, strict=True)]
    part = [jax.ShapeDtypeStruct((x.shape[0], group, *x.shape[2:]), x.dtype) for x in tokens[:4]]
    rates = [jax.ShapeDtypeStruct((len(q), 1, x.shape[-1]), x.dtype) for x in (*norm, rate)]
    how = {"count": count, "group": group, "low": low}

    def one(d_maps, here):
        number, maps = here
        at = number.reshape(1)
        before = _call(functools.partial(_again_body, **how), heads, [at, *given, *maps],
                       [_like(x, group) for x in d_last], interpret, "again")  # fmt: skip
        found = _call(functools.partial(_pull_body, **how), heads, [at, *given, *before, results, *d_maps],
                      [*rates, *part, *map(_like, d_last)], interpret, "pull")  # fmt: skip
        return tuple(found[7:]), tuple(found[:7])

    d_first, found = jax.lax.scan(one, tuple(d_last), (jnp.arange(groups, dtype=jnp.int32), saved), reverse=True)
    sums = [jnp.sum(x, axis=0) for x in found[:3]]
    joined = [jnp.moveaxis(x, 0, 1).reshape(len(q), -1, *x.shape[3:])[:, : walk.steps] for x in found[3:]]
    over_batch = lambda x: jnp.sum(x.reshape(-1, heads, x.shape[-1]), axis=0)  # noqa: E731
    d_norm = tuple(over_batch(d).astype(x.dtype) for d, x in zip(sums[:2], params[0], strict=True))
    d_rate = jnp.sum(sums[2], axis=(0, 1)).astype(params[1].dtype)
    d_q, d_k, d_v, d_eta = (tokens_of(x, heads, walk.length) for x in (*joined[:3], joined[3][:, :, 0]))
    leaves = [x.reshape(y.shape) for x, y in zip(d_first, jax.tree.leaves(d_layers), strict=True)]
    return (d_norm, d_rate), jax.tree.unflatten(tree, leaves), (d_q, (d_k, d_v, d_eta))


KERNELS, INTERPRETED = (
    Kernels(functools.partial(forward, interpret), functools.partial(backward, interpret))
    for interpret in (False, True)
)
