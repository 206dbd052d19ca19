"""Models of bytes that cut them into segments: layers of bytes around a backbone over segments, trained as one.

    python main.py --config=configs/segments.py:words --workdir=runs/words
    python main.py --config=configs/segments.py:hnet --workdir=runs/hnet --config.model.segmented.hnet.ratio=6

Each preset is the tiny Transformer as the backbone, with a layer of width 64 before and one behind it.
`model.segmented` says where bytes are cut, docs/tokens.md how to choose. `train/report/segments` in metrics.jsonl
is tokens a byte.

Expect: bits per byte of each beside bytes at equal training FLOPs, and of words with `model.segmented.pool=attention`:
see docs/claims/segments.md. `--mode=plan` has the FLOPs a byte.
"""

from configs import base, transformer
from configs.presets import preset

PRESETS = {
    "stride": preset(
        {"segmenter": "stride", "least": 4},
        says="Segments of four bytes",
        source="Yu et al. 2023, arXiv:2305.07185, pools patches of a fixed size",
        claim="segments",
    ),
    "words": preset(
        {"segmenter": "words", "least": 3},
        says="Segments are words, each read by the bytes behind it as the mean of its own",
        source="Thawani et al. 2023, arXiv:2310.11628, and Neitemeier et al. 2025, arXiv:2501.10322",
        claim="segments",
    ),
    "spaces": preset(
        {"segmenter": "spaces", "least": 3},
        says="Segments end at bytes that are no letters",
        source="Slagle 2024, arXiv:2404.14408, and Pagnoni et al. 2024, arXiv:2412.09871",
        claim="segments",
    ),
    "magnet": preset(
        {"segmenter": "magnet", "least": 3},
        says="Learned boundaries, straight-through, held near a rate by a binomial prior",
        source="Ahia et al. 2024, arXiv:2407.08818",
        claim="segments",
    ),
    "hnet": preset(
        {"segmenter": "hnet", "least": 2},
        says="Chunks begin where neighbouring bytes differ, held near a ratio",
        source="Hwang et al. 2025, arXiv:2507.07955",
        claim="segments",
    ),
    "entropy": preset(
        {"segmenter": "entropy", "least": 3},
        says="Patches begin at bytes that a head on the encoder finds hard to predict",
        source="Pagnoni et al. 2024, arXiv:2412.09871, with a model trained before",
        claim="segments",
    ),
    "mrt5": preset(
        {"segmenter": "mrt5", "least": 1},
        says="A gate deletes half of the bytes, softly in training",
        source="Kallini et al. 2025, arXiv:2410.20771",
        claim="segments",
    ),
}


def get_config(preset: str = "words"):
    """The tiny Transformer over segments of bytes: stride, words, spaces, magnet, hnet, entropy or mrt5."""
    config = transformer.get_config("tiny")
    config.model.kind = "segmented"
    config.model.segmented.update({"width": 64, "heads": 4, "window": 64})
    config.model.segmented.update(base.choose("preset", preset, PRESETS).changes)
    config.data.length = 256
    config.data.batch_size = 8
    return config
