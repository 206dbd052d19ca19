"""Linear attention and the gated delta rule on a TPU: one kernel each way, the memory in VMEM from chunk to chunk.

forward    grid (rows, chunks): a program takes one chunk of a few heads, whose memories stay in scratch. Beside the
           inputs, HBM sees the results, the last memory and those that are kept.
again      grid (rows, kept memories, chunks after each): the memory before every chunk, where not all were kept.
backward   grid (rows, chunks from the last to the first), with the gradient of the memory in scratch. A chunk is
           computed again from the memory before it and pulled back by `jax.vjp` inside the kernel.

The heads of a program do not depend on each other: their chains of products fill each other's gaps.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.linear_attention.rows import Cut, Rows, from_rows, gradients_of, heads_apart, kept_of, rows_of, to_rows
from kernels.linear_attention.tile import Chunk, one_chunk

TOGETHER = 4  # heads of a program
VMEM_LIMIT = 56 * 2**20  # bytes; v5p and tpu7x have 64 MiB, v5e and v6e 128 MiB
WIDEST, LONGEST = 256, 256  # numbers of a head; tokens of a chunk


def too_large(size: int, width: int, depth: int) -> str | None:
    """Why chunks of `size` tokens, keys of `width` and values of `depth` are not taken, or None."""
    if max(width, depth) > WIDEST:
        return f"its heads are {max(width, depth)} wide; up to {WIDEST} are taken"
    if size > LONGEST or size % 8:
        return f"chunk_size={size} is no multiple of 8 up to {LONGEST}, such as 64"
    return None


def _chunk(tokens: Any, head: int) -> tuple[Chunk, jax.Array]:
    """(the chunk of one head of the program, how many documents have begun)."""
    q, k, v, rates = tokens
    beta = rates[head, 2:3] if rates.shape[1] == 3 else None
    return Chunk(q[head], k[head], v[head], rates[head, 0:1], beta), rates[head, 1:2]


def _forward_body(*refs: Any, group: int) -> None:
    *tokens, first, out, last = refs[:7]
    *kept, memory = refs[7:]
    at = pl.program_id(1)

    @pl.when(at == 0)
    def _():
        memory[...] = first[...]

    if group:

        @pl.when(jax.lax.rem(at, jnp.int32(group)) == 0)
        def _():
            kept[0][...] = memory[...]

    for head in range(memory.shape[0]):
        chunk, run = _chunk(tokens, head)
        memory[head], y = one_chunk(memory[head], chunk, run)
        out[head] = y.astype(out.dtype)

    @pl.when(at == pl.num_programs(1) - 1)
    def _():
        last[...] = memory[...]


def _again_body(*refs: Any, steps: int) -> None:
    *tokens, first, before, memory = refs
    at = pl.program_id(1) * pl.num_programs(2) + pl.program_id(2)

    @pl.when(pl.program_id(2) == 0)
    def _():
        memory[...] = first[...]

    @pl.when(at < steps)
    def _():
        before[...] = memory[...]
        for head in range(memory.shape[0]):
            chunk, run = _chunk(tokens, head)
            memory[head] = one_chunk(memory[head], chunk, run)[0]


def _backward_body(*refs: Any) -> None:
    *tokens, before, d_out, d_last = refs[:7]
    dq, dk, dv, d_rates, d_first, d_memory = refs[7:]
    back = pl.program_id(1)

    @pl.when(back == 0)
    def _():
        d_memory[...] = d_last[...]

    for head in range(d_memory.shape[0]):
        chunk, run = _chunk(tokens, head)
        _, pull = jax.vjp(lambda memory, chunk, run=run: one_chunk(memory, chunk, run), before[head], chunk)
        d_memory[head], d = pull((d_memory[head], d_out[head].astype(d_memory.dtype)))
        for ref, x in ((dq, d.q), (dk, d.k), (dv, d.v)):
            ref[head] = x
        d_rates[head, 0:1] = d.total
        d_rates[head, 1:2] = jnp.zeros_like(run)
        if chunk.beta is not None:
            d_rates[head, 2:3] = d.beta

    @pl.when(back == pl.num_programs(1) - 1)
    def _():
        d_first[...] = d_memory[...]


def _call(body: Any, grid: tuple, inputs: list, outputs: list, scratch: tuple, interpret: bool, name: str) -> list:
    """`pallas_call` from (array, block, index map) inputs and (shape and type, block, index map) outputs."""
    return pl.pallas_call(
        body,
        grid=grid,
        in_specs=[pl.BlockSpec(block, index) for _, block, index in inputs],
        out_specs=[pl.BlockSpec(block, index) for _, block, index in outputs],
        out_shape=[shape for shape, _, _ in outputs],
        scratch_shapes=[scratch],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) + ("arbitrary",) * (len(grid) - 1), vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=pltpu.InterpretParams() if interpret else False,
        name=name,
    )(*(array for array, *_ in inputs))


def _together(rows: Rows) -> int:
    """Heads of a program."""
    return next(n for n in (TOGETHER, 2, 1) if rows.q.shape[0] % n == 0)


def _by_chunk(x: Any, heads: int, index: Any) -> tuple:
    """(x `[R, steps, ...]`, a chunk of some heads, its place by (row, *places) -> chunk)."""
    zeros = (0,) * (x.ndim - 2)
    return x, (heads, None, *x.shape[2:]), lambda row, *at: (row, index(*at), *zeros)


def _like(x: Any, dtype: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype)


def forward(
    tokens: tuple, begins: jax.Array, memory: jax.Array, *, cut: Cut, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(last memory, out `[B, T, N, P]`, the memory before every `cut.group`-th chunk `[kept, B, N, H, P]` or None)."""
    rows, first = rows_of(tokens, begins, cut, memory.dtype), heads_apart(memory)
    heads, sides = _together(rows), first.shape[1:]
    whole = (heads, *sides), lambda row, at: (row, 0, 0)
    inputs = [_by_chunk(x, heads, lambda at: at) for x in rows] + [(first, *whole)]
    outputs = [_by_chunk(_like(rows.v), heads, lambda at: at), (_like(first), *whole)]
    if cut.group:
        shape = jax.ShapeDtypeStruct((cut.kept, *first.shape), first.dtype)
        outputs.append(
            (shape, (None, heads, *sides), lambda row, at: (jax.lax.div(at, jnp.int32(cut.group)), row, 0, 0))
        )
    grid, scratch = (rows.q.shape[0] // heads, cut.steps), pltpu.VMEM((heads, *sides), first.dtype)
    body = functools.partial(_forward_body, group=cut.group)
    out, last, *kept = _call(body, grid, inputs, outputs, scratch, interpret, "linear_attention")
    out = from_rows(out, memory.shape[1], cut.length)
    return last.reshape(memory.shape), out, kept_of(kept[0], len(memory)) if kept else None


def _memories(rows: Rows, kept: jax.Array, cut: Cut, interpret: bool) -> jax.Array:
    """The memory before every chunk, `[steps, R, H, P]`, from those that were kept."""
    if cut.group == 1:
        return kept
    heads, sides = _together(rows), kept.shape[2:]

    def place(group, inner):  # behind the last chunk the last one stays where it is
        return jnp.minimum(group * cut.group + inner, cut.steps - 1)

    block = (None, heads, *sides)
    inputs = [_by_chunk(x, heads, place) for x in rows]
    inputs.append((kept, block, lambda row, group, inner: (group, row, 0, 0)))
    shape = jax.ShapeDtypeStruct((cut.steps, *kept.shape[1:]), kept.dtype)
    outputs = [(shape, block, lambda row, group, inner: (place(group, inner), row, 0, 0))]
    grid, scratch = (rows.q.shape[0] // heads, cut.kept, cut.group), pltpu.VMEM((heads, *sides), kept.dtype)
    body = functools.partial(_again_body, steps=cut.steps)
    return _call(body, grid, inputs, outputs, scratch, interpret, "linear_attention_again")[0]


def backward(
    tokens: tuple, begins: jax.Array, kept: jax.Array, d_memory: jax.Array, d_out: jax.Array, *, cut: Cut,
    interpret: bool = False,
) -> tuple[jax.Array, tuple]:  # fmt: skip
    """(gradient of the first memory, gradients of `tokens`); kept: what `forward` returned."""
    rows, wide = rows_of(tokens, begins, cut, d_memory.dtype), d_memory.dtype
    d_last, kept = heads_apart(d_memory), kept.reshape(len(kept), -1, *kept.shape[3:])
    heads, sides = _together(rows), d_last.shape[1:]
    before = _memories(rows, kept, cut, interpret)
    arrays = [*rows, to_rows(d_out, cut)]

    def back(at):
        return cut.steps - 1 - at

    whole = (heads, *sides), lambda row, at: (row, 0, 0)
    *inputs, results = (_by_chunk(x, heads, back) for x in arrays)
    inputs += [(before, (None, heads, *sides), lambda row, at: (back(at), row, 0, 0)), results, (d_last, *whole)]
    outputs = [_by_chunk(_like(x), heads, back) for x in rows] + [(_like(d_last), *whole)]
    grid, scratch = (rows.q.shape[0] // heads, cut.steps), pltpu.VMEM((heads, *sides), wide)
    *gradients, d_first = _call(_backward_body, grid, inputs, outputs, scratch, interpret, "linear_attention_backward")
    return d_first.reshape(d_memory.shape), gradients_of(tokens, begins, cut, Rows(*gradients))
