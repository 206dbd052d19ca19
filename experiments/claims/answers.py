"""How well a trained model answers the held-out rows of a task: what a likelihood does not say."""

import os

import jax
import jax.numpy as jnp
import numpy as np

from data import tasks
from experiments import inputs, trained
from experiments.program import global_batch


def score(workdir: str | os.PathLike) -> dict[str, float]:
    """`accuracy` of answer tokens and `exact`, the share of rows whose every answer is right, over the eval batches.

    Each answer is the most probable token given the right ones before it, so `exact` is that of greedy decoding. The
    model in `workdir` must be autoregressive.
    """
    from models.objectives import next_token

    model = trained.load(workdir)

    @jax.jit
    def predict(params, batch):
        lm = model.program.merge(params)
        rows = {name: batch[name] for name in ("positions", "segment_ids") if name in batch}
        features, _ = lm(batch["tokens"], mask=next_token.mask, **rows)
        return jnp.argmax(lm.logits(features), axis=-1)

    found = []
    for batch in inputs.eval_batches(model.config, model.corpus):
        predicted = np.asarray(predict(model.params, global_batch(batch, model.program)))
        found.append(tasks.score(batch, predicted=predicted))
    weights = {"accuracy": "answers", "exact": "rows"}
    return {
        key: float(np.average([f[key] for f in found], weights=[f[by] for f in found])) for key, by in weights.items()
    }
