"""A model whose later layers read an early one, written out: loops over tokens, heads and layers in float64."""

import numpy as np

from tests.plain import backbone, layers


def turned(x, places):
    return backbone.rope(x, places, lambda i, R: 1e4 ** (-2 * i / R))


def queries(p, x, N, H):
    """[T, N, H], through their norm where there is one."""
    q = layers.linear(p["q"], x).reshape(len(x), N, H)
    return layers.rmsnorm(q, 1e-6, p["q_norm"]["scale"]) if "q_norm" in p else q


def keys(p, y, K, H):
    """k, v [T, K, H]."""
    k, v = (layers.linear(p[name], y).reshape(len(y), K, H) for name in "kv")
    return (layers.rmsnorm(k, 1e-6, p["k_norm"]["scale"]) if "k_norm" in p else k), v


def attended(p, q, k, v, see, places):
    """The output map of softmax attention of q [T, N, H] to k, v [T, K, H] where see(i, j)."""
    T, N, H = q.shape
    q, k, out, G = turned(q, places), turned(k, places), np.zeros((T, N, H)), N // k.shape[1]
    for i in range(T):
        seen = [j for j in range(i + 1) if see(i, j)]
        for n in range(N):
            weights = layers.softmax(np.array([q[i, n] @ k[j, n // G] for j in seen]) / np.sqrt(H))
            for weight, j in zip(weights, seen, strict=True):
                out[i, n] += weight * v[j, n // G]
    return layers.linear(p["out"], out.reshape(T, N * H))


def model(p, x, *, N, K, H, segments=None, positions=None):
    """(features [T, D], streams after each layer [L, T, D]) of tokens x [T]; sizes are those of the parameters."""
    places = range(len(x)) if positions is None else positions
    see = (lambda i, j: True) if segments is None else (lambda i, j: segments[i] == segments[j])
    norm = lambda tree, h: layers.norm(tree, h, "rmsnorm", 1e-6)  # noqa: E731
    h, streams, stack = p["embedding"][x], [], p["stack"]

    def layer(block, h, made):
        y = norm(block["mixer_norm"], h)
        h = h + attended(block["mixer"], queries(block["mixer"], y, N, H), *(made or keys(block["mixer"], y, K, H)),
                         see, places)  # fmt: skip
        h = h + layers.mlp(block["channel"], norm(block["channel_norm"], h), "gelu")
        streams.append(h)
        return h

    for each in layers.periods(stack["period"], len(stack["period"]["0_attention"]["channel"]["up"]["kernel"])):
        h = layer(each["0_attention"], h, None)
    if "late" in stack:
        y = norm(stack["norm"], h)
        for group in layers.periods(stack["late"], len(stack["late"]["keys"]["k"]["kernel"])):
            made = keys(group["keys"], y, K, H)
            for i in range(len(group) - 1):
                h = layer(group[f"{i}_attention"], h, made)
    return norm(p["norm"], h), np.stack(streams)
