"""Linear attention and the gated delta rule on an NVIDIA GPU: Pallas (Triton) kernels, parallel over chunks but one.

A chunk makes of a memory S the memory whole S - taken S + added, so one long row fills the chip:

prepare    grid (rows, chunks): taken, added and the inverse of the delta rule's system, by `tile.affine`.
scan       grid (rows, slices of P): the one walk from chunk to chunk, of one product a step. Backwards the same kernel
           walks from the last chunk to the first, with taken^T.
read       grid (rows, chunks): the results, from the memory before each chunk.
entering   grid (rows, chunks): what the results say about the memory before each chunk.
pull       grid (rows, chunks): `jax.vjp` of the whole chunk inside the kernel, every gradient of the tokens.

Triton wants powers of two: narrower heads are padded with zeros, which change nothing. Not measured.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels.linear_attention.rows import Cut, Rows, from_rows, gradients_of, heads_apart, kept_of, rows_of, to_rows
from kernels.linear_attention.tile import Chunk, affine, one_chunk
from kernels.tiles import product, value

WIDEST, LONGEST = 128, 64  # numbers of a head; tokens of a chunk
SLICE = 32  # columns of a memory that one program of the walk carries


def too_large(size: int, width: int, depth: int) -> str | None:
    """Why chunks of `size` tokens, keys of `width` and values of `depth` are not taken, or None."""
    if max(width, depth) > WIDEST:
        return f"its heads are {max(width, depth)} wide; up to {WIDEST} are taken"
    if size not in (16, 32, LONGEST):
        return f"chunk_size={size} is not 16, 32 or {LONGEST}"
    return None


def _padded(x: jax.Array, axes: int) -> jax.Array:
    """x with its last `axes` axes padded with zeros to powers of two, at least 16."""
    sides = [0] * (x.ndim - axes) + [max(16, pl.next_power_of_2(n)) - n for n in x.shape[x.ndim - axes :]]
    return jnp.pad(x, [(0, n) for n in sides])


def _chunk(refs: Any) -> tuple[Chunk, jax.Array]:
    """(the chunk of this program, how many documents have begun)."""
    q, k, v, rates = refs
    rows = [rates[pl.ds(i, 1), :] for i in range(rates.shape[0])]
    return Chunk(q[...], k[...], v[...], rows[0], rows[2] if len(rows) == 3 else None), rows[1]


def _prepare_body(*refs: Any) -> None:
    *tokens, added = refs[:5]
    chunk, run = _chunk(tokens)
    results = value(lambda chunk: affine(chunk, run, added.dtype), chunk)
    for ref, x in zip((added, *refs[5:]), results, strict=False):
        ref[...] = x.astype(ref.dtype)


def _scan_body(*refs: Any, steps: int, backward: bool, delta: bool) -> None:
    whole, added, first, *refs = refs
    taken = refs.pop(0) if delta else None
    before, last = refs

    def step(i, memory):
        at = steps - 1 - i if backward else i
        before[at] = memory
        new = memory * whole[at] + added[at]
        if delta:
            form = "tn" if backward else "nn"
            new -= value(lambda memory: product(taken[at], memory, form, taken.dtype), memory)
        return new

    last[...] = jax.lax.fori_loop(0, steps, step, first[...])


def _read_body(*refs: Any) -> None:
    *tokens, memory = refs[:5]
    *found, out = refs[5:]
    chunk, run = _chunk(tokens)
    given = [ref[...] for ref in found]
    _, y = value(lambda memory, chunk: one_chunk(memory, chunk, run, *given), memory[...], chunk)
    out[...] = y.astype(out.dtype)


def _entering_body(*refs: Any) -> None:
    *tokens, d_out = refs[:5]
    *found, out = refs[5:]
    chunk, run = _chunk(tokens)
    given = [ref[...] for ref in found]
    # What is read of a memory is linear in it: any memory has the same gradient.
    anything = jnp.zeros(out.shape, out.dtype)
    _, pull = jax.vjp(lambda memory, chunk: one_chunk(memory, chunk, run, *given)[1], anything, chunk)
    out[...] = pull(d_out[...].astype(out.dtype))[0]


def _pull_body(*refs: Any, delta: bool) -> None:
    *tokens, memory, d_out, d_after = refs[:7]
    found, (dq, dk, dv, d_rates) = refs[7:-4], refs[-4:]
    chunk, run = _chunk(tokens)
    given = [ref[...] for ref in found]
    before, wide = memory[...], d_after.dtype
    _, pull = jax.vjp(lambda chunk: one_chunk(before, chunk, run, *given), chunk)
    (d,) = pull((d_after[...], d_out[...].astype(wide)))
    dq[...], dk[...], dv[...] = d.q, d.k, d.v
    for i, row in enumerate([d.total, jnp.zeros_like(run)] + [d.beta] * delta):
        d_rates[pl.ds(i, 1), :] = row


def _by_chunk(body: Any, inputs: list, outputs: list, interpret: bool, name: str) -> list:
    """One program for each chunk of each row: inputs `[R, steps, ...]`, outputs their shapes and types."""
    rows, steps = inputs[0].shape[:2]

    def spec(x):
        return pl.BlockSpec((None, None, *x.shape[2:]), lambda row, at: (row, at, *[0] * (x.ndim - 2)))

    return pl.pallas_call(
        body,
        grid=(rows, steps),
        in_specs=[spec(x) for x in inputs],
        out_specs=[spec(jax.ShapeDtypeStruct(*x)) for x in outputs],
        out_shape=[jax.ShapeDtypeStruct(*x) for x in outputs],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name=f"linear_attention_{name}",
    )(*inputs)


def _prepare(rows: Rows, wide: jnp.dtype, interpret: bool) -> tuple[jax.Array, list]:
    """(added `[R, steps, H, P]`, with the delta rule [taken `[R, steps, H, H]`, inverse `[R, steps, C, C]`], or [])."""
    (count, steps, size, width), low = rows.k.shape, rows.k.dtype
    outputs = [((count, steps, width, rows.v.shape[-1]), wide)]
    if rows.rates.shape[2] == 3:
        outputs += [((count, steps, width, width), low), ((count, steps, size, size), wide)]
    added, *rest = _by_chunk(_prepare_body, list(rows), outputs, interpret, "prepare")
    return added, rest


def _scan(
    rows: Rows, added: jax.Array, taken: jax.Array | None, first: jax.Array, backward: bool, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """(the memory before every chunk `[R, steps, H, P]`, the one after the last), or backwards their gradients."""
    count, steps, width, depth = added.shape
    total, run = rows.rates[:, :, 0, -1], rows.rates[:, :, 1, -1]
    whole = jnp.where(run == 0, jnp.exp(total), 0)
    columns = min(SLICE, depth)
    every = pl.BlockSpec((None, steps, width, columns), lambda row, part: (row, 0, 0, part))
    one = pl.BlockSpec((None, width, columns), lambda row, part: (row, 0, part))
    specs, inputs = [pl.BlockSpec((None, steps), lambda row, part: (row, 0)), every, one], [whole, added, first]
    if taken is not None:
        specs.append(pl.BlockSpec((None, steps, width, width), lambda row, part: (row, 0, 0, 0)))
        inputs.append(taken)
    return pl.pallas_call(
        functools.partial(_scan_body, steps=steps, backward=backward, delta=taken is not None),
        grid=(count, depth // columns),
        in_specs=specs,
        out_specs=[every, one],
        out_shape=[jax.ShapeDtypeStruct(added.shape, added.dtype), jax.ShapeDtypeStruct(first.shape, first.dtype)],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="linear_attention_scan",
    )(*inputs)


def _rows(tokens: tuple, begins: jax.Array, cut: Cut, wide: jnp.dtype) -> Rows:
    """`rows_of` with heads padded."""
    rows = rows_of(tokens, begins, cut, wide)
    return Rows(*(_padded(x, 1) for x in rows[:3]), rows.rates)


def forward(
    tokens: tuple, begins: jax.Array, memory: jax.Array, *, cut: Cut, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """As `tpu.forward`."""
    rows, first = _rows(tokens, begins, cut, memory.dtype), _padded(heads_apart(memory), 2)
    added, rest = _prepare(rows, memory.dtype, interpret)
    before, last = _scan(rows, added, rest[0] if rest else None, first, False, interpret)
    shape = [(rows.v.shape, rows.v.dtype)]
    (out,) = _by_chunk(_read_body, [*rows, before, *rest[1:]], shape, interpret, "read")
    width, depth = memory.shape[2:]
    out = from_rows(out[..., :depth], memory.shape[1], cut.length)
    kept = None
    if cut.group:
        kept = kept_of(jnp.moveaxis(before[:, :: cut.group, :width, :depth], 1, 0), len(memory))
    return last[:, :width, :depth].reshape(memory.shape), out, kept


def backward(
    tokens: tuple, begins: jax.Array, kept: jax.Array, d_memory: jax.Array, d_out: jax.Array, *, cut: Cut,
    interpret: bool = False,
) -> tuple[jax.Array, tuple]:  # fmt: skip
    """As `tpu.backward`."""
    wide, (width, depth) = d_memory.dtype, d_memory.shape[2:]
    rows, d_last = _rows(tokens, begins, cut, wide), _padded(heads_apart(d_memory), 2)
    kept = _padded(jnp.moveaxis(kept.reshape(len(kept), -1, width, depth), 0, 1), 2)
    added, rest = _prepare(rows, wide, interpret)
    taken, found = (rest[0], rest[1:]) if rest else (None, [])
    before = kept if cut.group == 1 else _scan(rows, added, taken, kept[:, 0], False, interpret)[0]
    results = _padded(to_rows(d_out, cut), 1)
    (entering,) = _by_chunk(_entering_body, [*rows, results, *found], [(added.shape, wide)], interpret, "entering")
    after, d_first = _scan(rows, entering, taken, d_last, True, interpret)
    body = functools.partial(_pull_body, delta=taken is not None)
    inputs = [*rows, before, results, after, *found]
    dq, dk, dv, d_rates = _by_chunk(body, inputs, [(x.shape, x.dtype) for x in rows], interpret, "pull")
    gradient = Rows(dq[..., :width], dk[..., :width], dv[..., :depth], d_rates)
    return d_first[:, :width, :depth].reshape(d_memory.shape), gradients_of(tokens, begins, cut, gradient)
