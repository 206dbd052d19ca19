"""Update rules and learning rates, step by step in numpy float64, from the papers that named them.

A rule is a generator-like object: `step(params, grads) -> params`, dicts of arrays by name, `rates` the learning rate
of each step from 0. `roles` says by name what a parameter is; `decayed` which roles weight decay pulls to zero.
"""

import math

import numpy as np


def clipped(grads, most):
    """All gradients divided by one number, so that their joint norm is at most `most` (0: as they are)."""
    norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
    return {k: g * (most / norm if most and norm > most else 1.0) for k, g in grads.items()}


class Rule:
    """What all have in common: clipping, decoupled decay times the rate, frozen numbers."""

    def __init__(self, rates, roles, *, clip=0.0, decay=0.0, decayed=("kernel", "embedding"), by_size=None, **options):
        self.rates, self.roles, self.clip = rates, roles, clip
        self.decay = {k: decay if role in decayed else 0.0 for k, role in roles.items()}
        self.by_size = by_size or dict.fromkeys(roles, 1.0)
        self.t, self.memory, self.o = 0, {}, options

    def step(self, params, grads):
        rate, grads = self.rates[self.t], clipped(grads, self.clip)
        self.t += 1
        new = {}
        for name, p in params.items():
            if self.roles[name] == "frozen":
                new[name] = p
                continue
            direction = self.by_size[name] * self.direction(name, grads[name])
            new[name] = p - rate * (direction + self.decay[name] * p)
        return new

    def kept(self, name, of, like):
        return self.memory.setdefault((name, of), np.zeros_like(like))


class AdamW(Rule):
    """Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2."""

    def direction(self, name, g):
        b1, b2, eps = (self.o[k] for k in ("b1", "b2", "eps"))
        m = b1 * self.kept(name, "m", g) + (1 - b1) * g
        v = b2 * self.kept(name, "v", g) + (1 - b2) * g**2
        self.memory[name, "m"], self.memory[name, "v"] = m, v
        return m / (1 - b1**self.t) / (np.sqrt(v / (1 - b2**self.t)) + eps)


class Lion(Rule):
    """Chen et al. 2023, algorithm 2."""

    def direction(self, name, g):
        b1, b2 = self.o["b1"], self.o["b2"]
        m = self.kept(name, "m", g)
        self.memory[name, "m"] = b2 * m + (1 - b2) * g
        return np.sign(b1 * m + (1 - b1) * g)


class Muon(AdamW):
    """Jordan 2024 for kernels, each layer [in, out] by itself, with the RMS of Moonlight (Liu et al. 2025, eq. 4).

    Nesterov's momentum 0.95 with the bias corrections of NAdam (Dozat 2016), five steps of Newton-Schulz.
    """

    def direction(self, name, g):
        if self.roles[name] != "kernel":
            return super().direction(name, g)
        beta = 0.95
        m = beta * self.kept(name, "m", g) + (1 - beta) * g
        self.memory[name, "m"] = m
        ahead = beta * m / (1 - beta ** (self.t + 1)) + (1 - beta) * g / (1 - beta**self.t)
        return np.stack([0.2 * math.sqrt(max(w.shape)) * self.orthogonal(w) for w in ahead])

    @staticmethod
    def orthogonal(w):
        x = w / (np.sqrt((w**2).sum()) + 1e-8)
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
        return x


class Adafactor(Rule):
    """Shazeer & Stern 2018, algorithms 4 and 5: no momentum, factored where both sides have 128 numbers."""

    def direction(self, name, g):
        beta = 1 - self.t**-0.8
        square = g**2 + 1e-30
        if g.ndim >= 2 and min(g.shape[-2:]) >= 128:
            rows = beta * self.kept(name, "r", square.mean(-1)) + (1 - beta) * square.mean(-1)
            columns = beta * self.kept(name, "c", square.mean(-2)) + (1 - beta) * square.mean(-2)
            self.memory[name, "r"], self.memory[name, "c"] = rows, columns
            v = rows[..., :, None] * columns[..., None, :] / rows.mean(-1)[..., None, None]
        else:
            v = beta * self.kept(name, "v", g) + (1 - beta) * square
            self.memory[name, "v"] = v
        u = g / np.sqrt(v)
        return u / max(1.0, math.sqrt((u**2).mean()))


class ScheduleFree(Rule):
    """Defazio et al. 2024, algorithm 1 (AdamW): gradients at y, a plain run z, and its average x weighed by rate^2.

    `weights`: the rate that weighs the average at each step.
    """

    def step(self, params, grads):
        b1, b2, eps = (self.o[k] for k in ("b1", "b2", "eps"))
        rate, grads = self.rates[self.t], clipped(grads, self.clip)
        weight = max(self.o["weights"][: self.t + 1]) ** 2
        if self.t == 0:
            self.z, self.x, self.total = dict(params), dict(params), 0.0
        self.t += 1
        self.total += weight
        new = {}
        for name, y in params.items():
            if self.roles[name] == "frozen":
                new[name] = y
                continue
            v = b2 * self.kept(name, "v", y) + (1 - b2) * grads[name] ** 2
            self.memory[name, "v"] = v
            direction = grads[name] / (np.sqrt(v / (1 - b2**self.t)) + eps) + self.decay[name] * y
            self.z[name] = self.z[name] - rate * direction
            share = weight / self.total
            self.x[name] = (1 - share) * self.x[name] + share * self.z[name]
            new[name] = (1 - b1) * self.z[name] + b1 * self.x[name]
        return new


RULES = {"adamw": AdamW, "lion": Lion, "muon": Muon, "adafactor": Adafactor, "schedule_free": ScheduleFree}


def rate(update, *, peak, final, warmup, updates, schedule, decay_share=0.2):
    """The learning rate of update 1, 2, ... of `updates`; `warmup` in updates, `final` a share of the peak."""
    if warmup and update <= warmup:
        return peak * update / warmup
    along, rest = update - warmup, updates - warmup
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak + (final * peak - peak) * along / rest
    if schedule == "cosine":
        return peak * (final + (1 - final) * (1 + math.cos(math.pi * along / rest)) / 2)
    falling = round(decay_share * rest)
    return peak + (final * peak - peak) * max(0, along - (rest - falling)) / falling
