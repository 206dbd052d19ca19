"""TokenFormer (Wang et al. 2024, arXiv:2410.23168): every linear map is attention to parameter tokens, which can grow.

    python main.py --config=configs/tokenformer.py:tiny --workdir=runs/tokenformer

The layer, as the authors' torch code has it: x + o(attention(q, k, v of h)), h = LayerNorm(x) without parameters (eps
1e-5), then y + f(LayerNorm(y)). q, k, v, o and f are five Pattentions D -> D without bias: n parameter tokens each, f
4 n. Rotary positions on the first quarter of each head, a last LayerNorm with weight and bias, a tied head. Keys and
embedding start as N(0, 0.02^2), values as N(0, (2 / (L sqrt(D)))^2).

Non-embedding parameters N = 2 L D (n_q + n_k + n_v + n_o + n_f) = 16 L D n; FLOPs a token forward are 2 N + 4 L D T.

| preset | L  | D    | heads | n    | T    | N        | expected (published, not run here)                             |
|--------|----|------|-------|------|------|----------|----------------------------------------------------------------|
| tiny   | 2  | 128  | 4     | 96   | 128  | 0.393 M  | the tiny Transformer's loss: see docs/LEDGER.md                |
| 124m   | 12 | 768  | 12    | 576  | 1024 | 84.9 M   | OpenWebText perplexity 16.4 from scratch                       |
| 354m   | 12 | 768  | 12    | 2140 | 1024 | 315.6 M  | 14.0 grown from 124m by 30B tokens (354M Transformer: 13.0)    |
| 757m   | 12 | 768  | 12    | 4870 | 1024 | 718.1 M  | 12.6 grown by 30B tokens more (757M Transformer: 12.0)         |
| 1.4b   | 12 | 768  | 12    | 9230 | 1024 | 1361.0 M | 11.8 grown by 30B tokens more (1.4B Transformer: 11.8)         |
| 150m   | 12 | 768  | 12    | 768  | 2048 | 113.2 M  | Pile perplexity 10.45, mean zero-shot accuracy 44.7            |
| 450m   | 24 | 1024 | 16    | 1024 | 2048 | 402.7 M  | Pile perplexity 8.28, mean zero-shot accuracy 52.0             |
| 900m   | 32 | 1280 | 16    | 1280 | 2048 | 838.9 M  | Pile perplexity 7.38, mean zero-shot accuracy 56.4             |
| 1.5b   | 40 | 1536 | 16    | 1536 | 2048 | 1509.9 M | Pile perplexity 6.91, mean zero-shot accuracy 59.3             |

Published: the authors' README and figure 1 (read off it, +-0.02), 300B tokens unless grown. n of 757m and 1.4b follows
from N, the authors name only those of 124m and 354m. The four OpenWebText sizes were published with a TPU program that
differs: no positions, tanh GeLU, logits / sqrt(D), values at fan-in scale. Its form is these overrides:

    --config.model.attention.rope_fraction=0.0 --config.model.pattention.gelu=tanh --config.model.logit_scale=0.0
    --config.model.pattention.init_values=fan_in

Growth keeps the function and starts a new schedule; 124m -> 354m -> 757m -> 1.4b and their like differ only in n:

    python main.py --config=configs/tokenformer.py:354m --config.init.grow_from=runs/124m --workdir=runs/354m \\
        --config.train.steps=60000

A corpus for `124m` and up is yours to name. Cost: `--mode=plan`.
"""

from configs import base
from configs.presets import preset as made

SOURCE = "Wang et al. 2024, arXiv:2410.23168"
GROWN = f"{SOURCE}, figure 1"
TABLE = f"{SOURCE}, table 2"
PRESETS = {  # L, D, heads, n
    "tiny": made(
        (2, 128, 4, 96),
        says="Linear maps are attention to 96 parameter tokens, as many parameters as the tiny Transformer",
        source=TABLE,
        claim="tokenformer_tiny",
    ),
    "124m": made(
        (12, 768, 12, 576),
        says="The smallest of the four that grow into each other, 576 parameter tokens a map",
        source=GROWN,
        claim="tokenformer_growth",
    ),
    "354m": made(
        (12, 768, 12, 2140),
        says="Grown from 124m to 2140 parameter tokens a map, its function kept",
        source=GROWN,
        claim="tokenformer_growth",
    ),
    "757m": made(
        (12, 768, 12, 4870),
        says="Grown from 354m to 4870 parameter tokens a map, its function kept",
        source=GROWN,
        claim="tokenformer_growth",
    ),
    "1.4b": made(
        (12, 768, 12, 9230),
        says="Grown from 757m to 9230 parameter tokens a map, its function kept",
        source=GROWN,
        claim="tokenformer_growth",
    ),
    "150m": made((12, 768, 12, 768), says="Trained from scratch as on the Pile, 12 layers of width 768", source=TABLE),
    "450m": made(
        (24, 1024, 16, 1024), says="Trained from scratch as on the Pile, 24 layers of width 1024", source=TABLE
    ),
    "900m": made(
        (32, 1280, 16, 1280), says="Trained from scratch as on the Pile, 32 layers of width 1280", source=TABLE
    ),
    "1.5b": made(
        (40, 1536, 16, 1536), says="Trained from scratch as on the Pile, 40 layers of width 1536", source=TABLE
    ),
}
PILE = ("150m", "450m", "900m", "1.5b")


def get_config(preset: str = "tiny"):
    """The TokenFormer of `preset`: tiny, 124m, 354m, 757m, 1.4b, or 150m, 450m, 900m, 1.5b as on the Pile."""
    layers, width, heads, tokens = base.choose("preset", preset, PRESETS).changes
    config = base.get_config()
    model = config.model
    model.update({"num_layers": layers, "width": width, "num_heads": heads})
    model.projection = model.channel = "pattention"
    model.pattention.update({"tokens": tokens, "channel_tokens": 4 * tokens})
    model.update({"norm": "layernorm", "norm_scale": False, "norm_eps": 1e-5, "final_norm": "layernorm"})
    model.attention.rope_fraction = 0.25
    if preset == "tiny":
        config.data.length = 128
        config.data.batch_size = 16
        config.train.steps = 2000
        config.optimizer.learning_rate = 3e-3
        return config
    model.vocab_multiple = 128
    model.dtype = "bfloat16"
    model.remat = "full"
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 50_304
    config.data.length, config.data.batch_size, config.train.steps = 1024, 512, 600_000
    config.eval.rows = 10_240
    if preset in PILE:
        config.data.length, config.data.batch_size, config.train.steps = 2048, 1024, 143_000
        config.eval.rows = 20_480
    config.optimizer.update({"learning_rate": 6e-4, "final": 0.1, "warmup": 0.01, "weight_decay": 0.1})
    config.train.log_every = 50
    config.eval.every = config.checkpoint.every = 5000
    return config
