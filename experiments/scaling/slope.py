"""By what power a loss falls with compute over the range that was tried: a slope, not a law that reaches further."""

from typing import Any

import numpy as np


def exponent(C: Any, loss: Any, floor: float = 0.0) -> tuple[float, float]:
    """(alpha, misfit) of loss - E = A C^-alpha: alpha = -sum (c - mean c)(l - mean l) / sum (c - mean c)^2, c = log C
    and l = log(loss - E); misfit is the root mean square of l less the line.

    With E = 0 alpha is the local exponent -d log loss / d log C, averaged over the range of C. Where the loss ends at
    E > 0, that is the share (loss - E) / loss of the law's own exponent, and so smaller the nearer E is.

    Args:
      C: FLOPs `[n]`, n >= 2, not all equal.
      loss: nats `[n]`, above `floor`.
      floor: E, nats.

    Errors: ValueError for fewer than two different C, or a loss that is not above the floor.
    """
    C, left = np.asarray(C, float), np.asarray(loss, float) - floor
    if C.ndim != 1 or C.shape != left.shape or not (C > 0).all() or np.ptp(C) == 0:
        raise ValueError(f"C={C.tolist()!r} gives no slope for {left.shape} losses; use as many, e.g. (1e9, 1e10).")
    if not (left > 0).all():
        raise ValueError(f"floor={floor!r} is not below the loss {float((left + floor).min())!r}; use e.g. floor=0.0.")
    c, y = np.log(C) - np.log(C).mean(), np.log(left) - np.log(left).mean()
    slope = float(c @ y / (c @ c))
    return -slope, float(np.sqrt(np.mean((y - slope * c) ** 2)))
