"""Newton-Schulz orthogonalisation of batches of matrices (Muon, LaCT)."""

from collections.abc import Sequence

import jax

from kernels.newton_schulz.reference import COEFFICIENTS, Triple, newton_schulz_reference

__all__ = ["COEFFICIENTS", "newton_schulz"]


def newton_schulz(
    g: jax.Array,
    steps: int = 5,
    coefficients: str | Sequence[Triple] = "quintic5",
    *,
    implementation: str | None = None,
) -> jax.Array:
    return newton_schulz_reference(g, steps, coefficients)
