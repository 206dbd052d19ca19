"""Tiny random models of every family, each field that transformers reads varied at least once: name -> (class, fields).

`build` makes one with torch; `python -m tests.experiments.pretrained.cases FOLDER` writes the fixtures of the tests:
config.json and model.safetensors as transformers saves them, and the logits that torch computes for `IDS`.
"""

import json
import pathlib
import shutil
import sys

import numpy as np

SIZES = {
    "vocab_size": 29, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GQA = {"num_key_value_heads": 2}
GPT2 = {
    "vocab_size": 29, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2
}  # fmt: skip
T = 24
IDS = np.random.default_rng(7).integers(3, 29, (2, T))
THETA = {"rope_theta": 50.0}
REST = {"num_key_value_heads": 2, "hidden_act": "gelu_new", "rms_norm_eps": 0.02}
MOE = {"moe_intermediate_size": 12, "num_experts": 6, "num_experts_per_tok": 3}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {
    "rope_type": "longrope", "rope_theta": 50.0, "short_factor": [1.0, 1.5], "long_factor": [2.0, 5.0],
    "original_max_position_embeddings": 16,
}  # fmt: skip
CASES = {
    "llama": ("Llama", SIZES | {"rope_parameters": THETA}),
    "llama-gqa-biases": ("Llama", SIZES | GQA | {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 0.02}),
    "llama-wide-heads-tied": ("Llama", SIZES | GQA | {"head_dim": 6, "tie_word_embeddings": True}),
    "llama3": ("Llama", SIZES | GQA | {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", SIZES | {"rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 3.0}}),
    "llama-dynamic": (
        "Llama",
        SIZES | {"max_position_embeddings": 16, "head_dim": 8}
        | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 50.0, "factor": 2.0}},
    ),
    "llama-yarn": ("Llama", SIZES | {"head_dim": 16, "rope_parameters": YARN}),
    "llama-yarn-all": (
        "Llama",
        SIZES | {"head_dim": 16}
        | {"rope_parameters": YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.4,
                                      "truncate": False}},
    ),
    "llama-yarn-factor": ("Llama", SIZES | {"head_dim": 16, "rope_parameters": YARN | {"attention_factor": 1.3}}),
    "llama-relu": ("Llama", SIZES | {"hidden_act": "relu"}),
    "granite": (
        "Granite",
        SIZES | GQA | {"embedding_multiplier": 1.7, "attention_multiplier": 0.3, "residual_multiplier": 0.4}
        | {"logits_scaling": 2.5, "attention_bias": True, "mlp_bias": True},
    ),
    "mistral": ("Mistral", SIZES | GQA | {"sliding_window": 5, "head_dim": 6, "rope_parameters": THETA}),
    "mistral-no-window": ("Mistral", SIZES | GQA | {"sliding_window": None}),
    "qwen2": ("Qwen2", SIZES | GQA | {"rope_parameters": THETA}),
    "qwen2-windows": (
        "Qwen2",
        SIZES | GQA | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "num_hidden_layers": 3}
        | {"tie_word_embeddings": True},
    ),
    "qwen3": ("Qwen3", SIZES | GQA | {"head_dim": 6, "rms_norm_eps": 0.02, "rope_parameters": THETA}),
    "qwen3-bias-windows": (
        "Qwen3",
        SIZES | GQA | {"head_dim": 6, "attention_bias": True, "use_sliding_window": True, "sliding_window": 4}
        | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gemma2": (
        "Gemma2",
        SIZES | GQA | {"head_dim": 6, "sliding_window": 5, "query_pre_attn_scalar": 11, "attn_logit_softcapping": 0.7}
        | {"final_logit_softcapping": 1.5, "num_hidden_layers": 4, "rope_parameters": THETA},
    ),
    "gemma2-no-caps": (
        "Gemma2",
        SIZES | GQA | {"head_dim": 6, "attn_logit_softcapping": None, "final_logit_softcapping": None}
        | {"attention_bias": True, "hidden_activation": "gelu", "tie_word_embeddings": False, "num_hidden_layers": 3},
    ),
    "gemma3": (
        "Gemma3Text",
        SIZES | GQA | {"head_dim": 6, "sliding_window": 5, "query_pre_attn_scalar": 11, "num_hidden_layers": 7}
        | {"rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}},
    ),
    "gemma3-caps": (
        "Gemma3Text",
        SIZES | GQA | {"head_dim": 6, "sliding_window": 3, "final_logit_softcapping": 1.5, "num_hidden_layers": 4}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2, "rms_norm_eps": 0.02},
    ),
    "smollm3": ("SmolLM3", SIZES | GQA | {"num_hidden_layers": 4, "rope_parameters": THETA, "rms_norm_eps": 0.02}),
    "smollm3-all": (
        "SmolLM3",
        SIZES | GQA | {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 0, 1], "use_sliding_window": True}
        | {"sliding_window": 4, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    ),
    "olmo2": ("Olmo2", SIZES | GQA | {"rope_parameters": THETA, "rms_norm_eps": 0.02}),
    "olmo2-bias": ("Olmo2", SIZES | {"attention_bias": True, "tie_word_embeddings": True}),
    "phi3": ("Phi3", SIZES | GQA | {"sliding_window": 5, "rope_parameters": THETA}),
    "phi3-partial": ("Phi3", SIZES | GQA | {"rope_parameters": THETA | {"partial_rotary_factor": 0.5}}),
    "phi3-long": (
        "Phi3",
        SIZES | GQA | {"original_max_position_embeddings": 16, "rope_parameters": LONG},
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2-all": (
        "GPT2",
        GPT2 | {"scale_attn_by_inverse_layer_idx": True, "n_inner": 20, "activation_function": "relu"}
        | {"layer_norm_epsilon": 0.02, "tie_word_embeddings": False},
    ),
    "gpt2-unscaled": ("GPT2", GPT2 | {"scale_attn_weights": False, "reorder_and_upcast_attn": True}),
    "neox": (
        "GPTNeoX",
        SIZES | {"rope_parameters": THETA | {"partial_rotary_factor": 0.5}, "layer_norm_eps": 0.02},
    ),
    "neox-sequential": (
        "GPTNeoX",
        SIZES | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True}
        | {"rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 1.0}, "hidden_act": "gelu_new"},
    ),
    "granite-rest": (
        "Granite",
        SIZES | REST | {"rope_parameters": THETA, "residual_multiplier": 0.7, "tie_word_embeddings": True},
    ),
    "mistral-rest": ("Mistral", SIZES | REST | {"tie_word_embeddings": True, "sliding_window": None}),
    "qwen2-rest": (
        "Qwen2",
        SIZES | REST | {"use_sliding_window": True, "sliding_window": 4}
        | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "qwen3-rest": (
        "Qwen3",
        SIZES | REST | {"head_dim": 6, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 4}
        | {"max_window_layers": 1},
    ),
    "gemma2-rest": (
        "Gemma2",
        SIZES | GQA | {"head_dim": 6, "rms_norm_eps": 0.02, "sliding_window": 4}
        | {"layer_types": ["full_attention", "sliding_attention"]},
    ),
    "gemma3-rest": (
        "Gemma3Text",
        SIZES | GQA | {"head_dim": 6, "hidden_activation": "silu", "attention_bias": True, "sliding_window": 4}
        | {"tie_word_embeddings": False, "attn_logit_softcapping": 0.7},
    ),
    "smollm3-rest": (
        "SmolLM3",
        SIZES | REST | {"num_hidden_layers": 4, "no_rope_layer_interval": 2, "use_sliding_window": True}
        | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "olmo2-rest": ("Olmo2", SIZES | REST),
    "phi3-rest": ("Phi3", SIZES | REST | {"tie_word_embeddings": True}),
    "mixtral": (
        "Mixtral",
        SIZES | GQA | {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 5, "head_dim": 6}
        | {"rope_parameters": THETA, "router_aux_loss_coef": 0.02},
    ),
    "mixtral-rest": (
        "Mixtral",
        SIZES | REST | {"num_local_experts": 3, "num_experts_per_tok": 1, "tie_word_embeddings": True},
    ),
    "qwen3-moe": (
        "Qwen3Moe",
        SIZES | GQA | MOE | {"norm_topk_prob": True, "head_dim": 6, "rope_parameters": THETA, "rms_norm_eps": 0.02},
    ),
    "qwen3-moe-rest": (
        "Qwen3Moe",
        SIZES | GQA | {"moe_intermediate_size": 12, "num_local_experts": 6, "num_experts_per_tok": 5}
        | {"attention_bias": True, "use_sliding_window": True, "sliding_window": 4}
        | {"hidden_act": "gelu_new", "tie_word_embeddings": True, "router_aux_loss_coef": 0.5},
    ),
    "qwen3-moe-dense-first": (
        "Qwen3Moe",
        SIZES | GQA | MOE | {"mlp_only_layers": [0], "num_hidden_layers": 3, "norm_topk_prob": True, "head_dim": 6}
        | {"router_aux_loss_coef": 0.3, "intermediate_size": 20},
    ),
    "qwen3-moe-every-other": (
        "Qwen3Moe",
        SIZES | GQA | MOE | {"decoder_sparse_step": 2, "num_hidden_layers": 4, "head_dim": 6, "hidden_act": "relu"}
        | {"use_sliding_window": True, "sliding_window": 4},
    ),
    "gpt-oss": (
        "GptOss",
        SIZES | GQA | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 8, "head_dim": 16}
        | {"swiglu_limit": 0.7, "swiglu_alpha": 1.1, "num_hidden_layers": 4, "rms_norm_eps": 0.02, "sliding_window": 4}
        | {"rope_parameters": YARN | {"truncate": False}, "router_aux_loss_coef": 0.3},
    ),
    "gpt-oss-rest": (
        "GptOss",
        SIZES | GQA | {"num_local_experts": 4, "head_dim": 16, "attention_bias": False, "sliding_window": 5}
        | {"layer_types": ["full_attention", "sliding_attention"], "tie_word_embeddings": True},
    ),
}  # fmt: skip
FIXTURES = (
    "llama3", "llama-yarn-all", "llama-dynamic", "llama-gqa-biases", "mistral", "qwen2-windows", "qwen3", "gemma2",
    "gemma3", "smollm3", "olmo2", "phi3-long", "gpt2-all", "neox", "mixtral", "qwen3-moe", "gpt-oss",
    "qwen3-moe-dense-first",
)  # fmt: skip


def build(name: str, dtype: str = "float32"):
    """The model of a case, every parameter drawn so that none hides what is done with it; torch is imported here."""
    import torch
    import transformers

    class_, fields = CASES[name]
    torch.manual_seed(3)
    config = getattr(transformers, f"{class_}Config")(**fields)
    config._attn_implementation = config._experts_implementation = "eager"
    causal = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}.get(class_, f"{class_}ForCausalLM")
    model = getattr(transformers, causal)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn_like(parameter)
            if parameter.ndim == 1:
                parameter.add_(0.3 * drawn)
            else:
                parameter.copy_(drawn / parameter.shape[-1] ** 0.5)
    return model.to(getattr(torch, dtype))


def logits(model) -> np.ndarray:
    """For `IDS`, as float64."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(IDS)).logits.double().numpy()


def write(folder: pathlib.Path) -> None:
    """The fixtures, each in a folder of its name."""
    for name in FIXTURES:
        place, model = folder / name, build(name)
        shutil.rmtree(place, ignore_errors=True)
        model.save_pretrained(place)
        (place / "generation_config.json").unlink(missing_ok=True)
        np.save(place / "logits.npy", logits(model).astype(np.float32))
        told = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]))
