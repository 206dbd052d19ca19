"""Laws of schedules over devices."""

import itertools

import jax.numpy as jnp
import numpy as np

from experiments.claims.laws.law import Law
from kernels.context_attention import sent

SHAPES = (((2, 48, 6, 8), 6), ((1, 96, 8, 4), 2))  # q [B, T, N, H], K


def token_ring_bytes() -> Law:
    """A device of token_ring sends queries on and results home, as many bytes as its formula says.

    The walk of every device's queries is followed rank by rank: on to the next rank until all keys that they see were
    met, and from each rank but their own the result, of queries' size, and one number per query and head go home
    (backward: queries and their gradient, two such numbers, and home the gradient in the type of sums). Full and causal
    masks, 2 to 8 devices, float32 and bfloat16. Error: in bytes.

    Source: Wang et al. 2024, "TokenRing", arXiv:2412.20501
    """
    far, cases = 0, 0
    for (shape, K), P, causal, backward, dtype in itertools.product(
        SHAPES, (2, 3, 4, 6, 8), (True, False), (True, False), (jnp.float32, jnp.bfloat16)
    ):
        B, T, N, H = shape
        rows, b, a = B * T // P * N, jnp.dtype(dtype).itemsize, max(jnp.dtype(dtype).itemsize, 4)
        onward = 2 * rows * H * b + 2 * rows * a if backward else rows * H * b
        homeward = rows * H * a if backward else rows * H * b + rows * a
        forth, back = walk(P, causal)
        found = sent("token_ring", P, shape, (B, T, K, H), dtype=dtype, causal=causal, backward=backward)
        for counted, formula in ((forth * onward, found.forth), (back * homeward, found.back), (0, found.across)):
            far = max(far, int(np.abs(counted - formula).max()))
        cases += 1
    return Law(far, 0, cases)


def walk(P: int, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """How often each of P ranks sends queries to the next rank, and results to the rank that they belong to: `[P]`."""
    forth, back = np.zeros(P, int), np.zeros(P, int)
    for home in range(P):
        wanted = set(range(home) if causal else range(P)) - {home}
        at = home
        while wanted:
            forth[at] += 1
            at = (at + 1) % P
            if at in wanted:
                wanted.remove(at)
                back[at] += 1
    return forth, back
