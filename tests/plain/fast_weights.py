"""LaCT's fast-weight network, one token of one head after another, in numpy and float64."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def applied(x, w0, w1, w2):
    """f_W of x `[B, T, N, H]` with w0, w2 `[B, N, F, H]`, w1 `[B, N, H, F]`."""
    out = np.zeros(x.shape)
    for b, t, n in np.ndindex(*x.shape[:3]):
        gate, up = w0[b, n] @ x[b, t, n], w2[b, n] @ x[b, t, n]
        out[b, t, n] = w1[b, n] @ (gate * sigmoid(gate) * up)
    return out


def learned(k, v, lr, w0, w1, w2):
    """Minus the gradient of -sum_i lr_i <f_W(k_i), v_i> for each matrix, the rate of each matrix its own."""
    sums = [np.zeros(w.shape) for w in (w0, w1, w2)]
    for b, t, n in np.ndindex(*k.shape[:3]):
        key, value, rate = k[b, t, n], v[b, t, n], lr[b, t, n]
        gate, up, back = w0[b, n] @ key, w2[b, n] @ key, w1[b, n].T @ value
        s = sigmoid(gate)
        sums[0][b, n] += rate[0] * np.outer(back * up * (s + gate * s * (1 - s)), key)
        sums[1][b, n] += rate[1] * np.outer(value, gate * s * up)
        sums[2][b, n] += rate[2] * np.outer(back * gate * s, key)
    return sums
