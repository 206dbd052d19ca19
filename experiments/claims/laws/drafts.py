"""Laws of speculative decoding."""

import itertools

import jax
import numpy as np

from experiments.claims.laws.law import Law
from experiments.generation.serving import clock
from models.decoding.drafts import realign, trees
from models.decoding.drafts import sequoia as dynamic
from models.decoding.verify import continuous, siblings, walk
from models.decoding.verify import kseq as coefficients
from models.decoding.verify import laws as verify

V, LENGTH = 3, 3
SHAPES = ((1,), (2,), (3,), (2, 2), (1, 1, 1))  # Children per node, by depth.
# A probability is a sum of at most 3^4 3^3 products of fewer than 16 factors, each rounded to 2^-53.
TOLERANCE = 16 * 3**7 * 2.0**-53


def chains(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two chains `[V, V]`: target and draft, rows the laws after each token; one peaked, one flat."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(V, 0.6), V), rng.dirichlet(np.full(V, 2.0), V)


def strings(rule: siblings.Rule, shape: tuple[int, ...], replace: bool, seed: int) -> float:
    """Total variation between strings of repeated rounds and strings of the target."""
    target, draft = ((lambda prefix, rows=rows: rows[prefix[-1] if prefix else 0]) for rows in chains(seed))
    found, _ = verify.rounds(lambda prefix: verify.one_tree(rule, target, draft, shape, replace, prefix), LENGTH, V)
    return verify.total_variation(found, verify.sequential(target, LENGTH, V))


def recursive() -> Law:
    """Rounds of drafts verified by repeated token rules write strings with the target's probabilities.

    Drafts are drawn with and without replacement, as one node, trees and chains, against Markov chains of 3 symbols;
    every set of drafts and every way to accept them is summed over. Error: total variation.

    Source: Leviathan et al. 2023, arXiv:2211.17192; Miao et al. 2023, arXiv:2305.09781; Chen et al. 2024,
    arXiv:2402.12374
    """
    cases = list(itertools.product(SHAPES, (True, False), (0, 1)))
    with jax.enable_x64(True):
        far = max(strings(siblings.recursive, *case) for case in cases)
    return Law(far, TOLERANCE, len(cases))


def kseq() -> Law:
    """k-SEQ at its smallest valid rho writes strings with the target's probabilities, for every number of drafts.

    As `recursive`, with independent drafts. Error: total variation.

    Source: Sun et al. 2023, "SpecTr", arXiv:2310.15141
    """
    cases = list(itertools.product(SHAPES, (0, 1)))
    with jax.enable_x64(True):
        # A rule of its own, so that no compiled program of another rho is used.
        rule = lambda p, q, drafts, valid: siblings.kseq(p, q, drafts, valid)  # noqa: E731
        far = max(strings(rule, shape, True, seed) for shape, seed in cases)
        for shape, seed in cases:
            p, q = (rows[0] for rows in chains(seed))
            k = shape[0]
            rho = float(coefficients.smallest_rho(p, q, k))
            beta = np.minimum(q, p / rho).sum()
            far = max(far, 1 - (1 - beta) ** k - rho * beta)  # Valid.
            if rho > 1:
                far = max(far, abs(1 - (1 - beta) ** k - rho * beta))  # And the smallest: the equation holds.
    return Law(far, TOLERANCE, 2 * len(cases))


def expected_tokens() -> Law:
    """A round of g drafts, each accepted with chance a, gives (1 - a^(g+1)) / (1 - a) tokens.

    The lengths of the strings of a round, enumerated with one law p and one draft law q at every position, so that
    a = sum min(p, q). Error: relative.

    Source: Leviathan et al. 2023, arXiv:2211.17192, equation 1
    """
    far, cases = 0.0, list(itertools.product((1, 2, 3), (0, 1, 2)))
    with jax.enable_x64(True):
        for g, seed in cases:
            p, q = (rows[0] for rows in chains(seed))
            a = float(np.minimum(p, q).sum())
            round_ = verify.one_tree(siblings.recursive, lambda _, p=p: p, lambda _, q=q: q, (1,) * g, True)
            mean = sum(len(string) * mass for string, mass in round_.items())
            far = max(far, abs(mean / clock.tokens_per_round(a, g) - 1))
    return Law(far, 4 * 3**4 * 2.0**-53 * 16, len(cases))


def best_first() -> Law:
    """A heap that expands the likeliest slot holds the N largest path products of the draft.

    All paths of up to N tokens of 3 symbols are multiplied out and sorted. Error: relative, over the N products.

    Source: Xiong et al. 2024, "DySpec", arXiv:2410.11744
    """
    far, cases = 0.0, list(itertools.product((1, 3, 6), (0, 1, 2)))
    for nodes, seed in cases:
        _, rows = chains(seed)
        draft = lambda path, rows=rows: rows[path[-1] if path else 0]  # noqa: E731
        every = []
        for n in range(1, nodes + 1):  # A longer path has that many prefixes, all of them at least as likely.
            for path in itertools.product(range(V), repeat=n):
                every.append(np.prod([draft(path[:i])[x] for i, x in enumerate(path)]))
        wanted = np.sort(every)[::-1][:nodes]
        found = np.sort(trees.best_first(draft, nodes).value[1:])[::-1]
        far = max(far, float(np.abs(found / wanted - 1).max()))
    return Law(far, 16 * 2.0**-53, len(cases))


def sequoia() -> Law:
    """Sequoia's dynamic program finds the tree of m nodes and l levels that is expected to accept most.

    Every ordered tree of up to 6 nodes is built. Error: relative. Tolerance: 6 sums and products.

    Source: Chen et al. 2024, arXiv:2402.12374
    """
    far, cases = 0.0, 0
    for acceptance in (np.array([0.5, 0.3, 0.1]), np.array([0.9, 0.05, 0.01])):
        T, _ = dynamic.table(acceptance, 6, 4)
        for m, levels in itertools.product(range(1, 7), range(1, 5)):
            values = [_accepted(tree, acceptance) for tree in _trees(m, levels, len(acceptance))]
            if values:
                far = max(far, abs(T[m, levels].max() / max(values) - 1))
                cases += 1
    return Law(float(far), 12 * 2.0**-53, cases)


def _trees(m: int, levels: int, most: int):
    """All ordered trees of m nodes, at most `levels` levels and `most` children a node, as tuples of children."""
    if levels < 1:
        return
    for many in range(min(most, m - 1) + 1):
        for split in itertools.product(range(1, m), repeat=many):
            if sum(split) == m - 1:
                yield from itertools.product(*(list(_trees(size, levels - 1, most)) for size in split))


def _accepted(tree: tuple, acceptance: np.ndarray) -> float:
    return 1 + sum(acceptance[b] * _accepted(child, acceptance) for b, child in enumerate(tree))


def pearl() -> Law:
    """PEARL takes 1 step for a rejected first draft, else 2 + floor((L - 1) / g) for a run of L accepted ones.

    Runs of 0 to 12 drafts are walked step by step. Error: in steps and tokens.

    Source: Liu et al. 2024, arXiv:2408.11850
    """
    far, cases = 0, list(itertools.product(range(13), (1, 2, 4, 5)))
    for run, g in cases:
        steps = clock.pearl_trace(lambda position, run=run: position != 10 + run, g, 10, 11 + run + g)
        count, length = next(((i + 1, step.after) for i, step in enumerate(steps) if step.rejected), (0, 0))
        far = max(far, abs(count - (1 if run == 0 else 2 + (run - 1) // g)), abs(length - (11 + run)))
    return Law(float(far), 0.0, len(cases))


def gaussians() -> Law:
    """A drafted Gaussian, accepted or proposed again, has the target's density; 2 Phi(-d / 2) of the drafts stay.

    At drawn points of up to three dimensions q min(1, p / q) + p max(0, 1 - q / p) is p, scales of both their own; with
    one scale the accepted mass is an integral over the line between the means. Error: relative to the density, and of
    the integral.

    Source: Wang et al. 2024, arXiv:2411.11925
    """
    far, cases, rng = 0.0, 0, np.random.default_rng(0)
    node, weight = np.polynomial.legendre.leggauss(120)
    with jax.enable_x64(True):
        for D in (1, 2, 3):
            mean, scale = rng.normal(size=(2, D)), rng.uniform(0.5, 2, (2, D))
            x = mean[rng.integers(0, 2, 500)] + 2 * rng.normal(size=(500, D))
            p, q = (np.asarray(continuous.log_normal(x, m, s)) for m, s in zip(mean, scale, strict=True))
            kept, again = continuous.accept_chance(p, q), continuous.residual_chance(p, q)
            far = max(far, float(np.abs(np.exp(q - p) * kept + again - 1).max()))
            # Along the line between means that are d scales apart both are normal, and elsewhere alike.
            d = float(np.sqrt(np.sum(((mean[0] - mean[1]) / scale[0]) ** 2)))
            mass = 0.0
            for low, high in ((-12, d / 2), (d / 2, d + 12)):  # The smaller of the two has a kink in the middle.
                at = low + (node + 1) / 2 * (high - low)
                smaller = np.exp(-0.5 * np.maximum(at**2, (at - d) ** 2)) / np.sqrt(2 * np.pi)
                mass += float(smaller @ weight) * (high - low) / 2
            far = max(far, abs(float(continuous.overlap(mean[0], mean[1], scale[0])) - mass))
            cases += 501
    # exp of a difference of logarithms up to 200, each a sum of 3 D terms that are rounded to 2^-53 of it.
    return Law(far, 2 * 200 * 9 * 2.0**-53, cases)


def realignment() -> Law:
    """A batch that is padded anew after each ragged round and rows that keep their own lengths hold the same tokens.

    Rounds of four rows with drawn numbers of accepted drafts: a left-padded cache moved by EQSPEC's map, and a cache
    filled from the front where accepted drafts move within their row. Error: tokens that differ.

    Source: Zhang et al. 2025, arXiv:2510.22876
    """
    rng, wrong, cases, B, drafts = np.random.default_rng(0), 0, 0, 4, 3
    for _ in range(20):
        length = rng.integers(2, 9, B)
        pad = length.max() - length
        texts = [[f"{b}.{i}" for i in range(n)] for b, n in enumerate(length)]
        left = [[None] * p + text[:-1] for p, text in zip(pad, texts, strict=True)]
        own = [text[:-1] for text in texts]
        for _ in range(6):
            accepted = rng.integers(1, drafts + 2, B)
            found = realign.eqspec(length, pad, accepted)
            for b, n in enumerate(accepted):
                read = [f"{b}.{length[b] - 1 + j}" for j in range(n)]  # the last token, and the drafts that stay
                path = np.concatenate([np.arange(1, n), np.full(drafts + 1 - n, -1)])  # node 0 is the last token
                slots = [*own[b], *read, *["rejected"] * (drafts + 1 - n)]
                map_ = np.asarray(walk.commit_map(path[None], np.array([n - 1]), np.array([len(own[b])]), len(slots)))[
                    0
                ]
                own[b] = [slots[i] for i in map_][: len(own[b]) + n]
                before = left[b] + read
                left[b] = [before[i] if i >= 0 else None for i in found.source[b]]
                wrong += [x for x in left[b] if x is not None] != own[b]
                cases += 1
            length, pad = length + accepted, found.pad
    return Law(float(wrong), 0.0, cases)
