"""Gumbel noise on scores, made where it is needed: a hash of the seed, the query head and the two positions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.attention.noise import gumbel


class Noise(NamedTuple):
    """(score + g) / tau, g = `gumbel(seed, head, S - T + query, key)`, queries and keys counted from 0.

    Both are static. Source: Adnan et al. 2024 (Keyformer, arXiv:2403.09054).
    """

    seed: int
    tau: float = 1.0


def noisy(
    noise: Noise | None, score: jax.Array, head: jax.Array, query: jax.Array, key: jax.Array, unit: float = 1.0
) -> jax.Array:
    """Scores with their noise; the same without.

    Args:
      noise: None: no noise.
      score: in units of log(e) * `unit`, of any shape.
      head, query, key: integers that broadcast to it; `query` is the position, S - T and up.
      unit: 1, or log2(e) where scores are of base 2.
    """
    if noise is None:
        return score
    g = gumbel(noise.seed, head, query, key, dtype=score.dtype)
    return (score + g * jnp.asarray(unit, score.dtype)) * jnp.asarray(1 / noise.tau, score.dtype)
