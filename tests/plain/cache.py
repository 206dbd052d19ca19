"""KV-cache policies as caches that really drop: one Python list of tokens a key head, numpy float64, one row.

Written from the papers and the authors' code, position by position. A token is a dict: its position, key, value, score,
and how many tokens it is the mean of. q [T, N, H], k and v [T, K, H]; query head n reads key head n // (N/K).
"""

import math

import numpy as np

from tests.plain.layers import softmax

MASK = 0xFFFFFFFF


def hashed(x):
    x ^= x >> 16
    x = x * 0x7FEB352D & MASK
    x ^= x >> 15
    x = x * 0x846CA68B & MASK
    return x ^ (x >> 16)


def gumbel(seed, head, query, key):
    h = 0
    for x in (seed, head, query, key):
        h = hashed(h ^ ((x + 0x9E3779B9) & MASK))
    u = ((h >> 9) + 0.5) / 2**23
    return -math.log(-math.log(u))


def turn(x, position, theta, pairing="half"):
    """One vector turned to a position."""
    H, out = len(x), np.array(x)
    for i in range(H // 2):
        a, b = (i, i + H // 2) if pairing == "half" else (2 * i, 2 * i + 1)
        angle = position * theta ** (-2 * i / H)
        out[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
        out[b] = x[b] * math.cos(angle) + x[a] * math.sin(angle)
    return out


def attention(q, k):
    """(logits, probabilities) [N][i][j <= i] of dense causal attention, as nested lists of rows."""
    T, N, H = q.shape
    G = N // k.shape[1]
    x = [[np.array([q[i, n] @ k[j, n // G] / math.sqrt(H) for j in range(i + 1)]) for i in range(T)] for n in range(N)]
    return x, [[softmax(row) for row in rows] for rows in x]


def columns(rows, n, weight=lambda i: 1.0):
    """Sum over queries i of weight(i) times row i, whose entries are the first i + 1 keys."""
    total = np.zeros(n)
    for i, row in enumerate(rows):
        total[: i + 1] += weight(i) * row
    return total


def best(tokens, count):
    """The `count` tokens of the highest score; of equal ones the later."""
    order = sorted(tokens, key=lambda token: (token["score"], token["at"]))
    return order[max(0, len(order) - count) :] if count > 0 else []


def trimmed(cache, newest, budget, recent, sinks=0):
    """Sinks, the recent ones, and the best of the rest: `budget` in all."""
    sure = [c for c in cache if c["at"] > newest - recent or c["at"] < sinks]
    rest = [c for c in cache if not (c["at"] > newest - recent or c["at"] < sinks)]
    return sorted(sure + best(rest, max(0, budget - len(sure))), key=lambda c: c["at"])


class Policy:
    """Scores a prompt and rows; drops. `heads[K]` are lists of tokens."""

    def __init__(self, q, k, v, prompt, budget=8, recent=3, sinks=0, theta=None, ranked=False, **more):
        self.raw_q, self.raw_k, self.theta, self.ranked = q, k, theta, ranked and theta is not None
        if theta is not None and not self.ranked:
            q, k = ([[turn(x, t, theta) for x in row] for t, row in enumerate(y)] for y in (q, k))
            q, k = np.array(q), np.array(k)
        self.q, self.k, self.v, self.n = q, k, v, prompt
        self.T, self.N, self.H = q.shape
        self.K = k.shape[1]
        self.G = self.N // self.K
        self.budget, self.recent, self.sinks = budget, recent, sinks
        for name, value in more.items():
            setattr(self, name, value)
        if self.ranked:
            turned = [np.array([[turn(x, t, theta) for x in row] for t, row in enumerate(y)]) for y in (q, k)]
        else:
            turned = [q, k]
        self.x, self.p = attention(turned[0][:prompt], turned[1][:prompt])
        self.heads = [[self.token(t, h) for t in range(prompt)] for h in range(self.K)]
        self.records = []

    def token(self, t, h):
        return {"at": t, "k": self.k[t, h], "v": self.v[t, h], "score": 0.0, "count": 1.0}

    def group(self, h):
        return range(h * self.G, (h + 1) * self.G)

    def run(self):
        """Records (kept positions, their scores, outputs) of the prompt and of each token."""
        n = self.n
        self.prompt()
        out = np.array([self.p[a][n - 1] @ self.v[:n, a // self.G] for a in range(self.N)])
        self.record(out)
        for t in range(n, self.T):
            self.before(t)
            rows, logits, out = [], [], []
            for h in range(self.K):
                self.heads[h].append(self.token(t, h))
            for a in range(self.N):
                cache = self.heads[a // self.G]
                asked = self.q[t, a]
                keys = [c["k"] for c in cache]
                if self.ranked:
                    keys = [turn(key, rank, self.theta) for rank, key in enumerate(keys)]
                    asked = turn(asked, len(keys) - 1, self.theta)
                logits.append(np.array([asked @ key / math.sqrt(self.H) for key in keys]))
                rows.append(softmax(logits[-1]))
                out.append(sum(p * c["v"] for p, c in zip(rows[-1], cache, strict=True)))
            self.step(t, rows, logits)
            self.record(np.array(out))
        return self.records

    def record(self, out):
        kept = [[c["at"] for c in cache] for cache in self.heads]
        self.records.append((kept, [[c["score"] for c in cache] for cache in self.heads], out))

    def before(self, t):
        pass

    def prompt(self):
        raise NotImplementedError

    def step(self, t, rows, logits):
        raise NotImplementedError

    def give(self, h, values):
        for c, value in zip(self.heads[h], values, strict=True):
            c["score"] = value

    def drop(self, newest):
        self.heads = [trimmed(cache, newest, self.budget, self.recent, self.sinks) for cache in self.heads]


class Full(Policy):
    def prompt(self):
        pass

    def step(self, t, rows, logits):
        pass


class H2O(Policy):
    alpha = 1.0

    def prompt(self):
        for h in range(self.K):
            weight = lambda i: self.alpha ** (self.n - 1 - i) if self.n - 1 - i else 1.0  # noqa: E731
            self.give(h, sum(columns(self.p[a], self.n, weight) for a in self.group(h)))
        self.drop(self.n - 1)

    def step(self, t, rows, logits):
        for h in range(self.K):
            for i, c in enumerate(self.heads[h]):
                c["score"] = self.alpha * c["score"] + sum(rows[a][i] for a in self.group(h))
        self.drop(t)


class A2SFReleased(H2O):
    def step(self, t, rows, logits):
        pass


class MaskedH2O(Policy):
    """The released masks: n + 1 places against n scores, every token in memory, and scores of the invisible zeroed."""

    def prompt(self):
        self.total = [sum(columns(self.p[a], self.n) for a in self.group(h)) for h in range(self.K)]
        self.everything = [list(cache) for cache in self.heads]
        self.mask(self.n - 1)

    def mask(self, newest):
        n = newest + 1
        for h in range(self.K):
            seen = np.ones(n + 1)
            if n > self.budget:
                seen[: n + 1 - self.recent] = 0
                candidates = self.total[h][: n - self.recent]
                order = np.argsort(candidates, kind="stable")
                seen[order[len(order) - (self.budget - self.recent) :]] = 1
                scored = seen[:n].copy()
                scored[n - self.recent :] = 1
                self.total[h] = self.total[h] * scored
            self.heads[h] = [c for c in self.everything[h] if seen[c["at"]]]
            for c in self.heads[h]:
                c["score"] = self.total[h][c["at"]]

    def step(self, t, rows, logits):
        for h in range(self.K):
            self.everything[h].append(self.heads[h][-1])
            self.total[h] = np.append(self.total[h], 0.0)
            for i, c in enumerate(self.heads[h]):
                self.total[h][c["at"]] += sum(rows[a][i] for a in self.group(h))
        self.mask(t)


class Keyformer(Policy):
    end, seed, noisy, frozen = 2.0, 0, True, False

    def noise(self, a, i, j):
        return gumbel(self.seed, a, i, j) if self.noisy else 0.0

    def prompt(self):
        for h in range(self.K):
            total = np.zeros(self.n)
            for a in self.group(h):
                for i in range(self.n):
                    total[: i + 1] += softmax(np.array([self.x[a][i][j] + self.noise(a, i, j) for j in range(i + 1)]))
            self.give(h, total)
        self.shrink(self.n - 1)

    def step(self, t, rows, logits):
        tau = 1 + (t - self.n + 1) * (self.end - 1) / (self.T - self.n)
        for h in range(self.K):
            for a in self.group(h):
                noisy = [x + self.noise(a, t, c["at"]) for x, c in zip(logits[a], self.heads[h], strict=True)]
                for c, y in zip(self.heads[h], softmax(np.array(noisy) / tau), strict=True):
                    c["score"] += y
        self.shrink(t)

    def shrink(self, newest):
        if not self.frozen:
            return self.drop(newest)
        if newest + 1 <= self.budget:
            return None
        for h, cache in enumerate(self.heads):
            heavy = best([c for c in cache if c["at"] <= newest - self.recent], self.budget - self.recent)
            near = [c for c in cache if c["at"] > newest + 1 - self.recent]
            self.heads[h] = sorted(heavy + near, key=lambda c: c["at"])
        return None


class Scissorhands(Policy):
    window, bulk = 4, 1

    def prompt(self):
        self.votes = [{j: [] for j in range(self.n)} for _ in range(self.K)]
        for h in range(self.K):
            for i in range(self.n):
                for j in range(i + 1):
                    self.votes[h][j].append((i, sum(self.p[a][i][j] < 1 / (i + 1) for a in self.group(h))))
        self.shrink(self.n - 1)

    def step(self, t, rows, logits):
        for h in range(self.K):
            self.votes[h][t] = []
            for i, c in enumerate(self.heads[h]):
                against = sum(rows[a][i] < 1 / len(rows[a]) for a in self.group(h))
                self.votes[h][c["at"]].append((t, against))
        self.shrink(t)

    def shrink(self, newest):
        for h, cache in enumerate(self.heads):
            for c in cache:
                c["score"] = -sum(vote for i, vote in self.votes[h][c["at"]] if i > newest - self.window)
            budget = self.budget + 1 - self.bulk if len(cache) > self.budget else self.budget
            self.heads[h] = trimmed(cache, newest, budget, self.recent, self.sinks)


class Tova(Policy):
    def prompt(self):
        for h in range(self.K):
            self.give(h, np.mean([self.p[a][self.n - 1] for a in range(self.N)], axis=0))
        self.drop(self.n - 1)

    def step(self, t, rows, logits):
        mean = np.mean(rows, axis=0)
        for h in range(self.K):
            self.give(h, mean)
        self.drop(t)


class Snap(Policy):
    window, kernel, kind = 3, 5, "mean"

    def prompt(self):
        n, w, budget = self.n, self.window, self.own_budget()
        if n <= self.budget:
            return
        for h in range(self.K):
            raw = np.zeros(n - w)
            for a in self.group(h):
                for i in range(n - w, n):
                    raw += self.p[a][i][: n - w]
            pooled = np.zeros(n - w)
            for j in range(n - w):
                near = [raw[j + d] for d in range(-(self.kernel // 2), self.kernel // 2 + 1) if 0 <= j + d < n - w]
                pooled[j] = sum(near) / self.kernel if self.kind == "mean" else max(near)
            if self.kind == "max":  # the maximum is taken within each head before they are added up
                pooled = np.zeros(n - w)
                for a in self.group(h):
                    one = sum(self.p[a][i][: n - w] for i in range(n - w, n))
                    for j in range(n - w):
                        pooled[j] += max(one[max(0, j - self.kernel // 2) : j + self.kernel // 2 + 1])
            self.give(h, [*pooled, *[0.0] * w])
            chosen = best(self.heads[h][: n - w], budget - w)
            self.heads[h] = sorted(chosen + self.heads[h][n - w :], key=lambda c: c["at"])

    def own_budget(self):
        return self.budget

    def step(self, t, rows, logits):
        pass


class Pyramid(Snap):
    layer, layers = 1, 4

    def own_budget(self):
        mean = self.budget - self.window
        low = mean // 20
        high = 2 * mean - low
        if high >= self.n - self.window:
            high = self.n - self.window
            low = 2 * mean - high
        return self.window + high - self.layer * ((high - low) // (self.layers - 1))


class Streaming(Policy):
    when = "after"

    def prompt(self):
        self.mark()
        self.drop_old(self.budget)

    def mark(self):
        for cache in self.heads:
            for c in cache:
                c["score"] = float(c["at"])

    def drop_old(self, budget):
        for h, cache in enumerate(self.heads):
            first = [c for c in cache if c["at"] < self.sinks]
            rest = [c for c in cache if c["at"] >= self.sinks]
            keep = budget - len(first)
            self.heads[h] = first + (rest[-keep:] if keep > 0 else [])

    def before(self, t):
        if self.when == "before":
            self.drop_old(self.budget - 1)

    def step(self, t, rows, logits):
        self.mark()
        self.drop_old(self.budget)


class Random(Policy):
    seed = 0

    def prompt(self):
        self.draw()
        self.drop(self.n - 1)

    def draw(self):
        for h, cache in enumerate(self.heads):
            for c in cache:
                c["score"] = gumbel(self.seed, h, 0, c["at"])

    def step(self, t, rows, logits):
        self.draw()
        self.drop(t)


def replayed(policy, q, k, v, prompt, **options):
    return policy(q, k, v, prompt, **options).run()
