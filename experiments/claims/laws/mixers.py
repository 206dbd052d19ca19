"""Laws of mixers."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims.laws.law import Law
from kernels import linear_attention

T, H, CHUNKS = 40, 6, (8, 64)


def delta_rule_chunks() -> Law:
    """The gated delta rule in chunks is the recurrence S = e^g S + beta k (v - k^T e^g S), token by token, out = q^T S.

    Rows of 40 tokens in chunks of 8 and of more than the row, float64, with and without decay, against a plain loop.
    Keys have length one, so the memory cannot grow: no step enlarges an error. Error: over the largest output.
    Tolerance: 40 tokens of three products of 6 by 6 sums each, 4,320 roundings of 2^-53.

    Source: Yang et al. 2024, arXiv:2412.06464
    """
    rng, far, cases = np.random.default_rng(0), 0.0, 0
    q, k, v = rng.normal(size=(3, 1, T, 1, H))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    beta, decay = rng.uniform(0.1, 1, (1, T, 1)), -rng.uniform(0.01, 1, (1, T, 1))
    with jax.enable_x64(True):
        for kept in (decay, np.zeros_like(decay)):
            want = recurrence(*(array[0, :, 0] for array in (q, k, v, beta, kept)))
            for chunk in CHUNKS:
                arrays = (jnp.asarray(array) for array in (q, k, v, beta, kept))
                out, _ = linear_attention.gated_delta_rule(*arrays, chunk_size=chunk, implementation="chunked")
                far = max(far, float(np.abs(np.asarray(out)[0, :, 0] - want).max() / np.abs(want).max()))
                cases += 1
    return Law(far, T * 3 * H * H * 2.0**-53, cases)


def recurrence(q: np.ndarray, k: np.ndarray, v: np.ndarray, beta: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """The rule as a loop over tokens: q, k, v `[T, H]`, beta and the log of what is kept `[T]`; out `[T, H]`."""
    memory, out = np.zeros((k.shape[1], v.shape[1])), np.empty_like(v)
    for t in range(len(q)):
        memory = np.exp(decay[t]) * memory
        memory = memory + beta[t] * np.outer(k[t], v[t] - k[t] @ memory)
        out[t] = q[t] @ memory
    return out
