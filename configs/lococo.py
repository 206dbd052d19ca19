"""LoCoCo: a Transformer whose past is a cache of fixed size, into which a trained convolution merges what leaves it.

    python main.py --config=configs/lococo.py --workdir=runs/lococo

The tiny Transformer with 32 slots and chunks of 32 tokens in each layer: text of any length takes 64 places a head
(docs/cache.md). A token attends to the slots and to its chunk.

| preset | L | D   | slots | chunk | expected                                                  |
|--------|---|-----|-------|-------|-----------------------------------------------------------|
|        | 2 | 128 | 32    | 32    | at equal bytes against dropping: docs/claims/lococo.md    |

Published sizes: 512 slots and chunks of 512 tokens beside a frozen model, the convolution at a thousand times its rate.
"""

from configs import transformer
from configs.presets import preset

PRESETS = {
    "": preset(
        {"mixer": "lococo"},
        says="The tiny Transformer with 32 slots for its past and a convolution that fills them",
        source="Cai et al. 2024, arXiv:2406.05317",
    )
}


def get_config():
    """The tiny Transformer with 32 slots a head and chunks of 32 tokens."""
    config = transformer.get_config("tiny")
    config.model.update(PRESETS[""].changes)
    config.model.lococo.update({"slots": 32, "chunk_size": 32})
    return config
