"""Linear attention and the gated delta rule, one token of one head after another, in numpy and float64."""

import numpy as np


def remembered(q, k, v, beta, decay, begins, memory, sign=-1.0):
    """(out `[B, T, N, P]`, memory `[B, N, H, P]`) of q, k `[B, T, N, H]`, v `[B, T, N, P]`, decay `[B, T, N]`.

    Args:
      beta: `[B, T, N]` or None (no delta rule).
      begins: `[B, T]` bool, where a document begins.
      memory: the memory before the first token.
      sign: of what a key's old value is worth. +1, with magnitudes for everything, gives the sum of the magnitudes of
        all products that the result with -1 is a sum of: what a relative error of each of them is measured by.
    """
    out, memory = np.zeros(v.shape), np.array(memory, np.float64)
    for b, t, n in np.ndindex(*q.shape[:3]):
        kept = 0 * memory[b, n] if begins[b, t] else np.exp(decay[b, t, n]) * memory[b, n]
        new = v[b, t, n]
        if beta is not None:
            new = beta[b, t, n] * (new + sign * k[b, t, n] @ kept)
        memory[b, n] = kept + np.outer(k[b, t, n], new)
        out[b, t, n] = q[b, t, n] @ memory[b, n]
    return out, memory
