"""Placement: which device holds which expert of each layer, `[L, E]` device numbers, from a trace's counts.

A token crosses where its experts in neighbouring layers lie on different devices. The number of crossings depends on a
trace only through R[l, e, e'] (`traces.transitions`). Every device holds E / G experts of every layer.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import optimize, sparse

from experiments.routing import traces


def contiguous(layers: int, experts: int, devices: int) -> np.ndarray:
    """Expert e on device e G / E in every layer, `[L, E]`: what is done without a trace."""
    _divides(experts, devices)
    return np.tile(np.arange(experts) // (experts // devices), (layers, 1))


def crossings(counted: Any, placement: Any) -> int:
    """Choices that change the device between layers: the sum of R[l, e, e'] where (l, e) and (l + 1, e') lie apart."""
    placement = np.asarray(placement)
    moves = placement[:-1, :, None] != placement[1:, None, :]
    return int(np.sum(np.asarray(counted) * moves))


def crossings_of(trace: Any, placement: Any) -> int:
    """`crossings` from the trace itself, `[N, L]` or `[N, L, K]`: every pair of choices of a token counts."""
    placement = np.asarray(placement)
    trace = traces.checked(trace, placement.shape[1])
    total = 0
    for layer in range(trace.shape[1] - 1):
        here, after = trace[:, layer, :, None], trace[:, layer + 1, None, :]
        moved = placement[layer][here] != placement[layer + 1][after]
        total += int(np.sum(moved & (here >= 0) & (after >= 0)))
    return total


def exflow_cost(trace: Any, placement: Any, per_node: int) -> tuple[float, float, float]:
    """(cost, steps inside a node, steps between nodes) as means over the steps of a top-1 trace `[N, L]`.

    A step costs 0 on one device, 1 inside a node of `per_node` devices, 2 between nodes: ExFlow's report, whose printed
    "cintra" is the second times (L - 1) / (per_node - 1).
    """
    placement, trace = np.asarray(placement), np.asarray(trace)
    at = np.stack([placement[layer][trace[:, layer]] for layer in range(trace.shape[1])], axis=1)
    moved = at[:, 1:] != at[:, :-1]
    same = at[:, 1:] // per_node == at[:, :-1] // per_node
    inside, between = np.mean(moved & same), np.mean(moved & ~same)
    return float(inside + 2 * between), float(inside), float(between)


def exflow(counted: Any, devices: int, *, time_limit: float = 60.0) -> np.ndarray:
    """ExFlow's integer program by HiGHS: the placement `[L, E]` with the fewest crossings, E / G experts a device.

    Binary x[l, e, g]; sum_g x = 1; sum_e x = E / G for each layer and device; cost[l, e, e'] >= |x[l, e, g] -
    x[l+1, e', g]| for each g, of weight R[l, e, e'] where that is not 0.

    Args:
      counted: R `[L - 1, E, E]`.
      devices: G, a divisor of E.
      time_limit: seconds after which the best placement found so far is taken.

    Source: Yao et al. 2024, arXiv:2401.08383.
    """
    R = np.asarray(counted)
    L, E, G = len(R) + 1, R.shape[-1], devices
    _divides(E, G)
    at = lambda layer, e, g: (layer * E + e) * G + g  # noqa: E731
    pairs = np.argwhere(R > 0)
    places, total = L * E * G, L * E * G + len(pairs)
    rows, columns, values, least, most = [], [], [], [], []

    def add(terms: list[tuple[int, float]], low: float, high: float) -> None:
        rows.extend([len(least)] * len(terms))
        columns.extend(column for column, _ in terms)
        values.extend(value for _, value in terms)
        least.append(low)
        most.append(high)

    for layer in range(L):
        for e in range(E):
            add([(at(layer, e, g), 1) for g in range(G)], 1, 1)
        for g in range(G):
            add([(at(layer, e, g), 1) for e in range(E)], E // G, E // G)
    for i, (layer, e, after) in enumerate(pairs):
        for g in range(G):
            here, there = at(layer, e, g), at(layer + 1, after, g)
            add([(places + i, 1), (here, -1), (there, 1)], 0, np.inf)
            add([(places + i, 1), (here, 1), (there, -1)], 0, np.inf)
    cost = np.concatenate([np.zeros(places), R[tuple(pairs.T)].astype(float)])
    x = _solve(cost, (rows, columns, values, least, most), places, total, time_limit)
    return x[:places].reshape(L, E, G).argmax(-1)


def hierarchical(counted: Any, nodes: int, per_node: int, *, time_limit: float = 60.0) -> np.ndarray:
    """ExFlow in two stages: experts to nodes first, then, inside each node, to its devices. `[L, E]` devices.

    In the second stage only transitions with both ends inside the node count.
    """
    R = np.asarray(counted)
    outer = exflow(R, nodes, time_limit=time_limit)
    placement = np.zeros_like(outer)
    for node in range(nodes):
        mine = [np.flatnonzero(outer[layer] == node) for layer in range(len(outer))]
        inner = np.stack([R[i][np.ix_(mine[i], mine[i + 1])] for i in range(len(R))])
        for layer, devices in enumerate(exflow(inner, per_node, time_limit=time_limit)):
            placement[layer, mine[layer]] = node * per_node + devices
    return placement


def bisection(counted: Any, devices: int, *, time_limit: float = 60.0) -> np.ndarray:
    """ExFlow by halves: into two parts, each of them again, until there are G (a power of two) parts."""
    if devices == 1:
        return np.zeros((len(counted) + 1, np.shape(counted)[-1]), int)
    if devices & (devices - 1):
        raise ValueError(f"devices={devices} is no power of two; use e.g. {1 << (devices.bit_length() - 1)}.")
    R = np.asarray(counted)
    halves = exflow(R, 2, time_limit=time_limit)
    placement = np.zeros_like(halves)
    for half in range(2):
        mine = [np.flatnonzero(halves[layer] == half) for layer in range(len(halves))]
        inner = np.stack([R[i][np.ix_(mine[i], mine[i + 1])] for i in range(len(R))])
        for layer, found in enumerate(bisection(inner, devices // 2, time_limit=time_limit)):
            placement[layer, mine[layer]] = half * (devices // 2) + found
    return placement


def balanced(experts: int, devices: int) -> Iterator[tuple[int, ...]]:
    """Every way to lay E experts on G devices, E / G on each."""
    _divides(experts, devices)

    def fill(left: list[int]) -> Iterator[tuple[int, ...]]:
        if not any(left):
            yield ()
        for g, free in enumerate(left):
            if free:
                left[g] -= 1
                for rest in fill(left):
                    yield (g, *rest)
                left[g] += 1

    yield from fill([experts // devices] * devices)


def exact(counted: Any, devices: int) -> np.ndarray:
    """The placement with the fewest crossings by dynamic programming over the placements of single layers, `[L, E]`.

    Layers form a chain, so the best start of a layer's placement is found once. E! / ((E / G)!)^G placements a layer:
    for small E, or to judge a solver.
    """
    R = np.asarray(counted)
    ways = np.array(list(balanced(R.shape[-1], devices)))
    cost, came = np.zeros(len(ways)), []
    for layer in R:
        # Weight of e -> e' by devices of the ends: [ways, ways'].
        onto = np.eye(devices)[ways]  # [ways, E, G]
        kept = np.einsum("weg,ef,vfg->wv", onto, layer, onto, optimize=True)
        step = cost[:, None] + layer.sum() - kept
        came.append(step.argmin(0))
        cost = step.min(0)
    best = [int(cost.argmin())]
    for back in reversed(came):
        best.append(int(back[best[-1]]))
    return ways[best[::-1]]


def moetuner_clusters(load: Any, devices: int, *, time_limit: float = 60.0) -> np.ndarray:
    """MoETuner's first program for one layer: experts in G clusters of E / G with equal loads, `load [E] -> [E]`.

    Binary x[c, e], sum_c x = 1, sum_e x = E / G; the least sum_c |T_c - mean T|, T_c = sum_e load_e x[c, e].

    Source: Go and Mahajan 2025, arXiv:2502.06643.
    """
    load = np.asarray(load, float)
    E, G = len(load), devices
    _divides(E, G)
    rows, columns, values, least, most = [], [], [], [], []
    for e in range(E):
        rows, columns, values = rows + [len(least)] * G, columns + [c * E + e for c in range(G)], values + [1.0] * G
        least, most = [*least, 1], [*most, 1]
    for c in range(G):
        mine = [c * E + e for e in range(E)]
        rows, columns, values = rows + [len(least)] * E, columns + mine, values + [1.0] * E
        least, most = [*least, E // G], [*most, E // G]
        for sign in (1.0, -1.0):  # d_c >= sign (T_c - mean)
            rows += [len(least)] * (E + 1)
            columns += [*mine, G * E + c]
            values += [*(-sign * load), 1.0]
            least, most = [*least, -sign * load.sum() / G], [*most, np.inf]
    cost = np.concatenate([np.zeros(G * E), np.ones(G)])
    x = _solve(cost, (rows, columns, values, least, most), G * E, G * E + G, time_limit)
    return x[: G * E].reshape(G, E).argmax(0)


def moetuner(load: Any, counted: Any, bandwidth: Any, *, time_limit: float = 60.0) -> np.ndarray:
    """MoETuner: clusters of equal load in each layer, then clusters to devices by the slowest exchange, `[L, E]`.

    Second program: binary y[l, c, g], one cluster a device; the least sum over layers of max over g1 != g2 of
    C_l(g1, g2) / B(g1, g2), C_l the tokens that move from g1 to g2 between layer l and l + 1.

    Args:
      load: P `[L, E]` tokens.
      counted: R `[L - 1, E, E]`.
      bandwidth: B `[G, G]`, in any unit.
      time_limit: seconds for each program.
    """
    load, R, B = np.asarray(load), np.asarray(counted), np.asarray(bandwidth, float)
    G = len(B)
    clusters = np.stack([moetuner_clusters(row, G, time_limit=time_limit) for row in load])
    onto = np.eye(G)[clusters]  # [L, E, G]
    moved = np.einsum("lec,lef,lfd->lcd", onto[:-1], R, onto[1:])  # tokens from cluster c to cluster d
    devices = np.stack(_by_slowest_exchange(moved, B))
    return np.take_along_axis(devices, clusters, axis=1)


def slowest_exchanges(moved: Any, devices: Any, bandwidth: Any) -> float:
    """sum_l max_{g1 != g2} C_l(g1, g2) / B(g1, g2): `moved [L - 1, G, G]` by cluster, `devices [L, G]` of clusters."""
    return float(
        sum(_slowest(m, a, b, np.asarray(bandwidth)) for m, a, b in zip(moved, devices, devices[1:], strict=False))
    )


def _slowest(moved: np.ndarray, here: Any, there: Any, bandwidth: np.ndarray) -> float:
    time = moved / bandwidth[np.ix_(here, there)]
    return float(np.max(np.where(np.asarray(here)[:, None] == np.asarray(there)[None], 0, time), initial=0))


def _by_slowest_exchange(moved: np.ndarray, bandwidth: np.ndarray) -> list[tuple[int, ...]]:
    """Devices of each layer's clusters: a chain, so dynamic programming over permutations (G! a layer) is exact."""
    ways = list(itertools.permutations(range(len(bandwidth))))
    cost, came = np.zeros(len(ways)), []
    for layer in moved:
        step = np.array([[_slowest(layer, a, b, bandwidth) for b in ways] for a in ways]) + cost[:, None]
        came.append(step.argmin(0))
        cost = step.min(0)
    best = [int(cost.argmin())]
    for back in reversed(came):
        best.append(int(back[best[-1]]))
    return [ways[i] for i in best[::-1]]


def slots(placement: Any) -> np.ndarray:
    """The place of each expert when a layer's experts lie in order of their devices: a permutation, `[L, E] -> [L, E]`.

    Slot s holds the expert e with slots[l, e] = s; parameters move to their slot, and an index e of the router is
    replaced by its slot. The router never sees it.
    """
    order = np.argsort(np.asarray(placement), axis=1, kind="stable")
    found = np.empty_like(order)
    np.put_along_axis(found, order, np.arange(order.shape[1])[None], axis=1)
    return found


def _divides(experts: int, devices: int) -> None:
    if devices < 1 or experts % devices:
        raise ValueError(f"devices={devices} does not divide {experts} experts; use e.g. devices=1.")


def _solve(cost: Any, terms: tuple, whole: int, total: int, time_limit: float) -> np.ndarray:
    """The best point of a program whose first `whole` variables are 0 or 1, the rest at least 0."""
    rows, columns, values, least, most = terms
    matrix = sparse.csr_array((values, (rows, columns)), shape=(len(least), total))
    found = optimize.milp(
        cost,
        constraints=optimize.LinearConstraint(matrix, least, most),
        integrality=np.arange(total) < whole,
        bounds=optimize.Bounds(0, np.where(np.arange(total) < whole, 1, np.inf)),
        options={"time_limit": time_limit},
    )
    if found.x is None:
        raise ValueError(f"no placement was found in {time_limit} seconds ({found.message}); use a longer time_limit.")
    return found.x
