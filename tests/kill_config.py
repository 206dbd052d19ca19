"""The run that tests/kill_anywhere.py kills: the smoke form of the tiny Transformer, dropping nothing it does."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from configs import transformer
from experiments.settings import smoke


def get_config():
    """Small enough to start in seconds."""
    return smoke.shrink(transformer.get_config("tiny"))
