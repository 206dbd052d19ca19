"""Rotary rates and the backbone with its knobs, written out again: loops over tokens, heads and pairs in float64."""

import math

import numpy as np

from tests.plain import layers


def linear(i, R, theta, factor, **_):
    return theta ** (-2 * i / R) / factor


def dynamic(i, R, theta, factor, original, length, **_):
    """transformers: base * ((factor * n / original) - (factor - 1)) ** (dim / (dim - 2))."""
    n = max(length, original)
    return (theta * ((factor * n / original) - (factor - 1)) ** (R / (R - 2))) ** (-2 * i / R)


def yarn(i, R, theta, factor, original, beta_fast=32.0, beta_slow=1.0, truncate=True, **_):
    """YaRN, equations 17 to 20, with the released ramp over the numbers of pairs."""

    def pair(turns):
        return R * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(beta_fast), pair(beta_slow)
    low, high = (math.floor(low), math.ceil(high)) if truncate else (low, high)
    low, high = max(low, 0), min(high, R - 1)
    gamma = min(1, max(0, (i - low) / (high - low))) if low != high else float(i > low)
    rate = theta ** (-2 * i / R)
    return rate / factor if gamma == 1 else rate * (1 - gamma) + rate / factor * gamma


def llama3(i, R, theta, factor, low, high, original, **_):
    """Llama 3.1's release: by wavelength, in three cases."""
    rate = theta ** (-2 * i / R)
    wavelength = 2 * math.pi / rate
    if wavelength < original / high:
        return rate
    if wavelength > original / low:
        return rate / factor
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * rate / factor + smooth * rate


def rope(x, positions, rate, fraction=1.0, factor=1.0):
    """Pair (i, i + R/2) of x [T, N, H] turned by position * rate(i, R); the turned numbers times `factor`."""
    out, R = np.array(x), int(x.shape[-1] * fraction) // 2 * 2
    for t, position in enumerate(positions):
        for i in range(R // 2):
            angle = position * rate(i, R)
            a, b = x[t, :, i], x[t, :, i + R // 2]
            out[t, :, i] = factor * (a * math.cos(angle) - b * math.sin(angle))
            out[t, :, i + R // 2] = factor * (b * math.cos(angle) + a * math.sin(angle))
    return out


def attention(
    p, x, *, N, K, H, rate=None, fraction=1.0, factor=1.0, eps=1e-6, offset=0.0, row=False, window=0, softcap=0.0,
    scale=None,
):  # fmt: skip
    """Causal attention of one document x [T, D] with the knobs of the group `attention`."""
    T = len(x)
    rate = rate or (lambda i, R: 1e4 ** (-2 * i / R))
    q, k, v = (layers.linear(p[name], x) for name in "qkv")
    if "q_norm" in p:
        of = (lambda y, n: y) if row else (lambda y, n: y.reshape(T, n, H))
        q, k = (
            layers.rmsnorm(of(y, n), eps, offset + p[f"{name}_norm"]["scale"])
            for y, n, name in ((q, N, "q"), (k, K, "k"))
        )
    q, k, v = q.reshape(T, N, H), k.reshape(T, K, H), v.reshape(T, K, H)
    q, k = (rope(y, range(T), rate, fraction, factor) for y in (q, k))
    out = np.zeros((T, N, H))
    for i in range(T):
        seen = [j for j in range(i + 1) if not window or i - j < window]
        for n in range(N):
            scores = np.array([q[i, n] @ k[j, n // (N // K)] * (scale or H**-0.5) for j in seen])
            scores = softcap * np.tanh(scores / softcap) if softcap else scores
            total = np.exp(scores).sum() + (np.exp(p["sink_scores"][n]) if "sink_scores" in p else 0)
            for score, j in zip(scores, seen, strict=True):
                out[i, n] += np.exp(score) / total * v[j, n // (N // K)]
    return layers.linear(p["out"], out.reshape(T, N * H))


def model(p, x, mixers, channel, *, eps=1e-6, kind="rmsnorm", offset=0.0, parallel=False, scale=1.0, embedding=1.0):
    """Features [T, D] of tokens x [T]; norms stand where the parameters have them; `scale` of what parts add."""

    def norm(tree, name, h):
        if name not in tree:
            return h
        given = {**tree[name], "scale": offset + tree[name]["scale"]}
        return layers.norm(given, h, kind, eps)

    h = embedding * p["embedding"][x]
    if "positions" in p:
        h = h + p["positions"][: len(x)]
    period = p["stack"]["period"]
    first = next(iter(period.values()))["channel"]
    while isinstance(first, dict):
        first = next(iter(first.values()))
    for each in layers.periods(period, len(first)):
        for name, mixer in zip(sorted(each), mixers, strict=True):
            block = each[name]
            y = norm(block, "mixer_out_norm", mixer(block["mixer"], norm(block, "mixer_norm", h)))
            read = h if parallel else h + scale * y
            h = h + scale * y
            y = channel(block["channel"], norm(block, "channel_norm", read))
            h = h + scale * norm(block, "channel_out_norm", y)
    return norm(p, "norm", h)
