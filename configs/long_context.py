"""Mixers compared on long rows: one model, one recipe, one mixer after another.

    python main.py --config=configs/long_context.py:lact --workdir=runs/long/lact
    python main.py --config=configs/long_context.py:lact --workdir=runs/long/lact --mode=plan

The argument names the mixer; everything else stays, but for the width F of the channel, which takes up what the mixers'
own parameters differ by: with F as below all presets have 427 thousand parameters, to within a thousandth. State bytes
a sequence (2 layers at T = 2048, float32, printed by --mode=plan) are what each memory needs; `window` here still keeps
the keys of the whole row.

| preset           | F   | state bytes | training FLOPs a token |
|------------------|-----|-------------|------------------------|
| attention        | 512 | 4,202,500   | 5.71             M    |
| window           | 512 | 4,202,500   | 2.94             M    |
| lact             | 468 | 746,524     | 3.78             M    |
| ttt_linear       | 491 | 75,284      | 2.70             M    |
| ttt_mlp          | 377 | 308,756     | 3.77             M    |
| linear_attention | 510 | 40,972      | 2.85             M    |
| gated_delta      | 444 | 40,972      | 3.05             M    |
| lact_attention   | 490 | 2,474,512   | 4.74             M    |

Expected (claims of the papers, not yet tested here): attention lowest, then lact, gated_delta, linear_attention; the
mixers with a state of constant size fall behind where the text must be copied from further back than their window.
"""

from configs import base

# mixer: (F of the channel, changes to the model)
PRESETS = {
    "attention": (512, {}),
    "window": (512, {"attention": {"window": 128, "sinks": 4}}),
    "lact": (468, {"lact": {"chunk_size": 128, "window": 128, "rank": 8}}),
    "ttt_linear": (491, {}),
    "ttt_mlp": (377, {}),
    "linear_attention": (510, {}),
    "gated_delta": (444, {}),
    "lact_attention": (490, {"mixer": "lact,attention", "lact": {"chunk_size": 128, "window": 128, "rank": 8}}),
}


def get_config(preset: str = "lact"):
    """The model with the mixer of `preset`: attention, window, lact, ttt_linear, ttt_mlp, linear_attention, ..."""
    hidden, changes = base.choose("preset", preset, PRESETS)
    config = base.get_config()
    config.model.update({"num_layers": 2, "width": 128, "num_heads": 4, "mixer": preset})
    config.model.mixer = "attention" if preset == "window" else preset
    config.model.mlp.hidden = hidden
    config.model.update(changes)
    config.data.length = 2048
    config.data.batch_size = 8
    config.train.steps = 2000
    config.optimizer.learning_rate = 3e-3
    return config
