"""Between which values a number of the config may lie, for the preflight: a new knob with a limit is a word here."""

POSITIVE = (
    "data.length", "data.batch_size", "model.vocab_multiple", "model.width", "model.num_layers", "model.num_heads",
    "train.steps", "train.accumulation", "train.log_every", "train.profile_steps", "generate.max_tokens",
    "checkpoint.keep_last", "masked_diffusion.draws", "block_diffusion.draws", "block_diffusion.block",
    "model.lact.heads", "model.lact.chunk_size", "model.lact.window", "model.ttt_linear.mini_batch",
    "model.ttt_mlp.mini_batch", "model.linear_attention.chunk_size", "model.gated_delta.chunk_size",
    "score_entropy.draws", "generate.draft", "insertion.draws", "neodiff.levels", "neodiff.draws",
    "generate.diffusion.adaptive.prompt_every", "generate.diffusion.adaptive.answer_every", "model.mup.base_width",
)  # fmt: skip
NOT_NEGATIVE = (
    "seed", "data.vocab_size", "data.max_files", "data.tokenizer_sample",
    "model.vocab_size", "model.num_kv_heads", "model.head_dim",
    "model.logit_scale", "model.softcap", "model.embedding_scale", "model.unroll", "model.attention.window",
    "model.attention.sinks", "model.mlp.hidden", "model.swiglu.hidden", "model.pattention.tokens",
    "model.pattention.channel_tokens", "model.pattention.q_tokens", "model.pattention.k_tokens",
    "model.pattention.v_tokens", "model.pattention.o_tokens", "model.pattention.up_tokens",
    "model.pattention.down_tokens", "model.pattention.top_r", "loss.z_loss", "optimizer.warmup",
    "optimizer.weight_decay", "optimizer.clip", "eval.every", "eval.batches", "eval.batch_size", "eval.sample_tokens",
    "checkpoint.every", "checkpoint.keep_every", "checkpoint.keep_best", "generate.temperature", "generate.top_k",
    "masked_diffusion.steps", "generate.diffusion.steps", "generate.diffusion.block", "generate.diffusion.factor",
    "generate.diffusion.guidance", "model.lact.newton_schulz_steps", "model.lact.rank", "model.time_features",
    "neodiff.noise_factor", "generate.diffusion.refresh", "model.mup.base_head_dim", "model.mup.base_layers",
)  # fmt: skip
SHARES = {  # key: (least, most), both allowed
    "data.validation": (0.0, 0.9), "model.attention.rope_fraction": (0.0, 1.0), "optimizer.final": (0.0, 1.0),
    "optimizer.decay_share": (0.0, 1.0), "optimizer.b1": (0.0, 0.9999), "optimizer.b2": (0.0, 0.99999),
    "optimizer.ema": (0.0, 0.99999), "generate.top_p": (1e-6, 1.0), "generate.min_p": (0.0, 1.0),
    "model.init_std": (1e-8, 10.0), "optimizer.learning_rate": (1e-12, 100.0), "optimizer.eps": (0.0, 1.0),
    "model.norm_eps": (0.0, 1.0), "model.attention.rope_theta": (1.0, 1e12),
    "masked_diffusion.t_min": (0.0, 1.0), "masked_diffusion.t_max": (1e-6, 1.0), "block_diffusion.t_min": (0.0, 1.0),
    "block_diffusion.t_max": (1e-6, 1.0), "generate.diffusion.remask": (0.0, 1.0),
    "generate.diffusion.threshold": (0.0, 1.0), "model.lact.hidden_ratio": (0.01, 100.0),
    "model.lact.base_rate": (1e-8, 10.0), "model.lact.rope_theta": (1.0, 1e12),
    "model.ttt_linear.base_rate": (1e-8, 100.0), "model.ttt_linear.rope_theta": (1.0, 1e12),
    "model.ttt_mlp.base_rate": (1e-8, 100.0), "model.ttt_mlp.rope_theta": (1.0, 1e12),
    "model.ttt_mlp.hidden_ratio": (0.01, 100.0),
    "any_subset.rate_min": (0.0, 1.0), "any_subset.rate_max": (0.0, 1.0), "score_entropy.t_min": (0.0, 1.0),
    "score_entropy.t_max": (1e-6, 1.0), "neodiff.smoothing": (0.0, 1.0), "neodiff.conditioned": (0.0, 1.0),
    "generate.insertion.threshold": (0.0, 1.0), "generate.diffusion.adaptive.share": (0.0, 1.0),
}  # fmt: skip
