"""Products of tokens with a matrix: one matrix of all tokens, so that the gradients are matrix products too."""

from collections.abc import Callable

import jax

from models.partition import Partition


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
