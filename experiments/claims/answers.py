"""Accuracy of a trained model on the held-out rows of a task."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data import tasks
from experiments import generation
from experiments.program import global_batch, inputs
from experiments.workdir import trained

Answer = Callable[[dict], tuple[np.ndarray, np.ndarray]]


def score(workdir: str | os.PathLike) -> dict[str, float]:
    """`accuracy` of answer tokens and `exact`, the share of rows whose every answer is right, over the eval batches.

    An answer ends with the task's END token if the task has one; padding behind it does not count. Also returns `calls`
    (of the model, mean over rows) and `length` (symbols before the first END of the answer, mean over rows).

    Of an autoregressive model the most probable token after the correct ones is taken, so `exact` is that of greedy
    decoding. Any other model fills the answers in as `config.generate` of its run says.
    """
    model = trained.load(workdir)
    end = getattr(getattr(model.corpus.valid, "task", None), "end", None)
    answer = following(model) if model.program.objective.causal else drawn(model)
    found = [judge(batch, *answer(batch), end) for batch in inputs.eval_batches(model.config, model.corpus)]
    weights = {"accuracy": "answers", "exact": "rows", "length": "rows", "calls": "rows"}
    return {
        key: float(np.average([f[key] for f in found], weights=[f[by] for f in found])) for key, by in weights.items()
    }


def by_lengths(workdir: str | os.PathLike) -> dict[str, float]:
    """`exact` of sums (`task:arithmetic`) whose numbers and answer have lengths that agree modulo `group`
    (`exact_alike`), and of the others (`exact_apart`); greedy answers over the eval batches."""
    model = trained.load(workdir)
    task, answer, found = model.corpus.valid.task, following(model), []
    for batch in inputs.eval_batches(model.config, model.corpus):
        scored, targets = np.asarray(batch["scored"], bool), np.asarray(batch["targets"])
        right = ((answer(batch)[0] == targets) | ~scored).all(1)
        lengths = task.lengths(np.concatenate([batch["tokens"], targets[:, -1:]], axis=1)) % task.group
        alike = (lengths == lengths[:, :1]).all(1)
        found.append(np.stack([right, alike])[:, scored.any(1)])
    right, alike = np.concatenate(found, axis=1)
    return {"exact_alike": float(right[alike].mean()), "exact_apart": float(right[~alike].mean())}


def following(model: Any) -> Answer:
    """`(params, batch) -> tokens [B, T]`: the most probable token after the correct ones at each place, by one call."""
    from models.objectives import next_token

    @jax.jit
    def predict(params, batch):
        lm = model.program.merge(params)
        rows = {name: batch[name] for name in ("positions", "segment_ids") if name in batch}
        features, *_ = lm(batch["tokens"], mask=next_token.mask, **rows)
        return jnp.argmax(lm.logits(features), axis=-1)

    def answer(batch: dict) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.asarray(predict(model.params, global_batch(batch, model.program)))
        return tokens, batch["scored"].sum(1)  # Greedy decoding takes one call an answer.

    return answer


def drawn(model: Any, **generate: Any) -> Answer:
    """What the generator of the model's objective fills in; `generate` replaces settings of `config.generate`."""
    generator = generation.make(model.program, model.corpus.tokenizer)
    options = model.config.generate.to_dict() | generate
    return lambda batch: generator.answers(model.params, batch, options)


def judge(batch: Mapping[str, np.ndarray], predicted: np.ndarray, calls: np.ndarray, end: int | None) -> dict:
    """`tasks.score` of the answers up to their END (all of them without one), with means of `length` and `calls`."""
    mask = np.asarray(batch["scored"], bool)
    before = lambda tokens: mask & (np.cumsum(mask & (tokens == end), axis=1) == 0)  # noqa: E731
    asked = mask
    if end is not None:
        ended = mask & (np.asarray(batch["targets"]) == end)
        asked = mask & (np.cumsum(ended, axis=1) - ended == 0)
    scored = tasks.score({**batch, "scored": asked}, predicted=predicted)
    has = mask.any(1)
    mean = lambda values: float(np.asarray(values, float)[has].mean()) if has.any() else 0.0  # noqa: E731
    return {**scored, "length": mean(before(predicted).sum(1)), "calls": mean(calls)}
