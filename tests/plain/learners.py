"""Mixers that accumulate or learn along the row: one token after another, as their authors write them."""

import math

import numpy as np

from tests.plain.layers import (
    gelu_tanh,
    gelu_tanh_slope,
    layernorm,
    linear,
    rmsnorm,
    rope,
    sigmoid,
    silu,
    softmax,
    softplus,
)


def heads(p, name, x, N):
    return linear(p[name], x).reshape(len(x), N, -1)


def convolved(p, name, x, N):
    """`heads`, then each channel's own weights over a token and those before it, the last weight the token's own."""
    y = linear(p[name], x)
    if "conv" in p:
        kernel = p["conv"][name]
        W, came, y = len(kernel), y, np.zeros_like(y)
        for t in range(len(x)):
            for s in range(max(0, t - W + 1), t + 1):
                y[t] += kernel[W - 1 - (t - s)] * came[s]
    return y.reshape(len(x), N, -1)


def gate(p, x):
    """A few numbers a token: x W + b."""
    return x @ p["map"]["kernel"] + p["bias"]


def unit(x):
    return x / (np.sqrt((x**2).sum(-1, keepdims=True)) + 1e-5)


def linear_attention(p, x, *, N, eps=1e-6, prefix=0):
    """Katharopoulos et al. 2020 with elu + 1; the gate of GLA (Yang et al. 2024): decay = sigmoid(gate)^(1/16).

    The division by q_t sum_j k_j is left to the norm over the head. prefix: M of JRT-RNN (Arora et al. 2024), whose
    first M tokens write to a second memory, with keys and values of their own, before any token reads.
    """
    q, k, v = (convolved(p, name, x, N) for name in "qkv")
    first = [linear(p["prefix"][name], x[:prefix]).reshape(-1, *q.shape[1:]) for name in "kv"] if prefix else []
    phi = lambda y: np.where(y > 0, y + 1, np.exp(np.minimum(y, 0)))  # noqa: E731
    keep = sigmoid(gate(p["decay"], x)) ** (1 / 16) if "decay" in p else np.ones((len(x), N))
    out = np.zeros_like(v)
    for n in range(N):
        S = np.zeros((q.shape[-1], v.shape[-1]))
        P = sum((np.outer(phi(a[n]), b[n]) for a, b in zip(*first, strict=True)), 0 * S) if prefix else 0 * S
        for t in range(len(x)):
            S = keep[t, n] * S + np.outer(phi(k[t, n]), v[t, n])
            out[t, n] = rmsnorm(phi(q[t, n]) @ (S + P), eps, p["norm"]["scale"])
    return linear(p["out"], out.reshape(len(x), -1))


def gated_delta(p, x, *, N, eps=1e-6):
    """Yang, Kautz & Hatamizadeh 2024: S_t = alpha_t S_{t-1} (I - beta_t k k^T) + beta_t v k^T, here transposed.

    alpha = exp(-A softplus(a x + b)), beta = sigmoid; q, k: SiLU, length 1, q over sqrt(H); the output norm of each
    head is multiplied by silu(gate) AFTER it.
    """
    q, k, v = (silu(convolved(p, name, x, N)) for name in "qkv")
    H = q.shape[-1]
    q, k = unit(q) / math.sqrt(H), unit(k)
    beta, alpha = sigmoid(gate(p["beta"], x)), np.exp(-np.exp(p["log_a"]) * softplus(gate(p["decay"], x)))
    out = np.zeros_like(v)
    for n in range(N):
        S = np.zeros((H, H))
        for t in range(len(x)):
            erase = np.eye(H) - beta[t, n] * np.outer(k[t, n], k[t, n])
            S = alpha[t, n] * erase @ S + beta[t, n] * np.outer(k[t, n], v[t, n])
            out[t, n] = rmsnorm(q[t, n] @ S, eps, p["norm"]["scale"])
    opened = out.reshape(len(x), -1) * silu(linear(p["gate"], x))
    return linear(p["out"], opened)


def ttt(p, x, *, N, mini_batch, base_rate, theta=1e4):
    """TTT-Linear, or with two maps TTT-MLP (Sun et al. 2024), in the primal form: every token's own weights.

    eta_ij = max(0, 1/(i+1) + position_i) base sigmoid(gate_j) / H, j <= i, gradients at the start of the mini-batch.
    """
    T, eps = len(x), 1e-6
    q, k, v = (heads(p, name, x, N) for name in "qkv")
    H = q.shape[-1]
    places = [t % mini_batch for t in range(T)]
    q, k = rope(q, places, theta), rope(k, places, theta)
    step = base_rate * sigmoid(gate(p["rate"], x)) / H
    deep, out = "w1" in p, np.zeros((T, N, H))
    for n in range(N):
        W = [[np.array(p[f"w{i}"][n]), np.array(p[f"b{i}"][n])] for i in range(1 + deep)]
        gamma, shift = p["scale"][n], p["shift"][n]
        for start in range(0, T, mini_batch):
            moved, found = W, []
            for i in range(min(mini_batch, T - start)):
                t = start + i
                # The gradient of 1/2 ||LN(z) - (v - k)||^2 at the FIRST weights, by the Jacobian of LN.
                z = k[t, n] @ W[0][0] + W[0][1]
                read = gelu_tanh(z) if deep else k[t, n]
                last = read @ W[1][0] + W[1][1] if deep else z
                std = math.sqrt(last.var() + eps)
                hat = (last - last.mean()) / std
                J = gamma[:, None] * (np.eye(H) - 1 / H - np.outer(hat, hat) / H) / std
                G = J.T @ (gamma * hat + shift - (v[t, n] - k[t, n]))
                steps = [(read, G)]
                if deep:
                    steps.insert(0, (k[t, n], (W[1][0] @ G) * gelu_tanh_slope(z)))
                found.append(steps)
                share = max(0.0, 1 / (i + 1) + p["position"][i])
                moved = [
                    [
                        w - share * sum(step[start + j, n] * np.outer(*found[j][m]) for j in range(i + 1)),
                        b - share * sum(step[start + j, n] * found[j][m][1] for j in range(i + 1)),
                    ]
                    for m, (w, b) in enumerate(W)
                ]
                y = q[t, n] @ moved[0][0] + moved[0][1]
                y = gelu_tanh(y) @ moved[1][0] + moved[1][1] if deep else y
                out[t, n] = q[t, n] + layernorm(y, eps, gamma, shift)
            W = moved
    y = layernorm(out.reshape(T, -1), 1e-6, p["norm"]["scale"], p["norm"]["bias"])
    if "gate" in p:
        y = y * gelu_tanh(linear(p["gate"], x))
    return linear(p["out"], y)


