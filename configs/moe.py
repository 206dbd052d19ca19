"""Mixtures of experts: a token passes a few of many feed-forward layers.

    python main.py --config=configs/moe.py:tiny --workdir=runs/moe/tiny

The small ones have two layers of width 128 and, but where the name says otherwise, 8 experts, a token 2. The two
cost a token what the SwiGLU channel costs, so `tiny` has four times the parameters of such channels at their FLOPs.
docs/moe.md says what every router computes; docs/knobs.md, model.moe, what may be changed.

Expect, as configs/claims/experts.py saw at width 64 after 400 steps: eight experts end 0.07 bits per byte below a dense
layer of their FLOPs; MoE++ has two thirds of the costly experts and is ahead at equal FLOPs; null experts cost 0.04
bits; one of each of four groups balances four devices exactly.

`16b` is DeepSeekMoE 16B (28 layers of width 2048, 64 experts of 1408 of which a token has 6, and 2 shared ones), but
for its first layer, which is dense there. It was not trained here; `--mode=plan --topology=...` says where it fits.
"""

from configs import base
from configs.presets import preset as made

SMALL = {"experts": 8, "k": 2}
PRESETS = {
    "tiny": made(
        SMALL,
        says="Eight experts, two for a token, by a softmax over the chosen two",
        source="Jiang et al. 2024, arXiv:2401.04088 (Mixtral)",
        claim="experts",
    ),
    "switch": made(
        {**SMALL, "k": 1, "router": "softmax_before", "capacity": 1.25},
        says="One expert a token; an expert has places for a quarter more than its share of a row",
        source="Fedus et al. 2021, arXiv:2101.03961",
    ),
    "aux_free": made(
        {**SMALL, "router": "sigmoid_bias", "renormalise": True, "balance": 1e-4, "balance_scope": "sequence",
         "z_loss": 0.0},
        says="A bias of the choice evens out the load, moved once a step and trained by no loss",
        source="Wang et al. 2024, arXiv:2408.15664",
    ),
    "micro": made(
        {**SMALL, "balance_scope": "micro", "balance_parts": 8},
        says="The load is evened out within an eighth of the batch, as devices by themselves do",
        source="Qiu et al. 2025, arXiv:2501.11873",
        claim="experts",
    ),
    "moge": made(
        {"experts": 8, "k": 4, "router": "moge", "groups": 4},
        says="A token has one expert in each of four groups, so that four devices have equal loads",
        source="Tang et al. 2025, arXiv:2505.21411 (Pangu Pro MoE)",
        claim="experts",
    ),
    "moepp": made(
        {**SMALL, "router": "softmax_before", "constant": 2, "copy": 1, "zero": 1, "eta": 0.75, "residual": True},
        says="Beside eight experts four that cost nothing; logits add those of the layer before",
        source="Jin et al. 2024, arXiv:2410.07348 (MoE++)",
        claim="experts",
    ),
    "adamoe": made(
        {"experts": 8, "k": 4, "router": "null", "null": 8},
        says="Eight true and eight null experts, four for a token: two true ones in the mean",
        source="Zeng et al. 2024, arXiv:2406.13233 (AdaMoE)",
        claim="experts",
    ),
    "blockffn": made(
        {"experts": 24, "hidden": 32, "gated": False, "router": "relu", "balance": 0.0, "z_loss": 0.0,
         "locality": 0.002, "sparsity": 0.05},
        says="A token has every expert whose logit is positive; losses make neighbours choose the same few",
        source="Song et al. 2025, arXiv:2507.08771 (BlockFFN)",
        claim="experts",
    ),
    "duo": made(
        {"experts": 1, "k": 1, "small": 1, "small_hidden": 24, "zero": 1, "router": "duo_chance", "balance": 0.0,
         "z_loss": 0.0},
        says="A big layer, a small one or none, drawn by chance for each place of a row, layer and step",
        source="Alizadeh et al. 2024, arXiv:2410.10846 (Duo-LLM)",
        claim="duo_llm",
    ),
    "16b": made(
        {"experts": 64, "k": 6, "hidden": 1408, "shared": 2, "router": "softmax_before", "balance": 0.001,
         "balance_scope": "sequence", "z_loss": 0.0},
        says="DeepSeekMoE 16B: 64 experts of which a token has 6, and 2 shared ones, in 28 layers of width 2048",
        source="Dai et al. 2024, arXiv:2401.06066",
    ),
}  # fmt: skip


def get_config(preset: str = "tiny"):
    """A mixture of experts: tiny, switch, aux_free, micro, moge, moepp, adamoe, blockffn, duo or 16b."""
    config = base.get_config()
    config.model.channel = "moe"
    config.model.moe.update(base.choose("preset", preset, PRESETS).changes)
    config.model.update({"num_layers": 2, "width": 128, "num_heads": 4})
    config.data.length = 128
    config.train.steps = 2000
    config.optimizer.learning_rate = 3e-3
    if preset == "16b":
        config.model.update({"num_layers": 28, "width": 2048, "num_heads": 16, "vocab_multiple": 128})
        config.model.update({"dtype": "bfloat16", "remat": "full", "tied": False})
        config.data.update({"tokenizer": "bpe", "vocab_size": 102_400, "length": 4096, "batch_size": 2048})
        config.optimizer.update({"learning_rate": 4.2e-4, "warmup": 2000.0})
        config.eval.rows = config.eval.batch_size = 2048
        config.train.update({"steps": 240_000, "log_every": 50})
        config.eval.every = config.checkpoint.every = 5000
    return config
