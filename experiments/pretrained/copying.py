"""Copies of tensors into place: transposed, in another type, as fast as memory allows and with no copy in between."""

import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

ALIGN = 64  # Bytes: what jax's CPU device takes as it lies, instead of copying it.
TILE = 128  # Rows and columns of a part that is transposed within the caches.
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of pages of its own, so that its first byte lies at a multiple of `ALIGN`.

    numpy asks for huge pages, which the kernel may have to gather first: up to three times the CPU seconds of the copy.
    """
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8)
    return raw[:size].view(dtype).reshape(shape)


def copy(out: np.ndarray, x: np.ndarray) -> None:
    """Writes x into `out`, of the same shape; types are converted as numpy does, x may lie transposed."""
    if x.ndim > 2:  # A matrix at a time: those of experts lie transposed, too.
        for each, into in zip(x, out, strict=True):
            copy(into, each)
        return
    if x.dtype == out.dtype and out.dtype.itemsize in (2, 4, 8):  # As whole numbers: ml_dtypes copy one by one.
        kind = f"u{out.dtype.itemsize}"
        out, x, move = out.view(kind), x.view(kind), _assign
    elif x.dtype == _BFLOAT16 and out.dtype == np.float32:
        out, x, move = out.view("u4"), x.view("u2"), _widen
    else:
        move = _assign
    if x.ndim != 2 or x.strides[0] >= x.strides[1]:
        move(out, x)
        return
    for i in range(0, x.shape[0], TILE):
        for j in range(0, x.shape[1], TILE):
            move(out[i : i + TILE, j : j + TILE], x[i : i + TILE, j : j + TILE])


def _assign(out: np.ndarray, x: np.ndarray) -> None:
    out[...] = x


def _widen(out: np.ndarray, x: np.ndarray) -> None:
    """A bfloat16 is the upper half of a float32."""
    np.left_shift(x, np.uint32(16), out=out, dtype=np.uint32)


def on_all_cores(do: Callable[[int], None], count: int) -> None:
    """`do(0)` .. `do(count - 1)`, several at a time: copies of numpy let other threads run."""
    workers = min(count, os.cpu_count() or 1)
    if workers < 2:
        for row in range(count):
            do(row)
        return
    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(do, range(count)))
