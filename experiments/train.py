"""`from experiments.train import train`, as notebooks and scripts write it; the loop is in experiments/training."""

from experiments.training import train

__all__ = ["train"]
