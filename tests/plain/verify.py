"""Rules of verification as plain loops over one node's drafts, float64: what one draw does, step by step."""

import itertools

import numpy as np
from scipy import optimize, stats


def norm(weight):
    return weight / weight.sum()


def token_rule(p, q):
    """Leviathan et al. 2023, algorithm 1: (law of the token, chance that the draft stays) of one draft of q."""
    law, kept = np.zeros(len(p)), 0.0
    for x in range(len(p)):
        if q[x] > 0:
            stays = min(1.0, p[x] / q[x])
            kept += q[x] * stays
            law[x] += q[x] * stays
    excess = np.maximum(p - q, 0)
    if kept < 1 - 1e-12:
        law += (1 - kept) * norm(excess)
    return law, kept


def recursive_acceptance(p, q, k, replace, renormalise=True):
    """(law, chance) of k drafts verified by repeated token rules, walking every tuple of drafts.

    renormalise=False is the bug of drawing without replacement and verifying with q as it was.
    """
    law, kept = np.zeros(len(p)), 0.0

    def go(depth, target, source, believed, weight):
        nonlocal kept
        if depth == k or source.sum() <= 0:
            law[:] += weight * target
            return
        source = norm(source)
        believed = norm(believed)
        for x in range(len(p)):
            if source[x] == 0:
                continue
            stays = min(1.0, target[x] / believed[x])
            law[x] += weight * source[x] * stays
            kept += weight * source[x] * stays
            excess = np.maximum(target - believed, 0)
            if stays < 1:
                after = source if replace else np.where(np.arange(len(p)) == x, 0, source)
                seen = after if renormalise else believed
                go(depth + 1, norm(excess), after, seen, weight * source[x] * (1 - stays))

    go(0, p.copy(), q.copy(), q.copy(), 1.0)
    return law, kept


def smallest_rho(p, q, k):
    """Root of rho beta(rho) = 1 - (1 - beta(rho))^k in [1, k] by a bracketing solver."""

    def beta(rho):
        return sum(min(q[x], p[x] / rho) for x in range(len(p)))

    def excess(rho):
        return rho * beta(rho) - (1 - (1 - beta(rho)) ** k)

    if excess(1.0) >= -1e-15:
        return 1.0
    return optimize.brentq(excess, 1.0, float(k), xtol=1e-15, rtol=1e-15)


def kseq(p, q, k, rho):
    """(law, chance) of k-SEQ with this rho, walking every tuple of drafts (Sun et al. 2023, algorithm 2)."""
    beta = sum(min(q[x], p[x] / rho) for x in range(len(p)))
    chance = 1 - (1 - beta) ** k
    law, kept = np.zeros(len(p)), 0.0
    for drafts in itertools.product(range(len(p)), repeat=k):
        weight = np.prod([q[x] for x in drafts])
        for x in drafts:
            if q[x] > 0:
                stays = min(1.0, p[x] / (rho * q[x]))
                law[x] += weight * stays
                kept += weight * stays
                weight *= 1 - stays
    if beta > 0:
        rest = np.array([p[x] - min(q[x], p[x] / rho) * chance / beta for x in range(len(p))])
    else:
        rest = p
    if 1 - kept > 1e-14:
        law += (1 - kept) * rest / rest.sum()
    return law, kept


def optimal_transport(p, q, k):
    """Largest chance that one of k independent drafts of q can be the token, over all couplings (linear program)."""
    V = len(p)
    tuples = list(itertools.product(np.flatnonzero(q), repeat=k))
    n = len(tuples)
    cost = np.array([[-1.0 if y in drafts else 0.0 for y in range(V)] for drafts in tuples]).reshape(-1)
    rows = np.kron(np.eye(n), np.ones(V))
    columns = np.kron(np.ones(n), np.eye(V))
    weights = [np.prod([q[x] for x in drafts]) for drafts in tuples]
    # The last equation follows from the others; kept, rounding would make the system infeasible.
    equations, sums = np.vstack([rows, columns])[:-1], np.concatenate([weights, p])[:-1]
    found = optimize.linprog(cost, A_eq=equations, b_eq=sums, method="highs")
    return -found.fun


def gaussian_overlap(distance):
    """Integral of the smaller of two unit Gaussians, numerically."""
    x = np.linspace(-12, 12 + distance, 400_001)
    return np.trapezoid(np.minimum(stats.norm.pdf(x), stats.norm.pdf(x, distance)), x)
