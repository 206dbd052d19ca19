"""Mixture of experts in numpy, float64: loops over tokens, experts and choices, from the papers' formulas."""

import math

import numpy as np

from tests.plain.layers import sigmoid, silu


def softmax(z):
    e = np.exp(z - np.max(z))
    return e / e.sum()


def best(scores, k):
    """Indices of the k largest, the lowest index first among equals."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def rows(route, z, *args, **kw):
    """`route` of each row: (index [T, K], gate [T, K])."""
    found = [route(row, *args, **kw) for row in z]
    return np.array([f[0] for f in found]), np.array([f[1] for f in found])


def before(z, k, renormalise=False, scale=1.0):
    p = softmax(z)
    chosen = best(p, k)
    g = [p[i] for i in chosen]
    return chosen, [scale * x / (sum(g) if renormalise else 1.0) for x in g]


def after(z, k, scale=1.0):
    chosen = best(z, k)
    return chosen, scale * softmax(np.array([z[i] for i in chosen]))


def with_bias(z, b, k, scale=1.0, renormalise=True):
    s = sigmoid(z)
    chosen = best(s + b, k)
    g = [s[i] for i in chosen]
    return chosen, [scale * x / (sum(g) if renormalise else 1.0) for x in g]


def limited(scores, k, groups, kept, rule):
    """Chosen experts of the best groups."""
    size = len(scores) // groups
    cut = [sorted(scores[g * size : (g + 1) * size], reverse=True) for g in range(groups)]
    count = {"max": 1, "best_two": 2, "sum": max(1, k // kept)}[rule]
    good = best([sum(c[:count]) for c in cut], kept)
    allowed = [i for i in range(len(scores)) if i // size in good]
    return [allowed[j] for j in best([scores[i] for i in allowed], k)]


def moge(z, k, groups, scale):
    p, size, chosen = softmax(z), len(z) // groups, []
    for g in range(groups):
        chosen += [g * size + i for i in best(p[g * size : (g + 1) * size], k // groups)]
    return chosen, [p[i] * scale[i] for i in chosen]


def expert_choice(z, capacity):
    p = np.array([softmax(row) for row in z])
    tokens = np.array([best(p[:, e], capacity) for e in range(z.shape[1])])
    return tokens, np.array([[p[t, e] for t in tokens[e]] for e in range(z.shape[1])])


def relu(z, w, eps):
    a = np.maximum(z, 0)
    plain = a / math.sqrt((a**2).mean() + eps)
    return plain * w, plain


def null(z, k, true):
    p = softmax(z)
    chosen = best(p, k)
    total = sum(p[i] for i in chosen if i < true)
    return chosen, [p[i] / total if i < true else 0.0 for i in chosen]


def moepp(z, k):
    p = softmax(z)
    chosen = best(p, k)
    g = [0.0 if i == len(z) - 1 else p[i] for i in chosen]
    return chosen, [x / sum(g) for x in g]


# ==================== Balance ====================
def counts(index, E):
    f = np.zeros(E)
    for row in np.asarray(index).reshape(-1, np.shape(index)[-1]):
        for e in row:
            if e >= 0:
                f[e] += 1
    return f


def load(probs, index, by_k=True, f=None):
    """E sum_i f_i P_i over the tokens given."""
    T, E = probs.shape
    f = counts(index, E) / (T * (index.shape[1] if by_k else 1)) if f is None else f
    return E * sum(f[i] * sum(probs[t, i] for t in range(T)) / T for i in range(E))


def z_loss(z):
    return np.mean([math.log(sum(math.exp(v) for v in row)) ** 2 for row in z])


def bias_update(b, c, rate):
    mean = sum(c) / len(c)
    return np.array([b[i] + rate * (1 if c[i] < mean else -1 if c[i] > mean else 0) for i in range(len(b))])


# ==================== BlockFFN ====================
def locality(z, steep):
    """Mean over pairs of neighbours and experts of the cross-entropy of two Bernoulli variables."""
    total = []
    for t in range(1, len(z)):
        for e in range(z.shape[1]):
            q, y = 1 / (1 + math.exp(-steep * z[t - 1, e])), 1 / (1 + math.exp(-steep * z[t, e]))
            total.append(-y * math.log(q) - (1 - y) * math.log1p(-q))
    return np.mean(total)


def chunks(p, size):
    total = []
    for start in range(0, len(p), size):
        for e in range(p.shape[1]):
            total.append(math.exp(sum(math.log(1 - p[t, e] + 1e-5) for t in range(start, start + size))))
    return 1 - np.mean(total)


def chunk_sparsity(a, w):
    n = len(a) // w
    union = [sum(any(a[i * w + j, e] != 0 for j in range(w)) for e in range(a.shape[1])) for i in range(n)]
    return 1 - np.mean(union) / a.shape[1]


def schedule(losses, start, stable, window, least, most, warmup=0):
    """The coefficient of every step, by lists of losses as the paper tells it."""
    found, line, since = [], (start, start), 0
    for step in range(1, len(losses) + 1):
        now = line[0] + (line[1] - line[0]) * min(1.0, since / window)
        if step >= stable and step % window == 0 and step >= 2 * window:
            r = np.mean(losses[step - window : step]) / np.mean(losses[step - 2 * window : step - window])
            r = max(r, least) if r > 1 else r
            line, since = (now, now * min(r, start * most / now)), 0
        found.append(start * step / warmup if step < warmup else now)
        since += 1
    return np.array(found)


# ==================== Capacity ====================
def places(index, arrivals):
    """The place of each choice (t, k) in its expert's queue, choices taken in the order of `arrivals`."""
    taken, found = {}, np.full(index.shape, -1)
    for t, k in arrivals:
        e = index[t, k]
        if e >= 0:
            found[t, k] = taken.get(e, 0)
            taken[e] = found[t, k] + 1
    return found


