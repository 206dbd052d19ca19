"""The loss of a trained model along its held-out rows, eighth by eighth."""

import os

import jax
import numpy as np

from experiments.program import global_batch, inputs
from experiments.settings.errors import Refused
from experiments.workdir import trained
from models.objectives import next_token

PARTS = 8


def along(workdir: str | os.PathLike) -> dict[str, float]:
    """`eighth 1` to `eighth 8`, nats a scored target of each eighth of the rows, over the eval batches, and `fall`.

    `fall` is how much lower the last eighth is than the second: that of a model that sees less than an eighth of a row
    back is 0 on average, where all targets behind the first eighth are alike.

    Errors: Refused for a model that is not read from left to right.
    """
    model = trained.load(workdir)
    if not model.program.objective.causal:
        raise Refused(f"objective={model.config.objective!r} has no loss by place; use score='loss' of the claim.")

    @jax.jit
    def nats(params, batch):
        lm = model.program.merge(params)
        return next_token.target_nll(lm, next_token.forward(lm, batch).features, batch["targets"])

    batches = [*inputs.eval_batches(model.config, model.corpus)]
    found = [np.asarray(nats(model.params, global_batch(batch, model.program)), np.float64) for batch in batches]
    parts = by_part(np.concatenate(found), np.concatenate([np.asarray(batch["scored"], bool) for batch in batches]))
    named = {f"eighth {k + 1}": float(loss) for k, loss in enumerate(parts)}
    return {"fall": named["eighth 2"] - named[f"eighth {PARTS}"], **named}


def by_part(nats: np.ndarray, scored: np.ndarray, parts: int = PARTS) -> np.ndarray:
    """`[parts]`: sum s n / sum s over the rows and the places of each of `parts` equal pieces; `nats` n, `scored` s
    `[R, T]`.

    Errors: Refused where the pieces are not equal, or one has no target.
    """
    T = nats.shape[1]
    if T % parts:
        raise Refused(f"data.length={T} has no {parts} equal parts; use e.g. data.length={parts * max(1, T // parts)}.")
    total, count = (np.sum(x, axis=0).reshape(parts, -1).sum(1) for x in (np.where(scored, nats, 0.0), scored))
    if not count.all():
        raise Refused(f"part {int(np.argmin(count)) + 1} of {parts} of the rows has no scored target; use other data.")
    return total / count
