"""What each objective sums over a batch, token by token in numpy float64; `read(x, sees)` is the plain model of a row.

x: clean tokens, z: noised ones, m: the mask's id (and the number of real ids); free: tokens that are scored.
"""

import math

import numpy as np

from tests.plain.layers import log_softmax

WEIGHTS = {  # -alpha'(t) / (1 - alpha(t)) of each schedule's alpha, differentiated by hand.
    "linear": lambda t: 1 / t,  # 1 - t
    "loglinear": lambda t: 1 / t,  # 1 - 0.999 t
    "poly": lambda t: 2 / t,  # 1 - t^2
    "cosine_md4": lambda t: math.pi / 2 / math.tan(math.pi / 2 * t),  # 1 - cos(pi/2 (1 - t)) = 1 - sin(pi/2 t)
    "cosine_mdlm": lambda t: math.pi / 2 * math.sin(math.pi / 2 * t) / (1 - math.cos(math.pi / 2 * t)),
    "geometric": lambda t: _geometric(t) * math.log(20 / 1e-4) / math.expm1(_geometric(t)),  # exp(-sigma)
}
RATES = {  # 1 - alpha(t), the share of masks.
    "linear": lambda t: t,
    "loglinear": lambda t: 0.999 * t,
    "poly": lambda t: t**2,
    "cosine_md4": lambda t: math.sin(math.pi / 2 * t),
    "cosine_mdlm": lambda t: 0.999 * (1 - math.cos(math.pi / 2 * t)),
    "geometric": lambda t: 1 - math.exp(-_geometric(t)),
}


def _geometric(t):
    return 1e-4 ** (1 - t) * 20**t


def weighted(log_p, x, weight):
    """sum_l w_l -log p(x_l | z): masked and block diffusion (MDLM eq. 10; BD3-LM eq. 8), and any-subset at weight 1."""
    return sum(-w * row[token] for row, token, w in zip(log_p, x, weight, strict=True) if w > 0)


def block_sees(T, block):
    """BD3-LM, figure 3, over [noised ; clean]: own noised block, clean blocks before it; clean: up to its own block."""

    def sees(i, j):
        mine, other = (i % T) // block, (j % T) // block
        if i < T:
            return mine == other if j < T else other < mine
        return j >= T and other <= mine

    return sees


def subset_sees(T, rank, prompt):
    """XLNet's two streams over [query ; content]: a query sees content of lower rank and itself."""

    def sees(i, j):
        mine, other = rank[i % T], rank[j % T]
        if i < T:
            return i == j or (j >= T and other < mine)
        return j >= T and (other <= mine or (mine < prompt and other < prompt))

    return sees


def score_absorbing(logits, sigma, z, x, m):
    """SEDD eq. 5 at masks: sum_y s_y - k log s_x + k (log k - 1), k = 1 / (e^sigma - 1), s as in its code scaled."""
    k, total = 1 / math.expm1(sigma), 0.0
    for row, a, b in zip(logits, z, x, strict=True):
        if a == m:
            s = np.exp(row) * k / (m - 1)
            total += s.sum() - k * math.log(s[b]) + k * (math.log(k) - 1)
    return total


def score_uniform(logits, alpha, z, x, free):
    """UDLM's density before -alpha'/alpha, by the score entropy of its own scores: ratios of noised predictions."""
    V, total = logits.shape[-1], 0.0
    for row, a, b, counts in zip(logits, z, x, free, strict=True):
        if not counts:
            continue
        p = np.exp(log_softmax(row))
        model = V * alpha * p + 1 - alpha
        truth = V * alpha * (np.arange(V) == b) + 1 - alpha
        s, r = model / model[a], truth / truth[a]
        total += sum(s[y] - r[y] * math.log(s[y]) + r[y] * (math.log(r[y]) - 1) for y in range(V) if y != a) / V
    return total


def insertion(logits, count, x, dropped, m):
    """ILM: cross-entropy of where each missing token goes, over the slots in use, and of whether any is missing."""
    used = logits[: count + 1, :m]
    log_p = used - used.max() - math.log(np.exp(used - used.max()).sum())
    stop, n, slot, inserted = log_softmax(logits[0, m : m + 2]), int(dropped.sum()), 0, 0.0
    for token, gone in zip(x, dropped, strict=True):
        if gone:
            inserted -= log_p[slot, token] / n
        else:
            slot += 1
    return inserted - stop[int(n == 0)]


def poisson_labels(losses, t, K):
    """NeoDiff: tokens ranked by loss get the stretched Poisson(2 K t) quantiles of (r + 1/2) / n."""
    mean, out = 2 * K * t, np.zeros(len(losses), int)
    for rank, at in enumerate(np.argsort(losses, kind="stable")):
        q, s = (rank + 0.5) / len(losses), 0
        mass = total = math.exp(-mean)
        while total < q:
            s += 1
            mass *= mean / s
            total += mass
        out[at] = K if t > 0.99 else int(np.clip(np.round((s - mean) * math.sqrt(mean) + mean), 0, K))
    return out


def neodiff(predicted, clean, log_p, x, smoothing):
    """(squared error, smoothed anchor) of each token: the anchor is 1 - s at the token and s / V everywhere."""
    target = np.full(log_p.shape, smoothing / log_p.shape[-1])
    target[np.arange(len(x)), x] += 1 - smoothing
    return ((predicted - clean) ** 2).mean(-1), -(target * log_p).sum(-1)
