"""Diffusion and any-order language models on the backbone of configs/transformer.py.

    python main.py --config=configs/diffusion.py:mdlm --workdir=runs/mdlm
    python main.py --config=configs/diffusion.py:block --workdir=runs/block --config.block_diffusion.block=16
    python main.py --mode=generate --workdir=runs/mdlm --prompt="def main(" --config.generate.diffusion.steps=64

| preset | objective        | L | D   | T   | expected on the standard library's source, bits per byte             |
|--------|------------------|---|-----|-----|-----------------------------------------------------------------------|
| mdlm   | masked_diffusion | 2 | 128 | 128 | <= 3.82 after 960 steps, <= 3.56 after 2580 (one seed)                |
| block  | block_diffusion  | 2 | 128 | 128 | <= 4.03 after 318 steps (block 4, one seed); nothing longer was run   |
| sedd   | score_entropy    | 2 | 128 | 128 | not run; with a perfect model the bound is that of mdlm               |
| uniform | score_entropy   | 2 | 128 | 128 | not run; published perplexity of LM1B <= 31.3, of mdlm <= 27.0        |
| any_subset | any_subset   | 2 | 128 | 128 | not run; exact (=), from left to right; twice the tokens of a pass    |
| insertion | insertion     | 2 | 128 | 128 | not run; the bound includes the ends of rows, and its draws are noisy |
| neodiff | neodiff         | 2 | 128 | 128 | not run; its number (~) is a reconstruction, not a likelihood         |

For comparison: bytes by their frequency alone 4.56, the same backbone autoregressive 2.24 after 1855 steps. Rotary
positions are what lets so small a masked model leave the unigram plateau. Papers: Sahoo et al. 2024, "Simple and
Effective Masked Diffusion Language Models"; Arriola et al. 2025, "Block Diffusion"; Lou et al. 2024, "Discrete
Diffusion Modeling by Estimating the Ratios of the Data Distribution" (sedd); Schiff et al. 2025, "Simple Guidance
Mechanisms for Discrete Diffusion Models" (uniform); Guo and Ermon 2025, "Reviving Any-Subset Autoregressive Models
with Principled Parallel Sampling and Speculative Decoding" (any_subset); Patel et al. 2025, "Insertion Language
Models" (insertion); Li et al. 2025, "Unifying Continuous and Discrete Text Diffusion with Non-simultaneous
Diffusion Processes" (neodiff).
"""

from configs import base, transformer

PRESETS = {
    "mdlm": {"objective": "masked_diffusion"},
    "block": {"objective": "block_diffusion"},
    "sedd": {"objective": "score_entropy", "model": {"time_features": 64}},
    "uniform": {
        "objective": "score_entropy",
        "score_entropy": {"graph": "uniform", "head": "probs"},
        "model": {"time_features": 64},
    },
    "any_subset": {"objective": "any_subset"},
    "insertion": {"objective": "insertion", "data": {"isolate": False}},
    "neodiff": {"objective": "neodiff", "model": {"time_features": 64}},
}


def get_config(preset: str = "mdlm"):
    """The model of `preset`, a name in PRESETS."""
    config = transformer.get_config("tiny")
    config.update(base.choose("preset", preset, PRESETS))
    config.data.batch_size = 8
    config.train.steps = 3000
    config.eval.every = config.checkpoint.every = 1000
    config.generate.temperature = 1.0
    return config
