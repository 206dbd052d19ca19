"""Transformers that predict several next tokens at each place, by linear heads over one trunk.

    python main.py --config=configs/multi_token.py:tiny --workdir=runs/ahead
    python main.py --config=configs/multi_token.py:tiny --workdir=runs/ahead2 --config.multi_token.tokens=2

| preset | L | D   | tokens | expected                                                                              |
|--------|---|-----|--------|---------------------------------------------------------------------------------------|
| tiny   | 2 | 128 | 4      | not run; published: models this small lose by it, bytes and large models gain most    |

The sum of all heads is learned; `train/nll` is that of the next token, `train/nll_2` of the one after it, and so on.
Bits per byte are those of the next token alone, so that they compare with every other run. The heads add (tokens - 1)
D^2 parameters and as many products with the unembedding. Published heads are a Transformer layer each, the linear ones
here are the simplest that the paper names.
"""

from configs import base, transformer
from configs.presets import preset as made

PRESETS = {
    "tiny": made(
        {"tokens": 4},
        says="Predicts the next four bytes at each place, three of them by linear heads that only training needs",
        source="Gloeckle et al. 2024, arXiv:2404.19737",
    ),
}


def get_config(preset: str = "tiny"):
    """The Transformer of configs/transformer.py:tiny with the heads of `preset`: tiny."""
    config = transformer.get_config("tiny")
    config.objective = "multi_token"
    config.multi_token.update(base.choose("preset", preset, PRESETS).changes)
    return config
