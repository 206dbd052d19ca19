"""Mixers compared on long rows: one model, one recipe, one mixer after another.

    python main.py --config=configs/long_context.py:lact --workdir=runs/long/lact
    python main.py --config=configs/long_context.py:lact --workdir=runs/long/lact --mode=plan

The argument names the mixer; everything else stays, but for the width F of the channel, which takes up what the mixers'
own parameters differ by: with F as below all presets have 427 thousand parameters, to within a thousandth. State bytes
a sequence (2 layers at T = 2048, float32, printed by --mode=plan) are what each memory needs; `window` here still keeps
the keys of the whole row.

| preset                 | F   | state bytes | training FLOPs a token | steps of PRESET-flops |
|------------------------|-----|-------------|------------------------|-----------------------|
| attention              | 512 | 4,202,500   | 5.71 M                 | 2000                  |
| window                 | 512 | 4,202,500   | 2.94 M                 | 3882                  |
| lact                   | 468 | 746,524     | 3.78 M                 | 3021                  |
| ttt_linear             | 491 | 75,284      | 2.70 M                 | 4232                  |
| ttt_mlp                | 377 | 308,756     | 3.77 M                 | 3028                  |
| linear_attention       | 510 | 40,972      | 2.85 M                 | 3999                  |
| gated_delta            | 444 | 40,972      | 3.16 M                 | 3606                  |
| lact_attention         | 490 | 2,474,512   | 4.74 M                 | 2407                  |
| lact-state             | 475 | 668,700     | 4.13 M                 | -                     |
| ttt_linear-state       | 445 | 173,204     | 2.99 M                 | -                     |
| ttt_mlp-state          | 439 | 178,196     | 3.28 M                 | -                     |
| linear_attention-state | 511 | 139,276     | 3.15 M                 | -                     |
| gated_delta-state      | 446 | 139,276     | 3.55 M                 | -                     |

At equal parameters three comparisons are on offer:
- `lact`: equal steps, so equal data.
- `lact-flops`: equal training FLOPs, those of `attention` in 2000 steps; cheaper mixers read more.
- `lact-state`: equal memories, D^2 numbers a layer however many heads share them (that of LaCT is 43 x 128 x 3, 0.8%
  more). On top come what is open: mini-batches of TTT, LaCT's chunk and window of 128 tokens each, slots of positions.

Expected (claims of the papers, not yet tested here): attention lowest, then lact, gated_delta, linear_attention; the
mixers with a state of constant size fall behind where the text must be copied from further back than their window.
"""

from configs import base
from configs.presets import preset as made

LACT = {"chunk_size": 128, "window": 128, "rank": 8}
SOURCES = {
    "lact": "Zhang et al. 2025, arXiv:2505.23884",
    "ttt": "Sun et al. 2024, arXiv:2407.04620",
    "linear": "Katharopoulos et al. 2020, arXiv:2006.16236",
    "delta": "Yang et al. 2024, arXiv:2412.06464",
}
EQUAL = "its memory of D^2 numbers a layer, as the other presets named -state have"
PRESETS = {  # changes: F of the channel, and what changes in the model
    "attention": made(
        (512, {}),
        says="Every token sees all before it; keys and values grow with the row",
        source="Vaswani et al. 2017, arXiv:1706.03762",
        claim="language_in_context",
    ),
    "window": made(
        (512, {"attention": {"window": 128, "sinks": 4}}),
        says="Attention over the last 128 tokens and the first 4",
        source="Xiao et al. 2023, arXiv:2309.17453",
    ),
    "lact": made(
        (468, {"lact": LACT}),
        says="A network of fast weights learns the row in chunks of 128 tokens, beside a window of 128",
        source=SOURCES["lact"],
        claim="lact_chunk_size",
    ),
    "ttt_linear": made(
        (491, {}),
        says="A linear map a head learns values from keys while it reads",
        source=SOURCES["ttt"],
    ),
    "ttt_mlp": made(
        (377, {}),
        says="A network of two layers a head learns values from keys while it reads",
        source=SOURCES["ttt"],
    ),
    "linear_attention": made(
        (510, {}),
        says="Attention without softmax: a memory of fixed size, with a learned gate that forgets",
        source=SOURCES["linear"],
        claim="recall",
    ),
    "gated_delta": made(
        (444, {}),
        says="A memory of fixed size that overwrites what stood at a key, with a learned gate that forgets",
        source=SOURCES["delta"],
        claim="recall",
    ),
    "lact_attention": made(
        (490, {"mixer": "lact,attention", "lact": LACT}),
        says="LaCT in the first layer, attention over the whole row in the second",
        source=SOURCES["lact"],
    ),
    "lact-state": made(
        (475, {"lact": {**LACT, "heads": 1, "hidden_ratio": 1 / 3, "momentum": False}}),
        says=f"LaCT with {EQUAL}",
        source=SOURCES["lact"],
    ),
    "ttt_linear-state": made((445, {"num_heads": 1}), says=f"TTT-Linear with {EQUAL}", source=SOURCES["ttt"]),
    "ttt_mlp-state": made((439, {"num_heads": 8}), says=f"TTT-MLP with {EQUAL}", source=SOURCES["ttt"]),
    "linear_attention-state": made(
        (511, {"num_heads": 1}), says=f"Linear attention with {EQUAL}", source=SOURCES["linear"], claim="recall"
    ),
    "gated_delta-state": made(
        (446, {"num_heads": 1}),
        says=f"The gated delta rule with {EQUAL}",
        source=SOURCES["delta"],
        claim="recall",
    ),
}
STEPS = 2000
EQUAL_FLOPS = {  # steps that cost what STEPS of attention cost
    "attention": STEPS, "window": 3882, "lact": 3021, "ttt_linear": 4232, "ttt_mlp": 3028, "linear_attention": 3999,
    "gated_delta": 3606, "lact_attention": 2407,
}  # fmt: skip


def get_config(preset: str = "lact"):
    """The model of `preset`: attention, window, lact, ttt_linear, ...; with `-flops` or `-state` as above."""
    mixer, _, equal = preset.partition("-")
    steps = base.choose("preset", mixer, EQUAL_FLOPS) if equal == "flops" else STEPS
    hidden, changes = base.choose("preset", mixer if equal == "flops" else preset, PRESETS).changes
    config = base.get_config()
    config.model.update({"num_layers": 2, "width": 128, "num_heads": 4})
    config.model.mixer = "attention" if mixer == "window" else mixer
    config.model.mlp.hidden = hidden
    config.model.update(changes)
    config.data.length = 2048
    config.data.batch_size = 8
    config.eval.rows = 160
    config.train.steps = steps
    config.optimizer.learning_rate = 3e-3
    return config
