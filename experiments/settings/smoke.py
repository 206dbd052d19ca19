"""Shrinks any config to a run of seconds that still touches every part it names.

Most sizes are data: `small` and `smoke` of each knob (configs/knobs). Here stands what depends on other keys.
"""

import math
from typing import Any

from configs import knobs
from experiments.settings import keys


def shrink(config: Any) -> Any:
    """A copy of `config` with the same parts and small sizes: a few steps on a few short documents.

    What nothing reads keeps its value.
    """
    config = config.copy_and_resolve_references()
    flat = keys.flatten(config.to_dict())
    unread = knobs.unread(flat)
    for key, knob in knobs.KNOBS.items():
        if key not in unread:
            if knob.small is not None:
                keys.assign(config, key, min(flat[key], knob.small))
            if knob.smoke is not None:
                keys.assign(config, key, knob.smoke)
    model, data = config.model, config.data
    pattern = len(model.mixer.split(","))
    heads = 2 if not model.num_kv_heads or model.num_kv_heads == model.num_heads else 4
    model.num_layers = 2 * pattern if pattern == 1 else pattern
    model.width, model.num_heads = 16 * heads, heads
    model.num_kv_heads = min(model.num_kv_heads, 2)
    if "lact" in model.mixer:
        model.lact.heads = min(model.lact.heads, heads)
    data.batch_size = 8 * config.train.accumulation
    if data.tokenizer == "bpe":
        data.vocab_size = 300
    if "model.moe.chunk" not in unread:
        model.moe.chunk = math.gcd(model.moe.chunk, data.length)
    if config.objective == "block_diffusion":
        config.block_diffusion.block = math.gcd(config.block_diffusion.block, data.length)
    return config
