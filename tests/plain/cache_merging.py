"""Policies that share what stays over heads, or merge what leaves; and selections. See tests/plain/cache.py."""

import math

import numpy as np

from tests.plain.cache import Policy, best, columns, turn
from tests.plain.layers import softmax


class PrefixKV(Policy):
    ratio, distance = 0.5, -25

    def prompt(self):
        n = self.n
        mean = [np.mean([self.p[a][i] for a in range(self.N)], axis=0) for i in range(n)]
        self.a = columns(mean, n)
        self.forget = min(int(n * self.ratio), max(0, n - self.sinks - 1))
        for h in range(self.K):
            self.give(h, self.a)
        self.shrink()
        self.leaving = n - self.forget + self.distance if self.distance <= 0 else self.distance
        if self.leaving < 1:
            self.leaving = (n - self.forget) // 2

    def shrink(self):
        for h, cache in enumerate(self.heads):
            middle = cache[self.sinks : self.n - 1]
            keep = best(middle, len(middle) - self.forget)
            self.heads[h] = cache[: self.sinks] + sorted(keep, key=lambda c: c["at"]) + cache[self.n - 1 :]

    def step(self, t, rows, logits):
        for cache in self.heads:
            if int(len(cache) - (t + 1) * (1 - self.ratio)) > 0 and self.leaving < len(cache):
                del cache[self.leaving]


class Elastic(PrefixKV):
    values_only = False

    def shrink(self):
        before = [list(cache) for cache in self.heads]
        super().shrink()
        for h, cache in enumerate(self.heads):
            kept = [c["at"] for c in cache]
            sums = {at: [before[h][at]["k"], before[h][at]["v"], 1] for at in kept}
            for c in before[h]:
                if c["at"] not in sums:
                    near = min(kept, key=lambda at, c=c: (abs(at - c["at"]), at))
                    was = sums[near]
                    sums[near] = [was[0] + c["k"], was[1] + c["v"], was[2] + 1]
            for c in cache:
                key, value, count = sums[c["at"]]
                c["v"] = value / count
                if not self.values_only:
                    c["k"] = key / count


class ElasticReleased(PrefixKV):
    """argsort read as a rank, sources not shifted, anchors in the middle only; no fall-back for the leaving place."""

    def shrink(self):
        n, s = self.n, self.sinks
        order = np.argsort(self.a[s : n - 1], kind="stable")
        chosen = [i + s for i in range(len(order)) if order[i] > self.forget]
        thrown = [i for i in range(len(order)) if order[i] <= self.forget]
        for h, cache in enumerate(self.heads):
            parts = {at: [cache[at]] for at in chosen}
            for i in thrown:
                parts[min(chosen, key=lambda at, i=i: (abs(at - i), at))].append(cache[i])
            means = {
                at: (np.mean([c["k"] for c in cs], 0), np.mean([c["v"] for c in cs], 0)) for at, cs in parts.items()
            }
            for at, (key, value) in means.items():
                cache[at] = {**cache[at], "k": key, "v": value}
            self.heads[h] = cache[:s] + [cache[at] for at in chosen] + cache[n - 1 :]


def cosine(a, b):
    return a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)


