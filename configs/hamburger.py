"""HAMburger: a step of the model reads several tokens, and a small decoder writes the next several.

    python main.py --config=configs/hamburger.py:confidence --workdir=runs/hamburger
    python main.py --config=configs/hamburger.py:fixed --workdir=runs/fixed --config.model.hamburger.most=2

Each preset is the tiny Transformer over bytes; `data.tokenizer` may be any. docs/tokens.md says what it does,
`train/report/segments` in metrics.jsonl is steps a token, `train/report/stops` how often the stop head is right.

Expect: bits per byte beside the plain model at equal training FLOPs: docs/claims/segments.md (`confidence`).
`--mode=plan` has the FLOPs a token; that of the plain model is configs/transformer.py:tiny.
"""

from configs import base, transformer
from configs.presets import preset

SOURCE = "Liu et al. 2025, arXiv:2505.20438"
PRESETS = {
    "confidence": preset(
        {"groups": "confidence", "least": 2},
        says="Groups of up to four tokens, ended where the next is hard to predict",
        source=SOURCE,
        claim="segments",
    ),
    "fixed": preset(
        {"groups": "fixed"},
        says="Groups of four tokens each",
        source=f"{SOURCE}, with groups of one length, as a control",
    ),
}


def get_config(preset: str = "confidence"):
    """The tiny Transformer with several tokens a step: confidence or fixed."""
    config = transformer.get_config("tiny")
    config.model.kind = "hamburger"
    config.model.hamburger.layers = 1
    config.model.hamburger.update(base.choose("preset", preset, PRESETS).changes)
    return config
