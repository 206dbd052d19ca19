"""LaCT, "Test-Time Training Done Right" (Zhang et al. 2025): fast weights learn the text in large chunks.

    python main.py --config=configs/lact.py:tiny --workdir=runs/lact

The language model as released: pre-norm layers of the `lact` mixer (sliding window and fast weights on shared q, k, v,
see models/mixers/lact.py) and SwiGLU, RMSNorm 1e-6, an untied head. Fast weights: 4 heads of width d = D / 4, hidden
width d, updated every 2048 tokens with momentum and Newton-Schulz (Muon), rows renormalised after each update, w0 and
w2 starting at rank 32. State a sequence and layer: 0.75 D^2 weights, as much momentum, one window, one chunk.

| preset | L  | D    | heads | fast d | chunk = window | T     | expected                                              |
|--------|----|------|-------|--------|----------------|-------|-------------------------------------------------------|
| tiny   | 2  | 128  | 4     | 32     | 32             | 256   | not run to its end (half an hour on two CPU cores)   |
| 760m   | 24 | 1536 | 24    | 384    | 2048           | 32768 | published as curves of loss by position only          |
| 3b     | 24 | 3072 | 24    | 768    | 2048           | 32768 | published as curves of loss by position only          |

Published, as orderings of loss: Muon below momentum below plain updates, larger states below smaller ones, and LaCT
below gated linear attention and DeltaNet with the same window at late positions. Recipe: AdamW at 1e-3, cosine to a
tenth, 1024 steps of warm-up, 40960 steps of 32 rows of 32768 tokens (43B), a vocabulary of 32000. The width of SwiGLU
is the house's (8 D / 3); the released configuration was not at hand to compare. None of the large presets was run here.
The other published forms are overrides:

    --config.model.lact.newton_schulz_steps=0                                  (momentum alone)
    --config.model.lact.newton_schulz_steps=0 --config.model.lact.momentum=False
    --config.model.lact.rope_fast=False

A corpus for `760m` and up is yours to name. Cost: `--mode=plan`.
"""

from configs import base
from configs.presets import preset as made

SOURCE = "Zhang et al. 2025, arXiv:2505.23884"
PRESETS = {  # L, D, heads
    "tiny": made(
        (2, 128, 4),
        says="Fast weights learn the text in chunks of 32 tokens, beside a window of 32",
        source=SOURCE,
        claim="lact_chunk_size",
    ),
    "760m": made(
        (24, 1536, 24),
        says="Fast weights learn rows of 32768 tokens in chunks of 2048, 24 layers of width 1536",
        source=SOURCE,
        claim="lact_chunk_size",
    ),
    "3b": made(
        (24, 3072, 24),
        says="Fast weights learn rows of 32768 tokens in chunks of 2048, 24 layers of width 3072",
        source=SOURCE,
        claim="lact_chunk_size",
    ),
}


def get_config(preset: str = "tiny"):
    """The LaCT language model of `preset`: tiny, 760m or 3b."""
    layers, width, heads = base.choose("preset", preset, PRESETS).changes
    config = base.get_config()
    model = config.model
    model.update({"mixer": "lact", "channel": "swiglu", "num_layers": layers, "width": width, "num_heads": heads})
    model.tied = False
    if preset == "tiny":
        model.lact.update({"chunk_size": 32, "window": 32, "rank": 8})
        config.data.length = 256
        config.data.batch_size = 16
        config.train.steps = 2000
        config.optimizer.learning_rate = 3e-3
        return config
    model.update({"vocab_multiple": 128, "dtype": "bfloat16", "remat": "full"})
    config.data.update({"tokenizer": "bpe", "vocab_size": 32_000, "length": 32_768, "batch_size": 32})
    config.eval.rows = 640
    config.optimizer.update({"learning_rate": 1e-3, "eps": 1e-15, "final": 0.1, "warmup": 1024})
    config.train.steps = 40_960
    config.train.log_every = 20
    config.eval.every = config.checkpoint.every = 2000
    return config
