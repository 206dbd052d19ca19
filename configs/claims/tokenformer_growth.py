"""Claim: growing a trained TokenFormer beats training the larger model from scratch at equal compute.

    python -m experiments.claims.tokenformer_growth --workdir=runs/claims/tokenformer_growth

TokenFormer (Wang et al. 2024, arXiv:2410.23168, figure 1): grown in four steps by 30B tokens each, 1.4B parameters
reach OpenWebText perplexity 11.8, as a Transformer does with 300B tokens at twice to three times the cost.
Here: two layers, width 128, the standard library's source. A small model (n = 48, half the size) trains for 600 steps,
grows to n = 96 and trains for 400 more. Against it, with the same FLOPs in all: `large`, the same n = 96 from scratch,
and `transformer` of the same number of parameters. Three seeds, paired by seed, 95% intervals (Student t).

Expect: growth itself changes the held-out loss by rounding only. Which of the others wins is what the run says.
Cost: twelve runs of 600 to 1000 steps of 8 x 128 bytes; planned for 20 minutes on two CPU cores.
"""

from configs import base, tokenformer, transformer

SEEDS = (0, 1, 2)
TOKENS = (48, 96)  # n of the small model and of the grown one; a channel has 4 n
STEPS = (600, 400)  # before growth and after it
PRESETS = ("small", "large", "transformer")


def get_config(preset: str = "small"):
    """One arm: small, large (to be grown into, or from scratch) or transformer (of the size of large)."""
    base.choose("preset", preset, dict.fromkeys(PRESETS))
    config = transformer.get_config("tiny") if preset == "transformer" else tokenformer.get_config("tiny")
    if preset != "transformer":
        tokens = TOKENS[preset == "large"]
        config.model.pattention.update({"tokens": tokens, "channel_tokens": 4 * tokens})
    config.data.batch_size = 8
    config.train.steps = STEPS[0]
    config.optimizer.learning_rate = 3e-3
    config.eval.update({"every": 100, "batches": 40, "sample_prompt": ""})
    config.checkpoint.every = 0
    return config
