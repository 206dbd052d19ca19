"""Transformers with heads that decoding is controlled by: how much will still be written, and where a token may leave.

    python main.py --config=configs/control.py:budget --workdir=runs/budget
    python main.py --mode=generate --workdir=runs/budget --prompt="def main(" --config.generate.control=budget \\
        --config.generate.budget.tokens=60
    python main.py --config=configs/control.py:exits --workdir=runs/exits
    python main.py --mode=generate --workdir=runs/exits --prompt="def main(" --config.generate.control=early_exit \\
        --config.generate.early_exit.threshold=0.6

| preset | L | D   | expected                                                                                        |
|--------|---|-----|-------------------------------------------------------------------------------------------------|
| budget | 2 | 128 | not run; the text's law is the tiny Transformer's, the head adds 2 V (D + 1) parameters         |
| exits  | 2 | 128 | not run; the loss of all layers' states costs some of the last one's, classifiers add 3 L (D + 1) |

`train/nll` is that of the next token in both, so that bits per byte compare with every other run.
"""

from configs import base, transformer
from configs.presets import preset as made

PRESETS = {
    "budget": made(
        {"objective": "remaining"},
        says="Predicts, beside the next byte, how many more its document has: what budget guidance reads",
        source="Li et al. 2025, arXiv:2506.13752",
    ),
    "exits": made(
        {"objective": "exits"},
        says="Classifiers behind each layer say where a token may leave, or that the answer should end",
        source="Sun et al. 2024, arXiv:2401.09964",
    ),
}


def get_config(preset: str = "budget"):
    """The Transformer of configs/transformer.py:tiny with the head of `preset`: budget, exits."""
    config = transformer.get_config("tiny")
    config.update(base.choose("preset", preset, PRESETS).changes)
    return config
