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


def ring_bytes() -> Law:
    """A device of ring, all_gather or ulysses sends as many bytes of keys, values and heads as its formula says.

    Every piece is followed rank by rank. In a ring the keys and values of a rank go on until all have met them,
    backward their gradients, in the type of sums, once around until they are home; gathered, they go to every other
    rank at once, and their gradients come from each. With heads dealt out, a rank keeps what it has of its own heads
    and sends the rest: queries, keys and values there and the result home, backward the result's gradient there and
    three home. 2 to 8 devices, float32 and bfloat16. Error: in bytes.

    Source: Liu et al. 2023, arXiv:2310.01889; Jacobs et al. 2023, "DeepSpeed Ulysses", arXiv:2309.14509
    """
    far, cases = 0, 0
    for (shape, K), P, backward, dtype in itertools.product(
        SHAPES, (2, 4, 8), (True, False), (jnp.float32, jnp.bfloat16)
    ):
        B, T, N, H = shape
        b, a = jnp.dtype(dtype).itemsize, max(jnp.dtype(dtype).itemsize, 4)
        pair, keys, home = 2 * B * (T // P) * K * H, np.zeros(P, int), np.zeros(P, int)
        for first in range(P):
            for hop in range(P):
                keys[(first + hop) % P] += hop < P - 1
                home[(first + hop) % P] += 1
        gathered = [sum(pair * (b + a * backward) for other in range(P) if other != rank) for rank in range(P)]
        counted = {name: (pair * (keys * b + home * a * backward), 0) for name in ("ring", "zigzag", "striped")}
        counted |= {"all_gather": (0, gathered), "ulysses": (0, _dealt(shape, K, P) * b)}
        for schedule, (forth, across) in counted.items():
            if schedule == "ulysses" and N % P:
                continue  # which is refused
            found = sent(schedule, P, shape, (B, T, K, H), dtype=dtype, backward=backward)
            for own, formula in ((forth, found.forth), (0, found.back), (across, found.across)):
                far = max(far, int(np.abs(np.asarray(own) - formula).max()))
            cases += 1
    return Law(far, 0, cases)


def _dealt(shape: tuple[int, ...], K: int, P: int) -> np.ndarray:
    """Numbers that each of P ranks sends where heads are dealt out, there and home: `[P]`."""
    B, T, N, H = shape
    K = next(many for many in itertools.count(K, K) if many % P == 0)  # repeated until each rank has as many
    made = np.zeros(P, int)
    for source, _token in itertools.product(range(P), range(T // P)):
        for heads in (N, K, K):
            made[source] += B * H * sum(head * P // heads != source for head in range(heads))
        for owner in range(P):  # the result of this token, of each owner's heads
            made[owner] += B * H * (N // P) * (owner != source)
    return made


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
