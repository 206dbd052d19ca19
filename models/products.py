"""Products of tokens with a matrix: one matrix of all tokens, so that the gradients are matrix products too."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from models.partition import Partition

SINGLY = 3  # Up to so many rows a product of each is cheaper on a CPU than one of all, which lays the matrix out anew.
COLUMNS, TILE = 8, 4  # Up to so many vectors are columns of a product on a CPU, in tiles of so many.


def by_rows(
    multiply: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    partition: Partition = Partition(),  # noqa: B008 (immutable)
) -> jax.Array:
    """`multiply`, a product of matrices, of x `[B, T, D]` as one matrix `[B*T, D]`; `[B, T, E]` again.

    The gradient of a kernel in a product of `[B, T, D]` contracts two axes. XLA's CPU compiler answers that with
    transposed copies of both sides and a product at less than half the rate of a matrix product (docs/LEDGER.md).
    Where devices share a sequence, batch and sequence stay two axes: the joined axis would not be cut into equal parts,
    and tokens would have to move between devices.

    Args:
      multiply: `[rows, D] -> [rows, E]`, each row by itself.
      x: `[..., D]`; with three axes they are `[B, T, D]`.
      partition: how `batch` and `sequence` are cut; nothing is cut inside `Partition.run`.

    Returns:
      `[..., E]`.
    """
    if x.ndim <= 2 or partition.ways("sequence") > 1 or partition.ways("stream") > 1:
        return multiply(x)
    y = multiply(x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], y.shape[-1])


def times(x: jax.Array, kernel: jax.Array, partition: Partition = Partition()) -> jax.Array:  # noqa: B008 (immutable)
    """x `[..., D]` times kernel `[D, E]`; on a CPU 2 to `SINGLY` rows `[R, D]` are multiplied one by one.

    A row alone is multiplied where the kernel lies. For more of them XLA's CPU compiler first lays the kernel out in
    tiles, which takes as long as two more rows (docs/LEDGER.md): decoding of few rows or drafts.
    """
    if x.ndim != 2 or not partition.trivial or not 1 < x.shape[0] <= SINGLY:
        return x @ kernel

    def singly(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.concatenate([x[i : i + 1] @ kernel for i in range(x.shape[0])])

    return jax.lax.platform_dependent(x, kernel, cpu=singly, default=jnp.matmul)


def against(x: jax.Array, vectors: jax.Array, partition: Partition = Partition()) -> jax.Array:  # noqa: B008
    """Products of x `[..., D]` with each of `vectors [V, D]`, in float32: `[..., V]`.

    On a CPU 2 to `COLUMNS` rows `[R, D]` are the columns of a product whose rows are `vectors`, which are then read
    where they lie; XLA lays out anew what stands at the right.
    """
    multiply = functools.partial(jnp.einsum, "...d,vd->...v", preferred_element_type=jnp.float32)
    if x.ndim != 2 or not partition.trivial or not 1 < x.shape[0] <= COLUMNS:
        return multiply(x, vectors)
    R = x.shape[0]

    def turned(x: jax.Array, vectors: jax.Array) -> jax.Array:
        tiles = jnp.pad(x, ((0, -R % TILE), (0, 0)))
        columns = jnp.einsum("vd,rd->vr", vectors, tiles, preferred_element_type=jnp.float32)
        # Without the barrier XLA takes the transpose for the same product with its sides exchanged.
        return jax.lax.optimization_barrier(columns)[:, :R].T

    return jax.lax.platform_dependent(x, vectors, cpu=turned, default=multiply)
