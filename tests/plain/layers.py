"""Channels, norms, softmax attention, and the whole model around any mixer."""

import math

import numpy as np

erf = np.vectorize(math.erf)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def gelu_exact(x):
    """x Phi(x) (Hendrycks & Gimpel 2016)."""
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_tanh_slope(x):
    inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    inside = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return 0.5 * (1 + inner) + 0.5 * x * (1 - inner**2) * inside


ACTIVATIONS = {
    "gelu": gelu_tanh,
    "gelu_exact": gelu_exact,
    "relu": lambda x: np.where(x > 0, x, 0),
    "relu2": lambda x: np.where(x > 0, x, 0) ** 2,
    "silu": silu,
}


def softmax(scores):
    e = np.exp(scores - scores.max())
    return e / e.sum()


def log_softmax(logits):
    """Over the last axis."""
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def rmsnorm(x, eps, scale=1.0):
    """x / sqrt(mean(x^2) + eps) (Zhang & Sennrich 2019)."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def layernorm(x, eps, scale=1.0, bias=0.0):
    """Biased variance (Ba et al. 2016)."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale + bias


def norm(p, x, kind, eps):
    """A norm of the house by its parameters, which may be none."""
    scale, bias = p.get("scale", 1.0), p.get("bias", 0.0)
    return layernorm(x, eps, scale, bias) if kind == "layernorm" else rmsnorm(x, eps, scale) + bias


def rope(x, positions, theta, fraction=1.0):
    """Each pair (i, i + R/2) of x [T, N, H] turned by position * theta^(-2i/R) (Su et al. 2021; rotate-half)."""
    x, out = np.asarray(x), np.array(x)
    R = int(x.shape[-1] * fraction) // 2 * 2
    for t, position in enumerate(positions):
        for i in range(R // 2):
            angle = position * theta ** (-2 * i / R)
            a, b = x[t, :, i], x[t, :, i + R // 2]
            out[t, :, i] = a * math.cos(angle) - b * math.sin(angle)
            out[t, :, i + R // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def linear(p, x):
    """A projection of the house: dense (`kernel`, maybe `bias`) or Pattention (`keys`, `values`, `tau`)."""
    y = x @ p["kernel"] if "kernel" in p else pattention(p, x)
    return y + p.get("bias", 0.0)


def pattention(p, x, normalization="l2_gelu", gelu="exact", kept=0, by="score"):
    """TokenFormer, section 3.1: theta(x K^T) V; theta = gelu(tau A / ||A||) and the two others of the release."""
    act = gelu_exact if gelu == "exact" else gelu_tanh
    out = np.zeros((*x.shape[:-1], p["values"].shape[-1]))
    for at in np.ndindex(*x.shape[:-1]):
        a = p["keys"] @ x[at]
        if kept:
            rank = np.abs(a) if by == "magnitude" else a
            a = np.where(rank >= np.sort(rank)[-kept], a, 0.0)
        if normalization == "l2_gelu":
            s = act(p["tau"] * a / np.sqrt((a**2).sum()))
        elif normalization == "gelu_l2":
            s = p["tau"] * act(a) / np.sqrt((act(a) ** 2).sum())
        else:
            s = p["tau"] ** 2 * softmax(a)
        out[at] = s @ p["values"]
    return out


def mlp(p, x, activation):
    return linear(p["down"], ACTIVATIONS[activation](linear(p["up"], x)))


def swiglu(p, x):
    """(silu(x W_gate) * x W_up) W_down (Shazeer 2020)."""
    return linear(p["down"], silu(linear(p["gate"], x)) * linear(p["up"], x))


def causal(i, j):
    return j <= i


def everything(i, j):
    return True


def attention(
    p,
    x,
    *,
    N,
    K,
    H,
    see=causal,
    positions=None,
    theta=1e4,
    fraction=1.0,
    eps=1e-6,
    window=0,
    sinks=0,
    scores=1.0,
    bias=None,
):
    """x [T, D] of one document; `see(i, j)`: whether token i may look at token j; `scores` multiplies q k / sqrt(H);
    `bias [T]`: added to the scores of each key."""
    T = len(x)
    positions = range(T) if positions is None else positions
    q, k, v = (linear(p[name], x).reshape(T, heads, H) for name, heads in (("q", N), ("k", K), ("v", K)))
    if "q_norm" in p:
        q, k = rmsnorm(q, eps, p["q_norm"]["scale"]), rmsnorm(k, eps, p["k_norm"]["scale"])
    q, k = rope(q, positions, theta, fraction), rope(k, positions, theta, fraction)
    bias, out = np.zeros(T) if bias is None else bias, np.zeros((T, N, H))
    for i in range(T):
        seen = [j for j in range(T) if see(i, j) and (not window or abs(i - j) < window or j < sinks)]
        for n in range(N):
            group = n // (N // K)
            weights = softmax(np.array([scores * q[i, n] @ k[j, group] / math.sqrt(H) + bias[j] for j in seen]))
            out[i, n] = sum(w * v[j, group] for w, j in zip(weights, seen, strict=True))
    return linear(p["out"], out.reshape(T, N * H))


def time_features(time, F):
    """cos and sin of 1000 t at wavelengths from 1 to 10,000 (Ho et al. 2020, appendix B): [T, F] for t [T]."""
    half = F // 2
    angles = np.array([[1000 * t / 10_000 ** (i / half) for i in range(half)] for t in time])
    return np.concatenate([np.cos(angles), np.sin(angles)], -1)


def periods(stacked, repeats):
    """The parameters of each repetition of the stack, from those that carry them in front."""
    cut = lambda tree, i: {k: cut(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}  # noqa: E731
    return [cut(stacked, i) for i in range(repeats)]


def model(
    p,
    x,
    *,
    mixers,
    channel,
    norms=("rmsnorm", "rmsnorm"),
    eps=1e-6,
    branch=1.0,
    scale=1.0,
    time=None,
    condition=None,
    roles=None,
):
    """Features [T, D] of tokens x [T], or of vectors [T, D].

    mixers: a callable (p, h [T, D]) -> [T, D] for each block of a period. channel: likewise. branch: what multiplies
    each part's output (depth). scale: of the embedding. time [T]: noise levels; condition [T, D]; roles [T]: rows
    of their table.
    """
    h = scale * p["embedding"][x] if x.ndim == 1 else x
    if time is not None:
        h = h + time_features(time, len(p["time"]["kernel"])) @ p["time"]["kernel"]
    if condition is not None:
        h = h + condition @ p["condition"]
    if roles is not None:
        h = np.stack([token + p["roles"][role] for token, role in zip(h, roles, strict=True)])
    stacked = p["stack"]["period"]
    names = sorted(stacked)
    first = stacked[names[0]]
    while isinstance(first, dict):
        first = next(iter(first.values()))
    for period in periods(stacked, len(first)):
        for name, mixer in zip(names, mixers, strict=True):
            block = period[name]
            h = h + branch * mixer(block["mixer"], norm(block.get("mixer_norm", {}), h, norms[0], eps))
            h = h + branch * channel(block["channel"], norm(block.get("channel_norm", {}), h, norms[0], eps))
    return norm(p.get("norm", {}), h, norms[1], eps)


def logits(p, features, scale=1.0, softcap=0.0):
    raw = scale * features @ p.get("head", p["embedding"]).T
    return softcap * np.tanh(raw / softcap) if softcap else raw
