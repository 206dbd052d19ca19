"""Data mixture inference from a list of merges (Hayase et al. 2024, arXiv:2407.16607), as a linear programme.

At every step the pair that was merged had the largest count of the mixed text. With c[t, i, p] the count of pair p in
language i before merge t, m_t the pair merged, Z_i the size of language i's sample:

    minimise  sum_t v_t + sum_p u_p   subject to  a in the simplex,  v, u >= 0,  and for all t and p != m_t
    sum_i a_i c[t, i, m_t] / Z_i + v_t + u_p  >=  sum_i a_i c[t, i, p] / Z_i.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A solution. `interval` holds, for each language, the least and largest weight at (nearly) the same objective."""

    weights: np.ndarray  # [L], sum to 1
    objective: float
    step_slack: np.ndarray  # [M], v
    pair_slack: np.ndarray  # [P], u
    interval: np.ndarray | None  # [L, 2]
    rows: int  # constraints in the last programme


def dense_counts(entries: Sequence[Sequence[Mapping]], merges: Sequence) -> tuple[np.ndarray, np.ndarray, list]:
    """(counts [M, L, P], chosen [M], pairs) of the changes that `pairs.counts_per_merge` gives for each language.

    `chosen` is the index of each merge among the pairs, -1 where no language has ever held it.
    """
    names = sorted({pair for language in entries for entry in language for pair in entry})
    index = {pair: k for k, pair in enumerate(names)}
    counts = np.zeros((len(merges), len(entries), len(names)))
    for i, language in enumerate(entries):
        now = np.zeros(len(names))
        for t in range(len(merges)):
            for pair, count in (language[t] if t < len(language) else {}).items():
                now[index[pair]] = count
            counts[t, i] = now
    return counts, np.array([index.get(tuple(merge), -1) for merge in merges]), names


def solve(
    counts: np.ndarray,
    chosen: np.ndarray,
    sizes: Sequence[float],
    *,
    pair_slack: bool = True,
    skip_first_pair: bool = False,
    intervals: bool = True,
    room: float = 1e-9,
) -> Mixture:
    """The mixture by HiGHS; constraints enter only where they are violated, until none is.

    Args:
      counts: [M, L, P] before each merge.
      chosen: [M] index of the merged pair; -1 leaves the step out.
      sizes: [L] Z_i, e.g. all pairs of a sample at step 0, or its bytes.
      pair_slack: u_p, one for each pair over all steps; without it only v_t.
      skip_first_pair: leaves out steps whose merged pair has index 0, as the released code does by accident.
      intervals: also solve for the least and largest weight of each language.
      room: by how much an interval's objective may exceed the optimum.

    Errors: ValueError where no step is left, or the solver fails.
    """
    rates = np.asarray(counts, np.float64) / np.asarray(sizes, np.float64)[:, None]
    steps = [t for t, m in enumerate(chosen) if m > 0 or (m == 0 and not skip_first_pair)]
    if not steps:
        raise ValueError("chosen names no pair that any language holds; give merges of these languages.")
    M, L, P = rates.shape
    problem = _Programme(rates, np.asarray(chosen), steps, P if pair_slack else 0)
    x, objective = problem.minimum(np.r_[np.zeros(L), np.ones(M + problem.P)])
    interval = None
    if intervals:
        cap = objective + room
        interval = np.empty((L, 2))
        for i in range(L):
            cost = np.zeros(len(x))
            for side, sign in enumerate((1.0, -1.0)):
                cost[i] = sign
                interval[i, side] = problem.minimum(cost, cap)[0][i]
    slack = np.zeros(P)
    slack[: problem.P] = x[L + M :]
    return Mixture(x[:L], objective, x[L : L + M], slack, interval, len(problem.rows))


class _Programme:
    """The rows so far, and minima over them of any cost of (a [L], v [M], u [P or 0])."""

    BATCH = 10  # worst violations of a step that enter at once

    def __init__(self, rates: np.ndarray, chosen: np.ndarray, steps: list[int], P: int):
        self.rates, self.chosen, self.steps, self.P = rates, chosen, steps, P
        self.rows: list[tuple[int, int]] = []
        self._held: set[tuple[int, int]] = set()

    def minimum(self, cost: np.ndarray, cap: float | None = None) -> tuple[np.ndarray, float]:
        """(x, its cost); `cap` bounds the sum of all slack."""
        M, L, _ = self.rates.shape
        while True:
            x = self._solved(cost, cap)
            new = self._violated(x[:L], x[L : L + M], x[L + M :])
            if not new:
                return x, float(cost @ x)
            self.rows += new
            self._held.update(new)

    def _violated(self, a: np.ndarray, v: np.ndarray, u: np.ndarray) -> list[tuple[int, int]]:
        new = []
        for t in self.steps:
            have = a @ self.rates[t]
            excess = have - have[self.chosen[t]] - v[t] - (u if self.P else 0.0)
            excess[self.chosen[t]] = -np.inf
            worst = np.argsort(-excess, kind="stable")[: self.BATCH]
            new += [(t, int(p)) for p in worst if excess[p] > 1e-12 and (t, int(p)) not in self._held]
        return new

    def _solved(self, cost: np.ndarray, cap: float | None) -> np.ndarray:
        from scipy import optimize, sparse

        M, L, _ = self.rates.shape
        A, b = [], []
        if self.rows:
            t, p = np.array(self.rows).T
            k = np.arange(len(t))
            share = self.rates[t, :, p] - self.rates[t, :, self.chosen[t]]
            step = sparse.csr_matrix((-np.ones(len(t)), (k, t)), shape=(len(t), M))
            pair = sparse.csr_matrix((-np.ones(len(t)), (k, p)), shape=(len(t), self.P)) if self.P else None
            A.append(sparse.hstack([sparse.csr_matrix(share), step, *([pair] if self.P else [])]))
            b.append(np.zeros(len(t)))
        if cap is not None:
            A.append(sparse.csr_matrix(np.r_[np.zeros(L), np.ones(M + self.P)][None]))
            b.append(np.array([cap]))
        total = sparse.csr_matrix(np.r_[np.ones(L), np.zeros(M + self.P)][None])
        found = optimize.linprog(
            cost,
            A_ub=sparse.vstack(A) if A else None,
            b_ub=np.concatenate(b) if b else None,
            A_eq=total,
            b_eq=[1.0],
            bounds=[(0, 1)] * L + [(0, None)] * (M + self.P),
            method="highs",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        if found.x is None:
            raise ValueError(f"the linear programme has no solution ({found.message}); give a larger room, e.g. 1e-6.")
        return found.x
