"""Decoder-only Transformers: pre-norm, rotary positions, tied head, no biases.

    python main.py --config=configs/transformer.py:tiny --workdir=runs/tiny

Presets state sizes; data stays the default corpus until told otherwise (a corpus for `124m` and up is yours to name).

| preset | L  | D    | N  | T    | non-embedding parameters | expected                                        |
|--------|----|------|----|------|--------------------------|-------------------------------------------------|
| tiny   | 2  | 128  | 4  | 128  | 0.39 M                   | measured: see docs/LEDGER.md                    |
| 124m   | 12 | 768  | 12 | 1024 | 84.9 M                   | OpenWebText perplexity about 17 (published)     |
| 354m   | 24 | 1024 | 16 | 1024 | 302.0 M                  | OpenWebText perplexity about 13 (published)     |
| 757m   | 24 | 1536 | 24 | 1024 | 679.5 M                  | OpenWebText perplexity about 12 (published)     |
| 1.4b   | 24 | 2048 | 32 | 1024 | 1207.9 M                 | OpenWebText perplexity about 11.8 (published)   |

Published: Transformers trained from scratch on 300B tokens, as compared in TokenFormer (Wang et al. 2024, figure 1).
None of the large presets was trained here.
"""

from configs import base
from configs.presets import preset as made

COMPARED = "sizes as compared in Wang et al. 2024, arXiv:2410.23168, figure 1"
PRESETS = {
    "tiny": made(
        {"num_layers": 2, "width": 128, "num_heads": 4},
        says="A Transformer of 0.4 M parameters beside its embedding, for minutes on two CPU cores",
        source="Vaswani et al. 2017, arXiv:1706.03762",
        claim="tokenformer_tiny",
    ),
    "124m": made(
        {"num_layers": 12, "width": 768, "num_heads": 12},
        says="A Transformer of 85 M parameters beside its embedding, 12 layers of width 768",
        source=COMPARED,
    ),
    "354m": made(
        {"num_layers": 24, "width": 1024, "num_heads": 16},
        says="A Transformer of 302 M parameters beside its embedding, 24 layers of width 1024",
        source=COMPARED,
    ),
    "757m": made(
        {"num_layers": 24, "width": 1536, "num_heads": 24},
        says="A Transformer of 680 M parameters beside its embedding, 24 layers of width 1536",
        source=COMPARED,
    ),
    "1.4b": made(
        {"num_layers": 24, "width": 2048, "num_heads": 32},
        says="A Transformer of 1.2 B parameters beside its embedding, 24 layers of width 2048",
        source=COMPARED,
    ),
}


def get_config(preset: str = "tiny"):
    """The Transformer of `preset`: tiny, 124m, 354m, 757m or 1.4b."""
    config = base.get_config()
    config.model.update(base.choose("preset", preset, PRESETS).changes)
    if preset == "tiny":
        config.data.length = 128
        config.data.batch_size = 16
        config.train.steps = 2000
        config.optimizer.learning_rate = 3e-3
        return config
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 50_304
    config.data.length = 1024
    config.data.batch_size = 512
    config.eval.rows = 10_240
    config.model.vocab_multiple = 128
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup = 2000
    config.train.steps = 600_000
    config.train.log_every = 50
    config.eval.every = config.checkpoint.every = 5000
    return config