class EMS(Policy):
    window, least = 3, 0.5

    def prompt(self):
        n = self.n
        self.all = [dict(enumerate(sum(columns(self.p[a], n) for a in self.group(h)))) for h in range(self.K)]
        self.rows = [
            [dict(enumerate(sum(self.p[a][i] for a in self.group(h)))) for i in range(n)] for h in range(self.K)
        ]
        for h in range(self.K):
            self.importance(h)
            if n > self.budget:
                self.heads[h] = self.classes(self.heads[h])

    def importance(self, h):
        cache = self.heads[h]
        wide = [self.all[h][c["at"]] for c in cache]
        near = [sum(row.get(c["at"], 0.0) for row in self.rows[h][-self.window :]) for c in cache]
        self.give(h, [a / sum(wide) / 2 + b / sum(near) / 2 for a, b in zip(wide, near, strict=True)])

    def classes(self, cache):
        near = cache[len(cache) - self.recent :]
        kept = near + best(cache[: len(cache) - self.recent], self.budget - len(near))
        places = {c["at"] for c in kept}
        others = [c for c in cache if c["at"] not in places]
        parts = {c["at"]: [c] for c in kept}
        for c in best(others, len(others) // 2):
            centre = max(kept, key=lambda b, c=c: cosine(c["k"], b["k"]))
            if cosine(c["k"], centre["k"]) >= self.least:
                parts[centre["at"]].append(c)
        out = []
        for c in sorted(kept, key=lambda c: c["at"]):
            same = parts[c["at"]]
            k, v = np.mean([x["k"] for x in same], 0), np.mean([x["v"] for x in same], 0)
            out.append({**c, "k": k, "v": v, "count": float(len(same))})
        return out

    def step(self, t, rows, logits):
        for h in range(self.K):
            cache = self.heads[h]
            row = {c["at"]: sum(rows[a][i] for a in self.group(h)) for i, c in enumerate(cache)}
            self.rows[h].append(row)
            for at, p in row.items():
                self.all[h][at] = self.all[h].get(at, 0.0) + p
            self.importance(h)
            if len(cache) <= self.budget:
                continue
            old = [c for c in cache if c["at"] <= t - self.recent]
            gone = min(old, key=lambda c: (c["score"], c["at"]))
            cache.remove(gone)
            centre = max(cache, key=lambda c: cosine(gone["k"], c["k"]))
            if cosine(gone["k"], centre["k"]) >= self.least:
                total = gone["count"] + centre["count"]
                for name in ("k", "v"):
                    centre[name] = (gone["count"] * gone[name] + centre["count"] * centre[name]) / total
                centre["count"] = total


class Selection:
    """Nothing is evicted: `chosen(t)` says what each query head attends to; scores are not compared with slots."""

    def __init__(self, q, k, v, prompt, theta=None, **more):
        self.q, self.k, self.v, self.n, self.theta = q, k, v, prompt, theta
        (self.T, self.N, self.H), self.K = q.shape, k.shape[1]
        self.G = self.N // self.K
        for name, value in more.items():
            setattr(self, name, value)

    def run(self):
        out = []
        for t in range(self.n, self.T):
            chosen = self.chosen(t)
            outputs = []
            for a in range(self.N):
                at = chosen[a]
                places = range(len(at)) if self.theta else at
                keys = [self.k[j, a // self.G] for j in at]
                asked = self.q[t, a]
                if self.theta:
                    keys = [turn(key, place, self.theta) for key, place in zip(keys, places, strict=True)]
                    asked = turn(asked, len(at) - 1, self.theta)
                p = softmax(np.array([asked @ key / math.sqrt(self.H) for key in keys]))
                outputs.append(p @ self.v[at, a // self.G])
            out.append((chosen, np.array(outputs)))
        return out

    def row(self, a, t, upto):
        return softmax(np.array([self.q[t, a] @ self.k[j, a // self.G] / math.sqrt(self.H) for j in range(upto)]))


class Oracle(Selection):
    def chosen(self, t):
        out = []
        for h in range(self.K):
            p = sum(self.row(a, t, t + 1) for a in range(h * self.G, (h + 1) * self.G))
            top = sorted(range(t), key=lambda j: p[j])[-self.budget :]
            out += [[*sorted(top), t]] * self.G
        return out


class TokenSelect(Selection):
    smooth, released = 0, False

    def chosen(self, t):
        n = t + 1
        if self.initial + self.budget + self.local >= n:
            return [list(range(n))] * self.N
        places = range(self.initial, n - self.local)
        votes = np.zeros(len(places))
        for a in range(self.N):
            asked = turn(self.q[t, a], self.local, self.theta) if self.theta else self.q[t, a]
            h = a % self.K if self.released else a // self.G
            scale = 1.0 if self.released else 1 / math.sqrt(self.H)
            votes += softmax(np.array([asked @ self.k[j, h] * scale for j in places]))
        if self.smooth:
            r = self.smooth // 2
            votes = np.array([max(votes[max(0, i - r) : i + r + 1]) for i in range(len(votes))])
        top = sorted(range(len(votes)), key=lambda i: (votes[i], i))[-self.budget :]
        return [[*range(self.initial), *sorted(self.initial + i for i in top), *range(n - self.local, n)]] * self.N


class Quest(Selection):
    page, least = 3, 2

    def chosen(self, t):
        out = []
        for a in range(self.N):
            bounds = []
            for start in range(0, t + 1, self.page):
                keys = self.k[start : min(start + self.page, t + 1), a // self.G]
                bounds.append(sum(max(x * keys[:, c].min(), x * keys[:, c].max()) for c, x in enumerate(self.q[t, a])))
            count = max(self.least, self.budget // self.page)
            pages = sorted(range(len(bounds)), key=lambda i: (bounds[i], i))[-count:]
            out.append([j for j in range(t + 1) if j // self.page in pages])
        return out