NS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def newton_schulz(D, triples, eps=1e-7):
    """X <- a X + (b A + c A A) X, A = X X^T, from D / (||D||_F + eps), on the short side."""
    X = D.T if D.shape[0] > D.shape[1] else D
    X = X / (np.sqrt((X**2).sum()) + eps)
    for a, b, c in triples:
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X.T if D.shape[0] > D.shape[1] else X


def lact(p, x, *, N, H, o, eps=1e-5):
    """The released language-model layer of LaCT; o: its options by name. Apply, then update; the last chunk never."""
    T, M = len(x), o["heads"]
    q, k, v = (linear(p[name], x) for name in "qkv")
    if "q_norm" in p:
        q, k = rmsnorm(q, eps, p["q_norm"]["scale"]), rmsnorm(k, eps, p["k_norm"]["scale"])
    near = _window(*(y.reshape(T, N, H) for y in (q, k, v)), o)
    fq, fk = (unit(silu(y * p["scale"][i] + p["offset"][i]).reshape(T, M, -1)) for i, y in enumerate((q, k)))
    fv = (silu(v) if o["value_silu"] else v).reshape(T, M, -1)
    if o["rope_fast"]:
        fq, fk = (rope(y.reshape(T, N, H), range(T), o["rope_theta"]).reshape(y.shape) for y in (fq, fk))
    rate = softplus(gate(p["rate"], x) + math.log(math.exp(o["base_rate"]) - 1)).reshape(T, M, 3)
    push = sigmoid(gate(p["momentum"], x)) if "momentum" in p else np.zeros((T, M))
    far = np.zeros((T, M, N * H // M))
    for m in range(M):
        far[:, m] = _learn(p, m, fq[:, m], fk[:, m], fv[:, m], rate[:, m], push[:, m], o)
    far = rmsnorm(far, eps, p["fast_norm"]["scale"])
    if "output_scale" in p:
        far = far * silu(gate(p["output_scale"], x))[..., None]
    return linear(p["out"], near + far.reshape(T, -1))


def _learn(p, m, q, k, v, rate, push, o):
    """One fast head: what its network f_W(x) = W1 [silu(W0 x) * (W2 x)] reads while it learns <f_W(k), v>."""
    F, d = p["w1"].shape[2], p["w1"].shape[1]
    low_rank = "left0" in p
    start = lambda i: p[f"left{i}"][m] @ p[f"right{i}"][m] + 0.5 * np.eye(F, d) if low_rank else p[f"w{i}"][m]  # noqa: E731
    M = [start(0), np.array(p["w1"][m]), start(2)]
    lengths = [np.sqrt((w**2).sum(1, keepdims=True)) for w in M]
    resized = lambda ws: [n * w / (np.sqrt((w**2).sum(1, keepdims=True)) + 1e-5) for w, n in zip(ws, lengths)]  # noqa: B905, E731
    W, before, out = M, [np.zeros_like(w) for w in M], np.zeros_like(q)
    for first in range(0, len(q), o["chunk_size"]):
        chunk = range(first, min(first + o["chunk_size"], len(q)))
        W0, W1, W2 = W
        for t in chunk:
            out[t] = W1 @ (silu(W0 @ q[t]) * (W2 @ q[t]))
        D = [np.zeros_like(w) for w in M]
        for t in chunk:
            g, u, back = W0 @ k[t], W2 @ k[t], W1.T @ v[t]
            s = sigmoid(g)
            D[0] += rate[t, 0] * np.outer(back * u * s * (1 + g * (1 - s)), k[t])
            D[1] += rate[t, 1] * np.outer(v[t], silu(g) * u)
            D[2] += rate[t, 2] * np.outer(back * silu(g), k[t])
        D = [d + push[list(chunk)].mean() * b for d, b in zip(D, before, strict=True)]
        before = D
        if o["newton_schulz_steps"]:
            D = [newton_schulz(d, NS[: o["newton_schulz_steps"]]) for d in D]
        M = [w + d for w, d in zip(M, D, strict=True)]
        M = resized(M) if o["normalize"] == "post" else M
        W = resized(M) if o["normalize"] == "pre" else M
    return out


def _window(q, k, v, o):
    """Softmax attention to a token and the `window` - 1 before it, [T, N H] from q, k, v [T, N, H]."""
    T, N, H = q.shape
    q, k = (rope(y, range(T), o["rope_theta"]) for y in (q, k))
    out = np.zeros_like(q)
    for i in range(T):
        first = max(0, i - o["window"] + 1)
        for n in range(N):
            out[i, n] = softmax(k[first : i + 1, n] @ q[i, n] / math.sqrt(H)) @ v[first : i + 1, n]
    return out.reshape(T, N * H)
