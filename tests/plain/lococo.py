"""LoCoCo, written out: lists of keys and values that are really merged, one head at a time, in float64."""

import math

import numpy as np

from tests.plain import backbone, layers


def mixing(x, kernel, bias, score, gate):
    """W [C, n]: (1 - g) of the C best scored rows, in their order, and g softmax(relu(conv(x))) over the rows."""
    C, _, w = kernel.shape
    n = len(x)
    best = sorted(sorted(range(n), key=lambda j: (-score[j], -j))[:C])
    W = np.zeros((C, n))
    for c in range(C):
        raw = np.zeros(n)
        for j in range(n):
            total = bias[c]
            for i in range(w):
                at = j + i - w // 2
                if 0 <= at < n:
                    total += kernel[c, :, i] @ x[at]
            raw[j] = max(total, 0)
        W[c] = gate * layers.softmax(raw)
        W[c, best[c]] += 1 - gate
    return W


def merged(keys, values, score, kernel, bias, gate, slots, local):
    """Lists of `slots` keys and values, where there are more than so many."""
    n, C = len(keys), len(kernel)
    if n <= slots:
        return keys, values
    near = list(range(n - local, n)) if local else []
    others = sorted((j for j in range(n) if j not in near), key=lambda j: (-score[j], -j))
    kept = sorted(others[: slots - C - local] + near)
    rest = [j for j in range(n) if j not in kept]
    x = np.array([np.concatenate([keys[j], values[j]]) for j in rest])
    W = mixing(x, kernel, bias, [score[j] for j in rest], gate)
    mix = lambda rows: [sum(W[c, i] * rows[j] for i, j in enumerate(rest)) for c in range(C)]  # noqa: E731
    return [keys[j] for j in kept] + mix(keys), [values[j] for j in kept] + mix(values)


def attended(q, k, v, kernel, bias, gate, *, slots, chunk, local):
    """Outputs [T, N, H] of one document; q [T, N, H], k and v [T, K, H], q and k rotated."""
    (T, N, H), K = q.shape, k.shape[1]
    out, G = np.zeros((T, N, H)), N // k.shape[1]
    for h in range(K):
        keys, values = [], []
        score = []
        for t in range(T):
            if t and t % chunk == 0:
                keys, values = merged(keys, values, score, kernel, bias, gate, slots, local)
                score = [0.0] * len(keys)
            keys, values, score = [*keys, k[t, h]], [*values, v[t, h]], [*score, 0.0]
            for n in range(h * G, h * G + G):
                p = layers.softmax(np.array([q[t, n] @ key for key in keys]) / math.sqrt(H))
                out[t, n] = sum(weight * value for weight, value in zip(p, values, strict=True))
                score = [s + weight for s, weight in zip(score, p, strict=True)]
    return out


def mixer(p, x, *, N, K, H, slots, chunk, local):
    """The layer for one document x [T, D]."""
    T = len(x)
    q, k, v = (layers.linear(p[name], x).reshape(T, -1, H) for name in "qkv")
    q, k = (backbone.rope(y, range(T), lambda i, R: 1e4 ** (-2 * i / R)) for y in (q, k))
    out = attended(q, k, v, p["kernel"], p["bias"], p["gate"][0], slots=slots, chunk=chunk, local=local)
    return layers.linear(p["out"], out.reshape(T, N * H))
