"""Claims of papers, each a file with `get_claim() -> dict`; `small` is what most of them train."""

from ml_collections import ConfigDict

from configs import transformer


def small(steps: int, *, log_every: int, every: int = 0, rows: int, save: int = 0, width: int = 64) -> ConfigDict:
    """The config of a run of minutes on a CPU: the tiny Transformer, narrower, without samples.

    Args:
      steps: of training.
      log_every: steps between lines of metrics.
      every: steps between evaluations; 0 = at the end only.
      rows: of an evaluation.
      save: steps between checkpoints; 0 = at the end only.
      width: D; heads are 4 in any case.
    """
    config = transformer.get_config("tiny")
    config.model.update({"width": width, "num_heads": 4})
    config.train.update({"steps": steps, "log_every": log_every})
    config.eval.update({"every": every, "rows": rows, "sample_prompt": ""})
    config.checkpoint.every = save
    return config
