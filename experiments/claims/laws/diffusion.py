"""Laws of masked diffusion."""

import jax
import numpy as np
from scipy import special

from experiments.claims.laws.law import Law
from models.objectives import masked_diffusion, schedules

PANELS, NODES = 400, 12  # Gauss-Legendre on each panel: exact for polynomials of degree 23.
LENGTHS = (1, 2, 5, 8)


def schedule_free_bound() -> Law:
    """The bound of masked diffusion weighs each masked set by its size alone: all noise schedules have one bound.

    The weight of a set of k of L tokens, the integral over t of w(t) m^k (1 - m)^(L-k) with the weight w and mask rate
    m of each schedule, is integrated numerically and set against the incomplete Beta function of the rates that the
    schedule reaches, which is (k-1)! (L-k)! / L! where these are 0 to 1; so is what the exact bound of the house uses.
    Error: relative. Tolerance: 4,800 terms of relative error 2^-52 each, and powers of up to 8 factors.

    Source: Sahoo et al. 2024, arXiv:2406.07524; Shi et al. 2024, arXiv:2406.04329
    """
    far, cases = 0.0, 0
    x, share = np.polynomial.legendre.leggauss(NODES)
    edges = np.linspace(0, 1, PANELS + 1)
    t = (edges[:-1, None] + (x + 1) / 2 / PANELS).reshape(-1)
    share = np.tile(share / 2 / PANELS, PANELS)
    with jax.enable_x64(True):
        for name in schedules.NAMES:
            schedule = schedules.get(name)
            mask, keep, weight = (
                np.asarray(f(t), np.float64) for f in (schedule.mask, schedule.alpha, schedule.weight)
            )
            low, high = (float(schedule.mask(end)) for end in (0.0, 1.0))
            for length in LENGTHS:
                used = masked_diffusion.set_weights(length, name, limits=(0, 1))
                for k in range(1, length + 1):
                    found = float((share * weight * mask**k * keep ** (length - k)).sum())
                    whole = special.beta(k, length - k + 1)
                    reached = special.betainc(k, length - k + 1, high) - special.betainc(k, length - k + 1, low)
                    far = max(far, *(float(abs(value / (whole * reached) - 1)) for value in (found, used[k])))
                    cases += 1
    return Law(far, 16 * PANELS * NODES * 2.0**-52, cases)
