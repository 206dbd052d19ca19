"""Which tiles a kernel computes, and in which order: tile classes become lists that the grids walk.

A tile table has one class for each (query block, key block): EMPTY tiles are never visited, FULL tiles skip the mask,
PARTIAL tiles evaluate it. For a static mask the lists are numpy arrays and their length is a number; for a
data-dependent one they are small int32 arrays computed on the device and the length is a traced scalar.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EMPTY, PARTIAL, FULL = 0, 1, 2

# One int32 holds a step: row and column in 13 bits each (4 million tokens in blocks of 512), its class, and whether it
# opens or closes its row.
_ROW_BITS = _COLUMN_BITS = 13
_ROW_SHIFT, _COLUMN_SHIFT, _CLASS_SHIFT = _COLUMN_BITS + 4, 4, 2
_FIRST, _LAST = 2, 1


class Walk(NamedTuple):
    """The steps of a walk over the tiles of a table, row by row.

    codes: int32 [B or 1, most steps], see `decode`.
    length: the number of steps in use, an int or (data-dependent) an int32 scalar: the longest walk of the batch.
    Shorter walks repeat their last tile as a step that does nothing.
    """

    codes: Any
    length: Any


class Runs(NamedTuple):
    """For each row of the table its runs of neighbouring tiles of one class: the FULL ones, then the PARTIAL ones.

    bounds: int32 [B or 1, rows, most runs, 2], first column and the one after the last.
    counts: int32 [B or 1, rows, 2], where the FULL runs end and where all runs end.
    A causal row is one FULL and one PARTIAL run.
    """

    bounds: Any
    counts: Any


class Spans(NamedTuple):
    """For each row of the table its runs of neighbouring tiles of one class, from left to right.

    bounds: int32 [B or 1, rows, most spans, 3], first column, the one after the last, and the class.
    counts: int32 [B or 1, rows, 2], how many spans and how many tiles.
    A causal row is one FULL and one PARTIAL span.
    """

    bounds: Any
    counts: Any


def classes(mask: Any, T: int, S: int, block_q: int, block_k: int) -> Any:
    """Tile classes int8 [B or 1, ceil(T / block_q), ceil(S / block_k)] of `mask`; numpy when the mask is static.

    Where S is no multiple of block_k the last column is never FULL, because its padding has to be masked. A mask that
    differs between heads is merged over them: EMPTY where it is for every head, FULL where it is for every head.
    """
    table = mask.tiles(T, S, block_q, block_k)
    xp = np if isinstance(table, np.ndarray) else jnp
    rows, columns = -(-T // block_q), -(-S // block_k)
    if table.ndim == 4:  # [B, N, rows, columns]
        lowest, highest = table.min(axis=1), table.max(axis=1)
        table = xp.where(lowest == highest, lowest, PARTIAL)
    table = table.reshape((-1, rows, columns))
    if max(rows, columns) > 1 << _ROW_BITS:
        raise NotImplementedError(
            f"T={T}, S={S} give a {rows} x {columns} tile table; up to {1 << _ROW_BITS} blocks a side are supported."
        )
    if S % block_k:
        last = xp.arange(columns) == columns - 1
        table = xp.where(last & (table == FULL), PARTIAL, table)
    return table.astype(np.int8)


def transpose(table: Any) -> Any:
    """The table of the columns: [B or 1, columns, rows], for kernels that walk key block by key block."""
    return table.swapaxes(1, 2)


def walk(table: Any) -> Walk:
    """The steps that visit every tile of `table` [B or 1, rows, columns] that is not EMPTY, row by row.

    A row with no such tile has one EMPTY step, because its output still has to be written.
    """
    xp = np if isinstance(table, np.ndarray) else jnp
    batch, rows, columns = table.shape
    table = table.astype(np.int32)
    row = xp.arange(rows, dtype=np.int32)[None, :, None]
    column = xp.arange(columns, dtype=np.int32)[None, None, :]
    wanted = (table > 0) | ((column == 0) & ~(table > 0).any(axis=2, keepdims=True))
    code = (row << _ROW_SHIFT) | (column << _COLUMN_SHIFT) | (table << _CLASS_SHIFT)
    code, wanted = code.reshape(batch, rows * columns), wanted.reshape(batch, rows * columns)
    lengths = wanted.sum(axis=1).astype(np.int32)
    if xp is np:
        packed = np.zeros((batch, int(lengths.max())), np.int32)
        packed[np.arange(packed.shape[1]) < lengths[:, None]] = code[wanted]
        code = packed
    else:
        code = _pack(code, wanted)
    step = xp.arange(code.shape[1], dtype=np.int32)[None]
    row = code >> _ROW_SHIFT
    edge = xp.ones((batch, 1), bool)
    first = xp.concatenate([edge, row[:, 1:] != row[:, :-1]], axis=1)
    last = xp.concatenate([row[:, 1:] != row[:, :-1], edge], axis=1) | (step == lengths[:, None] - 1)
    # Beyond the end the last tile is repeated with no class and no flags: nothing is loaded, computed or written.
    tail = xp.take_along_axis(code, lengths[:, None].astype(np.int32) - 1, axis=1) & ~(3 << _CLASS_SHIFT)
    code = xp.where(step < lengths[:, None], code | (first * _FIRST) | (last * _LAST), tail).astype(np.int32)
    return Walk(code, int(lengths.max()) if xp is np else lengths.max())


def _pack(codes: jax.Array, wanted: jax.Array) -> jax.Array:
    """Each row of `codes` [B, L] with its wanted entries in front, in order. (To sort them would compile for long.)"""
    size = codes.size
    number = jnp.arange(size, dtype=jnp.int32).reshape(codes.shape)
    place = jnp.cumsum(wanted.astype(jnp.int32), axis=1) - 1 + number[:, :1]
    # Places beyond the end are dropped; they differ, because the scatter is promised that all do.
    place = jnp.where(wanted, place, size + number)
    packed = jnp.zeros(size, jnp.int32).at[place.reshape(-1)].set(codes.reshape(-1), mode="drop", unique_indices=True)
    return packed.reshape(codes.shape)


def spans(table: Any) -> Spans:
    """The spans of each row of `table` [B or 1, rows, columns], for kernels in which the order of tiles matters."""
    xp = np if isinstance(table, np.ndarray) else jnp
    columns, (opens, closes) = table.shape[2], _edges(table)
    column = xp.arange(columns, dtype=np.int32)
    first, last = (xp.sort(xp.where(at, column, columns - 1), axis=2) for at in (opens, closes))
    counts = xp.stack([opens.sum(axis=2), (table != EMPTY).sum(axis=2)], axis=2).astype(np.int32)
    bounds = xp.stack([first, last + 1, xp.take_along_axis(table, first, axis=2)], axis=3).astype(np.int32)
    return Spans(bounds[:, :, : max(int(counts[:, :, 0].max()), 1)] if xp is np else bounds, counts)


def turns(table: Any) -> jax.Array:
    """int32, like `table`: how many tiles that are not EMPTY their row has before each that is not EMPTY itself."""
    # Computed on the device, from the spans: as a constant it would be four times as large as the table.
    bounds = jax.lax.optimization_barrier(jnp.asarray(spans((table != EMPTY).astype(np.int8)).bounds))
    first, end = bounds[:, :, None, :, 0], bounds[:, :, None, :, 1]
    column = jnp.arange(table.shape[2], dtype=jnp.int32)[:, None]
    return jnp.maximum(jnp.minimum(end, column) - first, 0).sum(axis=3, dtype=jnp.int32)


def _edges(table: Any) -> tuple[Any, Any]:
    """Where a run of tiles of one class opens and where it closes, each like `table`."""
    xp = np if isinstance(table, np.ndarray) else jnp
    edge = xp.full((*table.shape[:2], 1), EMPTY, table.dtype)
    opens = (table != EMPTY) & (table != xp.concatenate([edge, table[:, :, :-1]], axis=2))
    closes = (table != EMPTY) & (table != xp.concatenate([table[:, :, 1:], edge], axis=2))
    return opens, closes


def runs(table: Any) -> Runs:
    """The runs of each row of `table` [B or 1, rows, columns], in ascending order within each class."""
    xp = np if isinstance(table, np.ndarray) else jnp
    columns, (opens, closes) = table.shape[2], _edges(table)
    column = xp.arange(columns, dtype=np.int32)
    # The n-th opening of a class belongs to its n-th closing, so both are sorted by (class, column) on their own.
    order = xp.where(table == FULL, 0, columns).astype(np.int32) + column
    first, last = (xp.sort(xp.where(at, order, 2 * columns), axis=2) % columns for at in (opens, closes))
    counts = xp.stack([(opens & (table == FULL)).sum(axis=2), opens.sum(axis=2)], axis=2).astype(np.int32)
    bounds = xp.stack([first, last + 1], axis=3).astype(np.int32)
    return Runs(bounds[:, :, : max(int(counts.max()), 1)] if xp is np else bounds, counts)


def decode(code: Any) -> tuple[Any, Any]:
    """The (row, column) of a step's code."""
    return code >> _ROW_SHIFT, (code >> _COLUMN_SHIFT) & ((1 << _COLUMN_BITS) - 1)


def tile_class(code: Any) -> Any:
    """EMPTY, PARTIAL or FULL of a step's code."""
    return (code >> _CLASS_SHIFT) & 3


def is_first(code: Any) -> Any:
    """Whether the step opens its row: accumulators start here."""
    return (code & _FIRST) != 0


def is_last(code: Any) -> Any:
    """Whether the step closes its row: the result is written here."""
    return (code & _LAST) != 0


def count(mask: Any, T: int, S: int, block_q: int, block_k: int) -> int:
    """How many tiles a kernel computes for one head, summed over the batch of the table (concrete masks only)."""
    steps = walk(classes(mask, T, S, block_q, block_k))
    return int((tile_class(np.asarray(jax.device_get(steps.codes))) != EMPTY).sum())
