"""TTT on a TPU: one kernel each way, the inner model in VMEM from mini-batch to mini-batch.

forward    grid (rows, mini-batches): a program takes one mini-batch of a few heads, whose maps stay in scratch.
backward   grid (rows, kept maps from the last to the first, twice the mini-batches after each): the maps before every
           mini-batch of a group are computed again into scratch, then the group is walked back, each mini-batch by
           `jax.vjp` of `tile.mini_batch` inside the kernel. No maps but the kept ones reach HBM.

The heads of a program do not depend on each other: their chains of small products fill each other's gaps. Not measured.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.lact.chunk_scan import Kernels, Walk
from kernels.ttt.rows import flat, pairs, rows_of, tokens_of
from kernels.ttt.tile import mini_batch

TOGETHER = 4  # heads of a program
VMEM_LIMIT = 56 * 2**20  # bytes; v5p and tpu7x have 64 MiB, v5e and v6e 128 MiB
MOST_MAPS = 24 * 2**20  # bytes of the maps of a group


def _held(layers: Any, steps: int) -> int:
    """Bytes of one head's maps before every mini-batch of the longest group, as they lie in VMEM."""
    sides = [x.shape[2:] if x.ndim == 4 else (1, *x.shape[2:]) for x in jax.tree.leaves(layers)]
    return 4 * (math.isqrt(steps) + 3) * sum(-(-a // 8) * 8 * -(-b // 128) * 128 for a, b in sides)


def too_large(layers: Any, steps: int, dtype: jnp.dtype) -> str | None:
    """Why `steps` mini-batches of tokens in `dtype` under these maps are not taken, or None."""
    if jnp.dtype(dtype).itemsize > 4:
        return f"it computes in float32 and the inputs are {jnp.dtype(dtype)}"
    if _held(layers, steps) > MOST_MAPS:
        return f"the maps of a group need {_held(layers, steps) >> 20} MiB of VMEM, at most {MOST_MAPS >> 20} are taken"
    return None


def _together(layers: Any, steps: int, heads: int) -> int:
    """Heads of a program: of one row, so that their norms lie side by side."""
    most = max(1, MOST_MAPS // _held(layers, steps))
    return next(n for n in (TOGETHER, 2, 1) if heads % n == 0 and (n <= most or n == 1))


def _read(refs: tuple, head: int, wide: jnp.dtype) -> tuple:
    """(norm, rate, tokens) of one head, in the accumulator's type: gradients of the same array are added there."""
    scale, shift, rate, *tokens = refs
    given = [ref[head].astype(wide) for ref in tokens]
    return (scale[head], shift[head]), rate[...], tuple(given)


def _forward_body(*refs: Any, maps: int, group: int, low: jnp.dtype) -> None:
    learns, *refs = refs
    given, first, refs = refs[:7], refs[7 : 7 + maps], refs[7 + maps :]
    out, last, kept, held = refs[0], refs[1 : 1 + maps], refs[1 + maps : -maps], refs[-maps:]
    at = pl.program_id(1)

    @pl.when(at == 0)
    def _():
        for ref, x in zip(held, first, strict=True):
            ref[...] = x[...]

    if group:

        @pl.when(jax.lax.rem(at, jnp.int32(group)) == 0)
        def _():
            for ref, x in zip(kept, held, strict=True):
                ref[...] = x[...]

    for head in range(out.shape[0]):
        layers = pairs([ref[head] for ref in held])
        y, after = mini_batch(low, layers, *_read(given, head, held[0].dtype))
        out[head] = y.astype(out.dtype)
        _learn(learns[at], held, head, after)

    @pl.when(at == pl.num_programs(1) - 1)
    def _():
        for ref, x in zip(last, held, strict=True):
            ref[...] = x[...]


def _learn(learns: jax.Array, held: tuple, head: int, after: tuple) -> None:
    """Writes the maps after a mini-batch where something follows it."""

    @pl.when(learns != 0)
    def _():
        for ref, x in zip(held, jax.tree.leaves(after), strict=True):
            ref[head] = x


def _backward_body(*refs: Any, maps: int, group: int, steps: int, low: jnp.dtype) -> None:
    learns, *refs = refs
    given, kept, refs = refs[:7], refs[7 : 7 + maps], refs[7 + maps :]
    d_out, d_last, refs = refs[0], refs[1 : 1 + maps], refs[1 + maps :]
    d_norm, d_rate, d_tokens, d_first, refs = refs[:2], refs[2], refs[3:7], refs[7 : 7 + maps], refs[7 + maps :]
    held, stack, d_held = refs[:maps], refs[maps : 2 * maps], refs[2 * maps :]
    inner, back = pl.program_id(2), pl.program_id(2) >= group
    place = jnp.where(back, 2 * group - 1 - inner, inner)
    at = (pl.num_programs(1) - 1 - pl.program_id(1)) * group + place
    wide = d_held[0].dtype

    @pl.when(inner == 0)
    def _():
        for ref, x in zip(held, kept, strict=True):
            ref[...] = x[...]

    @pl.when((inner == 0) & (pl.program_id(1) == 0))
    def _():
        for ref, x in zip(d_held, d_last, strict=True):
            ref[...] = x[...]
        for ref in (*d_norm, d_rate):
            ref[...] = jnp.zeros_like(ref)

    @pl.when(jnp.logical_not(back) & (at < steps))
    def _():
        for ref, x in zip(stack, held, strict=True):
            ref[place] = x[...]
        for head in range(d_out.shape[0]):
            layers = pairs([ref[head] for ref in held])
            _learn(learns[at], held, head, mini_batch(low, layers, *_read(given, head, wide))[1])

    @pl.when(back & (at < steps))
    def _():
        learned = learns[at].astype(wide)
        for head in range(d_out.shape[0]):
            layers = pairs([ref[place, head] for ref in stack])
            _, pull = jax.vjp(functools.partial(mini_batch, low), layers, *_read(given, head, wide))
            after = [ref[head] for ref in d_held]
            d_layers, norm, rate, tokens = pull((d_out[head].astype(wide), pairs([learned * d for d in after])))
            for ref, d, passed in zip(d_held, jax.tree.leaves(d_layers), after, strict=True):
                ref[head] = d + (1 - learned) * passed
            for ref, d in zip((*d_norm, d_rate), (*norm, rate), strict=True):
                ref[head] += d
            for ref, d in zip(d_tokens, tokens, strict=True):
                ref[head] = d.astype(ref.dtype)

    @pl.when(inner == 2 * group - 1)
    def _():
        for ref, x in zip(d_first, d_held, strict=True):
            ref[...] = x[...]


@dataclasses.dataclass(frozen=True)
class _Cut:
    """The blocks of a call: `heads` of N a program, `place(*grid indices behind the row) -> mini-batch`."""

    heads: int
    of: int
    place: Callable

    def tokens(self, x: Any) -> pl.BlockSpec:
        """Of `[R, steps, ...]`."""
        return pl.BlockSpec((self.heads, None, *x.shape[2:]), lambda row, *at: (row, self.place(*at), 0, 0))

    def rows(self, x: Any) -> pl.BlockSpec:
        """Of `[R, a, b]`."""
        return pl.BlockSpec((self.heads, *x.shape[1:]), lambda row, *at: (row, 0, 0))

    def norm(self, x: Any) -> pl.BlockSpec:
        """Of `[N, 1, H]`."""
        parts = self.of // self.heads
        return pl.BlockSpec((self.heads, *x.shape[1:]), lambda row, *at: (jax.lax.rem(row, jnp.int32(parts)), 0, 0))

    def kept(self, x: Any, group: Any) -> pl.BlockSpec:
        """Of `[kept, R, a, b]`."""
        return pl.BlockSpec((None, self.heads, *x.shape[2:]), lambda row, *at: (group(*at), row, 0, 0))


def _inputs(walk: Walk, params: Any, flags: jax.Array, xs: tuple, wide: jnp.dtype) -> tuple[jax.Array, list]:
    """(learns `[steps]`, [scale, shift `[N, 1, H]`, rate `[1, K]`, q, k, v, eta by mini-batches])."""
    (norm, rate), (q, (k, v, eta)) = params, xs
    tokens = [rows_of(x, walk) for x in (q, k, v)] + [rows_of(eta, walk)[:, :, None]]
    return flags.astype(jnp.int32), [*(x.astype(wide)[:, None] for x in norm), rate.astype(wide)[None], *tokens]


def _specs(cut: _Cut, inputs: list, queries: _Cut | None = None) -> list:
    scale, shift, rate, q, *tokens = inputs
    whole = pl.BlockSpec(rate.shape, lambda *at: (0, 0))
    memory = pl.BlockSpec(memory_space=pltpu.SMEM)
    by_tokens = [(queries or cut).tokens(q), *(cut.tokens(x) for x in tokens)]
    return [memory, cut.norm(scale), cut.norm(shift), whole, *by_tokens]


def _call(body: Any, grid: tuple, specs: tuple, shapes: list, scratch: list, interpret: bool, name: str) -> Any:
    return pl.pallas_call(
        body,
        grid=grid,
        in_specs=specs[0],
        out_specs=specs[1],
        out_shape=shapes,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) + ("arbitrary",) * (len(grid) - 1), vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=pltpu.InterpretParams() if interpret else False,
        name=f"ttt_{name}",
    )


def _like(x: Any, *lead: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype)


def forward(interpret: bool, walk: Walk, group: int, params: Any, layers: Any, flags: Any, xs: tuple) -> tuple:
    """`chunk_scan.Kernels.forward`: params (norm, rate), carry the maps, flags which mini-batches are learned from."""
    wide, heads, first = layers[0][0].dtype, xs[0].shape[2], flat(layers)
    learns, inputs = _inputs(walk, params, flags, xs, wide)
    cut = _Cut(_together(layers, walk.steps, heads), heads, lambda at: at)
    out, kept = inputs[3], [_like(x, -(-walk.steps // group)) for x in first] if group else []
    every = [cut.kept(x, lambda at: jax.lax.div(at, jnp.int32(group))) for x in kept]
    maps = [cut.rows(x) for x in first]
    results = _call(
        functools.partial(_forward_body, maps=len(first), group=group, low=xs[0].dtype),
        (len(out) // cut.heads, walk.steps),
        ([*_specs(cut, inputs), *maps], [cut.tokens(out), *maps, *every]),
        [_like(out), *map(_like, first), *kept],
        [pltpu.VMEM((cut.heads, *x.shape[1:]), wide) for x in first],
        interpret,
        "forward",
    )(learns, *inputs, *first)
    tree = jax.tree.structure(layers)
    shaped = [x.reshape(y.shape) for x, y in zip(results[1 : 1 + len(first)], jax.tree.leaves(layers), strict=True)]
    held = None
    if group:
        saved = zip(results[1 + len(first) :], jax.tree.leaves(layers), strict=True)
        held = jax.tree.unflatten(tree, [x.reshape(len(x), *y.shape) for x, y in saved])
    return jax.tree.unflatten(tree, shaped), tokens_of(results[0], heads, walk.length), held


def backward(interpret: bool, walk: Walk, group: int, residuals: tuple, cotangents: tuple) -> tuple:
    """`chunk_scan.Kernels.backward`."""
    (params, kept, flags, xs), (d_layers, d_out) = residuals, cotangents
    wide, heads, d_last = d_layers[0][0].dtype, xs[0].shape[2], flat(d_layers)
    learns, inputs = _inputs(walk, params, flags, xs, wide)
    groups = -(-walk.steps // group)

    def place(forth, reverse, inner):
        at = jnp.where(inner < group, inner if forth else group - 1, 2 * group - 1 - inner)
        return jnp.minimum((groups - 1 - reverse) * group + at, walk.steps - 1)

    cut = _Cut(_together(d_layers, walk.steps, heads), heads, functools.partial(place, True))
    # The first look back is at the last mini-batch of a group: what the way forth does not need stays there until then.
    back = _Cut(cut.heads, heads, functools.partial(place, False))
    saved = [x.reshape(groups, *y.shape) for x, y in zip(jax.tree.leaves(kept), d_last, strict=True)]
    results, rows = rows_of(d_out, walk), len(inputs[3])
    scale, shift, rate, *tokens = inputs
    rates = [jax.ShapeDtypeStruct((rows, 1, x.shape[-1]), wide) for x in (scale, shift, rate)]
    every = [cut.kept(x, lambda reverse, inner: groups - 1 - reverse) for x in saved]
    maps, count = [cut.rows(x) for x in d_last], len(d_last)
    found = _call(
        functools.partial(_backward_body, maps=count, group=group, steps=walk.steps, low=xs[0].dtype),
        (rows // cut.heads, groups, 2 * group),
        (
            [*_specs(cut, inputs, queries=back), *every, back.tokens(results), *maps],
            [*(cut.rows(x) for x in rates), *(back.tokens(x) for x in tokens), *maps],
        ),
        [*rates, *map(_like, tokens), *map(_like, d_last)],
        [pltpu.VMEM((*lead, cut.heads, *x.shape[1:]), wide) for lead in ((), (group,), ()) for x in d_last],
        interpret,
        "backward",
    )(learns, *inputs, *saved, results, *d_last)
    over_batch = lambda x: jnp.sum(x.reshape(-1, heads, x.shape[-1]), axis=0)  # noqa: E731
    norm = tuple(over_batch(d).astype(x.dtype) for d, x in zip(found[:2], params[0], strict=True))
    d_rate = jnp.sum(found[2], axis=(0, 1)).astype(params[1].dtype)
    q, k, v, eta = (tokens_of(x, heads, walk.length) for x in (*found[3:6], found[6][:, :, 0]))
    leaves = [x.reshape(y.shape) for x, y in zip(found[7:], jax.tree.leaves(d_layers), strict=True)]
    return (norm, d_rate), jax.tree.unflatten(jax.tree.structure(d_layers), leaves), (q, (k, v, eta))


KERNELS, INTERPRETED = (
    Kernels(functools.partial(forward, interpret), functools.partial(backward, interpret))
    for interpret in (False, True)
)
