"""Tiny alphabets on which every law can be written out: the cases A to D, their denoisers, and distances of laws.

Everything here is plain numpy in float64 and shares no code with the rooms under test.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

CASES = ("A", "B", "C", "D")


def joint(case: str, seed: int = 0) -> np.ndarray:
    """Joint law [V] * L. A: V=3 L=4 Dirichlet; B: V=2 L=6 Dirichlet; C: V=4 L=3 Markov chain; D: V=2 L=3 even
    parity."""
    rng = np.random.default_rng(seed + ord(case))
    if case in "AB":
        size, length = (3, 4) if case == "A" else (2, 6)
        return rng.dirichlet(np.full(size**length, 0.6)).reshape((size,) * length)
    if case == "C":
        start, step = rng.dirichlet(np.full(4, 0.5)), rng.dirichlet(np.full(4, 0.5), size=4)
        return np.einsum("a,ab,bc->abc", start, step, step)
    strings = np.array(list(itertools.product(range(2), repeat=3)))
    return np.where(strings.sum(1) % 2 == 0, 0.25, 0.0).reshape(2, 2, 2)


def states(size: int, length: int) -> np.ndarray:
    """All strings over 0..size-1 in lexicographic order: [size ** length, length]."""
    return np.array(list(itertools.product(range(size), repeat=length)))


def oracle_table(law: np.ndarray) -> np.ndarray:
    """log P(x_l = v | visible tokens) for every partly masked state (mask = V): [(V+1) ** L, L, V]."""
    size, length = law.shape[0], law.ndim
    out = []
    for z in states(size + 1, length):
        visible = law[tuple(slice(None) if c == size else slice(c, c + 1) for c in z)]
        rows = []
        for l in range(length):
            marginal = visible.sum(tuple(i for i in range(length) if i != l))
            if z[l] != size:
                marginal = np.eye(size)[z[l]]
            rows.append(marginal / marginal.sum() if marginal.sum() > 0 else np.full(size, 1 / size))
        out.append(rows)
    with np.errstate(divide="ignore"):
        return np.log(np.array(out))


def tab_table(size: int, length: int, seed: int = 0, scale: float = 1.5) -> np.ndarray:
    """Random logits for every partly masked state; the conditionals of no joint law."""
    return scale * np.random.default_rng(seed).normal(size=((size + 1) ** length, length, size))


def denoiser(table: np.ndarray, dtype=jnp.float64):
    """A plain function logits = f(z, t) that reads `table` and ignores t."""
    length, size = table.shape[1:]
    rows, powers = jnp.asarray(table, dtype), np.array([(size + 1) ** (length - 1 - l) for l in range(length)])

    @jax.jit
    def denoise(z, t):
        del t
        return rows[(jnp.asarray(z) * powers).sum(-1)]

    return denoise


def probabilities(table: np.ndarray) -> np.ndarray:
    """Softmax of a table over its last axis."""
    p = np.exp(table - table.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def at(table: np.ndarray, z) -> np.ndarray:
    """The table's row for one state."""
    return table[np.ravel_multi_index(tuple(z), (table.shape[-1] + 1,) * table.shape[1])]


def order_law(table: np.ndarray, order) -> np.ndarray:
    """Law of decoding one token at a time in `order`: [V] * L."""
    p, (length, size) = probabilities(table), table.shape[1:]
    law = np.zeros((size,) * length)
    for x in states(size, length):
        z, total = np.full(length, size), 1.0
        for position in order:
            total *= at(p, z)[position, x[position]]
            z[position] = x[position]
        law[tuple(x)] = total
    return law


def random_order_law(table: np.ndarray) -> np.ndarray:
    """Law of decoding one token at a time in a uniformly random order."""
    orders = list(itertools.permutations(range(table.shape[1])))
    return sum(order_law(table, order) for order in orders) / len(orders)


def random_order_nll(table: np.ndarray) -> np.ndarray:
    """Mean over uniformly random orders of the chain-rule negative log likelihood: [V] * L."""
    orders = list(itertools.permutations(range(table.shape[1])))
    with np.errstate(divide="ignore"):
        return sum(-np.log(order_law(table, order)) for order in orders) / len(orders)


def entropy(law: np.ndarray) -> float:
    p = law[law > 0]
    return float(-(p * np.log(p)).sum())


def kl(p: np.ndarray, q: np.ndarray) -> float:
    keep = p > 0
    return float((p[keep] * np.log(p[keep] / q[keep])).sum())


def tv(p: np.ndarray, q: np.ndarray) -> float:
    return float(0.5 * np.abs(p - q).sum())


def histogram(tokens, size: int) -> np.ndarray:
    """Counts of strings: [V] * L from tokens [B, L]."""
    tokens = np.asarray(tokens)
    index = np.ravel_multi_index(tuple(tokens.T), (size,) * tokens.shape[1])
    return np.bincount(index, minlength=size ** tokens.shape[1]).reshape((size,) * tokens.shape[1])


def chi_square(counts: np.ndarray, law: np.ndarray, level: float = 1e-4) -> tuple[float, float]:
    """Pearson's statistic of counts against a law, cells with expectation below 5 pooled, and its limit at `level`."""
    expected, observed = law.ravel() * counts.sum(), counts.ravel().astype(float)
    assert observed[law.ravel() == 0].sum() == 0, "a string of probability zero was drawn"
    small = expected < 5
    groups_e, groups_o = expected[~small], observed[~small]
    if expected[small].sum() > 0:
        groups_e = np.append(groups_e, expected[small].sum())
        groups_o = np.append(groups_o, observed[small].sum())
    statistic = float(((groups_o - groups_e) ** 2 / np.maximum(groups_e, 1e-300)).sum())
    return statistic, float(scipy.stats.chi2.ppf(1 - level, len(groups_e) - 1))


def power(cells: int, draws: int, distance: float = 0.02, level: float = 1e-4) -> float:
    """A lower bound on the chance that `chi_square` refuses a law at total variation `distance`.

    By Cauchy-Schwarz sum (q-p)^2/p >= (sum |q-p|)^2, so the non-centrality is at least draws * (2 distance)^2.
    """
    limit = scipy.stats.chi2.ppf(1 - level, cells - 1)
    return float(scipy.stats.ncx2.sf(limit, cells - 1, draws * (2 * distance) ** 2))


def poisson_pmf(mean: float, count: int) -> float:
    return math.exp(count * math.log(mean) - mean - math.lgamma(count + 1)) if mean > 0 else float(count == 0)
