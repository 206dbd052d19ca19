"""Laws of scaling laws."""

import itertools

import numpy as np

from experiments.claims.laws.law import Law
from experiments.scaling import laws

_ROUNDINGS = 64 * 2.0**-52  # Powers and products, of logarithms up to 60 in size.


def overtraining() -> Law:
    """The over-training law is the Chinchilla form with alpha = beta = 2 eta, a = 6^eta A, b = 6^eta B and C = 6 N D.

    Losses of 100 drawn runs under 3 sets of parameters. Error: relative.

    Source: Gadre et al. 2024, arXiv:2403.08540; Hoffmann et al. 2022, arXiv:2203.15556
    """
    rng, far = np.random.default_rng(0), 0.0
    N, D = np.exp(rng.uniform(np.log(1e5), np.log(1e11), (2, 100)))
    runs = {"parameters": N, "tokens": D, "flops": 6 * N * D, "tokens_per_parameter": D / N}
    for E, A, B, eta in ((1.7, 400.0, 1200.0, 0.15), (0.1, 30.0, 3.0, 0.3), (2.0, 1.0, 90.0, 0.05)):
        plain = E + A * N ** (-2 * eta) + B * D ** (-2 * eta)
        values = {"E": E, "a": A * 6**eta, "b": B * 6**eta, "eta": eta}
        far = max(far, float(np.abs(laws.OVERTRAINING.predict(values, runs) / plain - 1).max()))
        chinchilla = {"E": E, "A": A, "B": B, "alpha": 2 * eta, "beta": 2 * eta}
        far = max(far, float(np.abs(laws.CHINCHILLA.predict(chinchilla, runs) / plain - 1).max()))
    return Law(far, _ROUNDINGS, 6)


def compute_optimal() -> Law:
    """At the compute-optimal size both terms gain alike: alpha A N^-alpha = beta B D^-beta, with 6 N D = C.

    For five sets of exponents at three budgets. Error: relative, of both equations.

    Source: Hoffmann et al. 2022, arXiv:2203.15556, equation 4
    """
    far, cases = 0.0, 0
    exponents = ((0.34, 0.28), (0.5, 0.5), (0.1, 0.7), (0.7, 0.1), (0.3, 0.31))
    for (alpha, beta), C in itertools.product(exponents, (1e12, 1e18, 1e24)):
        A, B = 406.4, 410.7
        best = laws.compute_optimal({"E": 1.69, "A": A, "B": B, "alpha": alpha, "beta": beta}, C)
        N, D = float(best["parameters"]), float(best["tokens"])
        gain = (alpha * A * N**-alpha) / (beta * B * D**-beta)
        far = max(far, abs(gain - 1), abs(6 * N * D / C - 1))
        cases += 1
    return Law(far, _ROUNDINGS, cases)