# ==================== Experts ====================
def expert(x, up, down, gate=None, act=silu):
    """One expert on one token."""
    return (act(x @ up) if gate is None else act(x @ gate) * (x @ up)) @ down


def mixture(x, index, gate, up, down, gates=None, act=silu):
    """y [T, D] by a loop over tokens and choices."""
    y = np.zeros((len(x), down.shape[-1]))
    for t in range(len(x)):
        for e, g in zip(index[t], gate[t], strict=True):
            if e >= 0:
                y[t] += g * expert(x[t], up[e], down[e], None if gates is None else gates[e], act)
    return y


def constant(x, weight, vector):
    a = softmax(x @ weight)
    return a[0] * x + a[1] * vector


# ==================== A whole layer ====================
def decided(router, z, x, p, o):
    """(index, gate) of every token of a row, z [T, E]; a list each, as long as it has experts."""
    T, E = z.shape
    k, bias, weight = o.get("k", 2), p.get("bias"), p.get("expert_scale")
    if router == "expert_choice":
        tokens, gates = expert_choice(z, k * T // E)
        mine = [[(e, gates[e][list(tokens[e]).index(t)]) for e in range(E) if t in tokens[e]] for t in range(T)]
        return [[e for e, _ in each] for each in mine], [[g for _, g in each] for each in mine]
    if router == "graph":
        scores = x @ x.T / o.get("temperature", 1.0)
        q = np.array([softmax(row) for row in scores]) @ np.array([softmax(row) for row in z])
        index = [best(row, k) for row in q]
        return index, [[q[t, e] for e in index[t]] for t in range(T)]
    found = []
    for row in z:
        if router == "softmax_before":
            found.append(before(row, k, o.get("renormalise", False), o.get("scale", 1.0)))
        elif router == "softmax_after":
            found.append(after(row, k, o.get("scale", 1.0)))
        elif router == "sigmoid_bias":
            found.append(with_bias(row, bias, k, o.get("scale", 1.0), o.get("renormalise", False)))
        elif router in ("group_softmax", "group_sigmoid"):
            s = softmax(row) if router == "group_softmax" else sigmoid(row)
            shifted = s if bias is None else s + bias
            chosen = limited(shifted, k, o["groups"], o["kept_groups"], o.get("group_rule", "best_two"))
            total = sum(s[e] for e in chosen) if router == "group_sigmoid" else 1.0
            found.append((chosen, [o.get("scale", 1.0) * s[e] / total for e in chosen]))
        elif router == "moge":
            found.append(moge(row, k, o["groups"], weight))
        elif router == "relu":
            a, plain = relu(row, weight, 1e-5)
            chosen = [e for e in range(E) if plain[e] > 0]
            found.append((chosen, [a[e] for e in chosen]))
        elif router == "null":
            found.append(null_or_nothing(row, k, E - o["null"]))
        elif router == "moepp":
            found.append(moepp(row, k))
        elif router in ("duo", "duo_chance"):
            q = softmax(row / o.get("temperature", 1.0))
            found.append(([int(np.argmax(q))], [q.max() if router == "duo" else 1.0]))
    return [f[0] for f in found], [f[1] for f in found]


def null_or_nothing(z, k, true):
    chosen = best(softmax(z), k)
    if all(e >= true for e in chosen):
        return chosen, [0.0] * k
    return null(z, k, true)


def of_bank(bank, e, x, act=silu):
    return expert(x, bank["up"][e], bank["down"][e], bank["gate"][e] if "gate" in bank else None, act)


def layer(p, x, router, o, z=None, keep=None):
    """A mixture-of-experts layer on one row x [T, D] by loops: (y [T, D], index, gate, logits)."""
    z = x @ p["router"] if z is None else z
    index, gate = decided(router, z, x, p, o)
    F, S = len(p["experts"]["up"]), len(p["small_experts"]["up"]) if "small_experts" in p else 0
    C, copies = o.get("constant", 0), o.get("copy", 0)
    y = np.zeros_like(x)
    for t in range(len(x)):
        for n, (e, g) in enumerate(zip(index[t], gate[t], strict=True)):
            if keep is not None and not keep(t, n):
                continue
            if e < F:
                y[t] += g * of_bank(p["experts"], e, x[t])
            elif e < F + S:
                y[t] += g * of_bank(p["small_experts"], e - F, x[t])
            elif e < F + S + C:
                y[t] += g * constant(x[t], p["constant_weight"][e - F - S], p["constant"][e - F - S])
            elif e < F + S + C + copies:
                y[t] += g * x[t]
        if "shared" in p:
            shared = {name: w[None] for name, w in p["shared"].items()}
            y[t] += of_bank(shared, 0, x[t])
    return y, index, gate, z
