"""Newton-Schulz orthogonalisation in plain jnp: the specification of the op."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kernels.lengths import scaled_to

Triple = tuple[float, float, float]

COEFFICIENTS: dict[str, tuple[Triple, ...]] = {
    # Five different steps: singular values end in about [0.98, 1.14] after all five (LaCT language models).
    "quintic5": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    # One step repeated: singular values end in about [0.68, 1.20] (Muon; LaCT novel-view and video models).
    "nvs": ((3.4445, -4.7750, 2.0315),),
}
EPSILON = 1e-7


def triples(steps: int, coefficients: str | Sequence[Triple]) -> tuple[Triple, ...]:
    """The (a, b, c) of each of `steps` steps; the last triple of a set is repeated when `steps` exceeds the set."""
    if isinstance(coefficients, str):
        if coefficients not in COEFFICIENTS:
            raise ValueError(f"coefficients={coefficients!r} is not a known set; use one of {sorted(COEFFICIENTS)}.")
        coefficients = COEFFICIENTS[coefficients]
    if steps < 0:
        raise ValueError(f"steps={steps} is negative; use 5, or 0 to leave the matrix as it is.")
    table = tuple((float(a), float(b), float(c)) for a, b, c in coefficients)
    if steps and not table:
        raise ValueError("coefficients is empty; give at least one (a, b, c), e.g. (3.4445, -4.775, 2.0315).")
    return (table + table[-1:] * steps)[:steps]


def _product(a: jax.Array, b: jax.Array, low: jnp.dtype) -> jax.Array:
    """ab with operands rounded to `low`, in the type of a."""
    precision = None if jnp.dtype(low).itemsize < 4 else jax.lax.Precision.HIGHEST
    return jnp.matmul(a.astype(low), b.astype(low), precision=precision, preferred_element_type=a.dtype)


def _flipped(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)


def _turned(x: jax.Array, g: jax.Array) -> jax.Array:
    """x, on its side where g is tall: from the shape of g to that of the iterate and back."""
    return _flipped(x) if g.shape[-2] > g.shape[-1] else x


def _step(x: jax.Array, abc: Sequence[float | jax.Array], low: jnp.dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(`one_step`, A, bA + cAA) with A = XX^T; the last two are symmetric."""
    gram = _product(x, _flipped(x), low)
    polynomial = abc[1] * gram + abc[2] * _product(gram, gram, low)
    return abc[0] * x + _product(polynomial, x, low), gram, polynomial


def one_step(x: jax.Array, abc: Sequence[float | jax.Array], low: jnp.dtype) -> jax.Array:
    """aX + (bA + cAA)X with A = XX^T for wide (m <= n) matrices, operands of products rounded to `low`."""
    return _step(x, abc, low)[0]


def _scaled(g: jax.Array) -> jax.Array:
    """The first iterate: the wide one of G and G^T over its norm, in float32 (float64 for float64)."""
    x = _turned(g, g).astype(jnp.promote_types(g.dtype, jnp.float32))
    return scaled_to(x, None, (-2, -1), EPSILON)


def newton_schulz_reference(g: jax.Array, schedule: tuple[Triple, ...]) -> jax.Array:
    """Newton-Schulz of `[..., m, n]`: X <- aX + (bA + cAA)X with A = XX^T, on the short side.

    The iterate is kept in float32 (float64 for float64). Operands of the products are rounded to the dtype of `g`
    when that is a 16-bit type, and the products accumulate in float32.
    """
    x = _scaled(g)
    x, _ = jax.lax.scan(lambda x, abc: (one_step(x, abc, g.dtype), None), x, jnp.asarray(schedule, x.dtype))
    return _turned(x, g).astype(g.dtype)


def newton_schulz_gradient(g: jax.Array, cotangent: jax.Array, schedule: tuple[Triple, ...]) -> jax.Array:
    """The gradient for `g` from that of the result, both `[..., m, n]`; one step of it is compiled, not all.

    With P = bA + cAA, Y the cotangent of a step's result and S = YX^T + XY^T: X's is aY + PY + (bS + c(SA + AS))X.
    """
    low, (x, pull) = g.dtype, jax.vjp(_scaled, g)

    def forward(x, abc):
        following, gram, polynomial = _step(x, abc, low)
        return following, (x, gram, polynomial)

    def backward(y, kept):
        (a, b, c), (x, gram, polynomial) = kept
        both = _product(y, _flipped(x), low)
        both = both + _flipped(both)
        mixed = _product(both, gram, low)
        d_gram = b * both + c * (mixed + _flipped(mixed))
        return a * y + _product(polynomial, y, low) + _product(d_gram, x, low), None

    table = jnp.asarray(schedule, x.dtype)
    _, kept = jax.lax.scan(forward, x, table)
    y, _ = jax.lax.scan(backward, _turned(cotangent, g).astype(x.dtype), (table, kept), reverse=True)
    return pull(y)[0]
