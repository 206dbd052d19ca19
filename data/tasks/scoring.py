"""How well the answers of a batch were given: accuracy, and bits where losses are known."""

import math
from collections.abc import Mapping

import numpy as np


def score(
    batch: Mapping[str, np.ndarray], *, predicted: np.ndarray | None = None, nats: np.ndarray | None = None
) -> dict[str, float]:
    """Sums over the answers of one batch as means; only places where `batch["scored"]` holds count.

    Args:
      batch: as a loader gives it; `targets` and `scored` `[B, T]` are read.
      predicted: `[B, T]` ids, the most probable (or drawn) symbol at each place.
      nats: `[B, T]` loss at each place.

    Returns: `answers` (how many), `rows` (with an answer), and with `predicted` `accuracy` (of answer tokens) and
      `exact` (rows whose every answer is right), with `nats` `loss` (nats per answer) and `bits` (the same in bits).
      Means over several batches weigh by `answers`, and `exact` by `rows`.

    Errors: ValueError where a shape differs from that of `scored`.
    """
    scored = np.asarray(batch["scored"], bool)
    for key, value in (("predicted", predicted), ("nats", nats)):
        if value is not None and np.shape(value) != scored.shape:
            raise ValueError(f"{key} has shape {np.shape(value)}, the batch {scored.shape}; use one value per target.")
    answers, asked = int(scored.sum()), scored.any(axis=1)
    found: dict[str, float] = {"answers": answers, "rows": int(asked.sum())}
    if predicted is not None:
        right = np.asarray(predicted) == np.asarray(batch["targets"])
        found["accuracy"] = float(right[scored].mean()) if answers else math.nan
        found["exact"] = float((right | ~scored).all(axis=1)[asked].mean()) if answers else math.nan
    if nats is not None:
        found["loss"] = float(np.asarray(nats, np.float64)[scored].mean()) if answers else math.nan
        found["bits"] = found["loss"] / math.log(2)
    return found
