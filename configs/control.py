"""Transformers with heads that decoding is controlled by: how much will still be written, where a token may
leave, and where a larger model is needed.

    python main.py --config=configs/control.py:budget --workdir=runs/budget
    python main.py --mode=generate --workdir=runs/budget --prompt="def main(" --config.generate.control=budget \\
        --config.generate.budget.tokens=60
    python main.py --config=configs/control.py:exits --workdir=runs/exits
    python main.py --mode=generate --workdir=runs/exits --prompt="def main(" --config.generate.control=early_exit \\
        --config.generate.early_exit.threshold=0.6
    python main.py --config=configs/transformer.py:tiny --workdir=runs/tiny
    python main.py --config=configs/control.py:routed --workdir=runs/router
    python main.py --mode=generate --workdir=runs/router --prompt="def main(" --config.generate.control=r2r \
        --config.generate.r2r.measure=router --config.generate.r2r.workdir=runs/tiny --config.generate.r2r.threshold=0.5

| preset | L | D   | expected                                                                                        |
|--------|---|-----|-------------------------------------------------------------------------------------------------|
| budget | 2 | 128 | not run; the text's law is the tiny Transformer's, the head adds 2 V (D + 1) parameters         |
| routed | 1 | 64  | not run; the classifier adds (2 D + k + 2) F parameters                                         |
| exits  | 2 | 128 | not run; the loss of all layers' states costs some of the last one's, classifiers add 3 L (D + 1) |

`train/nll` is that of the next token in all, so that bits per byte compare with every other run.
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
    "routed": made(
        {
            "objective": "router",
            "model": {"num_layers": 1, "width": 64, "num_heads": 2},
            "companions": {"teacher": {"workdir": "runs/tiny"}},
        },
        says="A small model learns beside its text where the tiny one would write another byte, for R2R's router",
        source="Fu et al. 2025, arXiv:2505.21600",
        claim="two_models",
        needs="python main.py --config=configs/transformer.py:tiny --workdir=runs/tiny",
    ),
}


def get_config(preset: str = "budget"):
    """The Transformer of configs/transformer.py:tiny with the head of `preset`: budget, exits, routed."""
    config = transformer.get_config("tiny")
    config.update(base.choose("preset", preset, PRESETS).changes)
    return config
