"""Diffusion and any-order language models on the backbone of configs/transformer.py.

    python main.py --config=configs/diffusion.py:mdlm --workdir=runs/mdlm
    python main.py --config=configs/diffusion.py:block --workdir=runs/block --config.block_diffusion.block=16
    python main.py --mode=generate --workdir=runs/mdlm --prompt="def main(" --config.generate.diffusion.steps=64

Caches and guides that make filling in cheaper: docs/diffusion.md.

| preset | objective        | L | D   | T   | expected on the standard library's source, bits per byte             |
|--------|------------------|---|-----|-----|-----------------------------------------------------------------------|
| mdlm   | masked_diffusion | 2 | 128 | 128 | <= 3.64 after 1000 steps, <= 3.36 after 2000, <= 3.23 after 3000      |
| block  | block_diffusion  | 2 | 128 | 128 | <= 4.03 after 318 steps (block 4, one seed); nothing longer was run   |
| sedd   | score_entropy    | 2 | 128 | 128 | not run; with a perfect model the bound is that of mdlm               |
| uniform | score_entropy   | 2 | 128 | 128 | not run; published perplexity of LM1B <= 31.3, of mdlm <= 27.0        |
| any_subset | any_subset   | 2 | 128 | 128 | not run; exact (=), from left to right; twice the tokens of a pass    |
| insertion | insertion     | 2 | 128 | 128 | not run; the bound includes the ends of rows, and its draws are noisy |
| neodiff | neodiff         | 2 | 128 | 128 | not run; its number (~) is a reconstruction, not a likelihood         |

With "-lm1b", "-owt" or "-text8" behind its name (mdlm-lm1b) a preset has the published size and a set prepared by
TensorFlow Datasets (TFDS names lm1b; openwebtext and text8 are yours to prepare under these names):

| shape | T    | tokens        | published: block 4, mdlm, sedd (all <=); autoregressive (=)              |
|-------|------|---------------|--------------------------------------------------------------------------|
| lm1b  | 128  | BPE of 30,522 | perplexity 28.23, 31.78, 32.68; 22.83                                    |
| owt   | 1024 | BPE of 50,257 | perplexity 20.73, 22.98, 24.10; 17.54                                    |
| text8 | 256  | bytes         | bits per character: mdlm 1.37 (MD4), sedd 1.39; 1.23                     |

All have L = 12, D = 768, N = 12, batches of 512 rows and 1M steps: 65B, 524B and 131B tokens.
None of these was trained here. Published tokenizers are WordPiece (lm1b) and GPT-2's, so that perplexities compare
only roughly: read bits per byte.

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
from configs.presets import preset as made

PRESETS = {
    "mdlm": made(
        {"objective": "masked_diffusion"},
        says="Fills in masked tokens in any order, trained on a bound of the likelihood",
        source="Sahoo et al. 2024, arXiv:2406.07524",
        claim="toy_likelihood",
    ),
    "block": made(
        {"objective": "block_diffusion"},
        says="Writes block after block from left to right, each block by masked diffusion",
        source="Arriola et al. 2025, arXiv:2503.09573",
        claim="block_sizes",
    ),
    "sedd": made(
        {"objective": "score_entropy", "model": {"time_features": 64}},
        says="Learns ratios of probabilities (the score) of masked text by score entropy",
        source="Lou et al. 2024, arXiv:2310.16834",
        claim="toy_likelihood",
    ),
    "uniform": made(
        {
            "objective": "score_entropy",
            "score_entropy": {"graph": "uniform", "head": "probs"},
            "model": {"time_features": 64},
        },
        says="Noise turns tokens into any others instead of masks, so that every token can still change",
        source="Schiff et al. 2025, arXiv:2412.10193",
        claim="toy_likelihood",
    ),
    "any_subset": made(
        {"objective": "any_subset"},
        says="Draws tokens in any order with exact likelihoods, and drafts several in one call",
        source="Guo and Ermon 2025, arXiv:2504.20456",
        claim="assd",
    ),
    "insertion": made(
        {"objective": "insertion", "data": {"isolate": False}},
        says="Inserts tokens anywhere in the text until it chooses to stop",
        source="Patel et al. 2025, arXiv:2505.05755",
        claim="insertion_planning",
    ),
    "neodiff": made(
        {"objective": "neodiff", "model": {"time_features": 64, "self_condition": True}},
        says="Continuous diffusion of embeddings with a noise level for each token",
        source="Li et al. 2025, arXiv:2505.22165",
        claim="toy_likelihood",
    ),
}

SHAPES = {
    "lm1b": {"name": "lm1b", "length": 128, "tokenizer": "bpe", "vocab_size": 30_522},
    "owt": {"name": "openwebtext", "length": 1024, "tokenizer": "bpe", "vocab_size": 50_257},
    "text8": {"name": "text8", "length": 256, "tokenizer": "bytes", "vocab_size": 0},
}


def get_config(preset: str = "mdlm"):
    """The model of `preset`, a name in PRESETS; of a published size where one of SHAPES follows, as in "mdlm-lm1b"."""
    preset, dash, shape = preset.partition("-")
    changes = base.choose("preset", preset, PRESETS).changes
    if dash:
        config = transformer.get_config("124m")
        config.update(changes)
        config.data.update({"source": "tfds", **base.choose("shape", shape, SHAPES)})
        config.optimizer.update({"learning_rate": 3e-4, "schedule": "constant", "warmup": 2500, "ema": 0.9999})
        config.train.steps = 1_000_000
        config.generate.temperature = 1.0
        return config
    config = transformer.get_config("tiny")
    config.update(changes)
    config.data.batch_size = 8
    config.eval.rows = 160
    config.train.steps = 3000
    config.eval.every = config.checkpoint.every = 1000
    config.generate.temperature = 1.0
    return config
