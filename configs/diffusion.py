"""Diffusion language models: masked (MDLM) and block (BD3-LM), on the backbone of configs/transformer.py.

    python main.py --config=configs/diffusion.py:mdlm --workdir=runs/mdlm
    python main.py --config=configs/diffusion.py:block --workdir=runs/block --config.block_diffusion.block=16
    python main.py --mode=generate --workdir=runs/mdlm --prompt="def main(" --config.generate.diffusion.steps=64

| preset | objective        | L | D   | T   | expected on the standard library's source, bits per byte             |
|--------|------------------|---|-----|-----|-----------------------------------------------------------------------|
| mdlm   | masked_diffusion | 2 | 128 | 128 | <= 3.82 after 960 steps, <= 3.56 after 2580 (one seed)                |
| block  | block_diffusion  | 2 | 128 | 128 | <= 4.03 after 318 steps (block 4, one seed); nothing longer was run   |

For comparison: bytes by their frequency alone 4.56, the same backbone autoregressive 2.24 after 1855 steps. Rotary
positions are what lets so small a masked model leave the unigram plateau. Papers: Sahoo et al. 2024, "Simple and
Effective Masked Diffusion Language Models"; Arriola et al. 2025, "Block Diffusion".
"""

from configs import base, transformer

PRESETS = {"mdlm": "masked_diffusion", "block": "block_diffusion"}


def get_config(preset: str = "mdlm"):
    """The diffusion model of `preset`: mdlm or block."""
    config = transformer.get_config("tiny")
    config.objective = base.choose("preset", preset, PRESETS)
    config.data.batch_size = 8
    config.train.steps = 3000
    config.eval.every = config.checkpoint.every = 1000
    config.generate.temperature = 1.0
    return config
