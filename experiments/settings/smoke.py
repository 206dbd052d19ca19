"""Shrinks any config to a run of seconds that still touches every part it names."""

import math
from typing import Any


def shrink(config: Any) -> Any:
    """A copy of `config` with the same parts and small sizes: a few steps on a few short documents."""
    config = config.copy_and_resolve_references()
    model, data = config.model, config.data
    pattern = len(model.mixer.split(","))
    heads = 2 if not model.num_kv_heads or model.num_kv_heads == model.num_heads else 4
    model.num_layers = 2 * pattern if pattern == 1 else pattern
    model.width, model.num_heads, model.head_dim = 16 * heads, heads, 0
    model.num_kv_heads = min(model.num_kv_heads, 2)
    model.attention.window = min(model.attention.window, 8)
    model.attention.sinks = min(model.attention.sinks, 2)
    model.mlp.hidden = min(model.mlp.hidden, 64)
    model.swiglu.hidden = min(model.swiglu.hidden, 64)
    lact = model.lact
    lact.heads, lact.rank = min(lact.heads, heads), min(lact.rank, 4)
    lact.chunk_size, lact.window = min(lact.chunk_size, 8), min(lact.window, 8)
    pattention = model.pattention
    for key, most in (("tokens", 32), ("channel_tokens", 64), ("up_tokens", 64), ("down_tokens", 64)):
        pattention[key] = min(pattention[key], most)
    for key in ("q_tokens", "k_tokens", "v_tokens", "o_tokens"):
        pattention[key] = min(pattention[key], 32)
    pattention.top_r = min(pattention.top_r, 8)
    model.vocab_size = 0
    model.dtype = "float32" if model.dtype == "float16" else model.dtype
    model.unroll = 1  # One layer compiles sooner than many.
    data.length, data.max_files = 32, 40
    data.batch_size = 8 * config.train.accumulation
    if data.tokenizer == "bpe":
        data.vocab_size = 300
    config.block_diffusion.block = math.gcd(config.block_diffusion.block, data.length)
    config.train.steps, config.train.log_every = 4, 1
    config.eval.every, config.eval.batches, config.eval.batch_size = 2, 2, 8
    config.eval.sample_tokens = config.generate.max_tokens = 8
    config.checkpoint.every = 2
    config.optimizer.warmup = 1.0
    return config
