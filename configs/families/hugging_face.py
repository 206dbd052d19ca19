"""config.json of each family as values of `model.*`: one function a family, which takes every field that it knows.

Defaults are those of the family's class in transformers, which stand where a file does not say otherwise.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from configs.families.fields import ACTIVATIONS, LAYERS, Fields, Unreadable, by_layer, flat, rope

# They change no logit: names, types of storage, what generation does, what training did.
IGNORED = (
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache", "bos_token_id",
    "eos_token_id", "pad_token_id", "unk_token_id", "initializer_range", "attention_dropout", "hidden_dropout",
    "classifier_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "pretraining_tp", "max_position_embeddings",
    "is_decoder", "tokenizer_class", "auto_map", "id2label", "label2id", "problem_type", "return_dict",
    "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "is_encoder_decoder",
    "task_specific_params", "prefix", "finetuning_task", "summary_type", "summary_use_proj", "summary_activation",
    "summary_proj_to_labels", "summary_first_dropout", "reorder_and_upcast_attn", "n_ctx", "gradient_checkpointing",
    "cache_implementation", "transformers.js_config", "is_llama_config", "return_dict_in_generate", "output_scores",
    "cross_attention_hidden_size", "decoder_start_token_id", "tf_legacy_loss", "pruned_heads", "use_bfloat16",
    "bad_words_ids", "sep_token_id", "output_router_logits", "router_jitter_noise",
)  # fmt: skip


def describe(told: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """(family, values by key within `model`) of a config.json; see `configs.families.describe`."""
    name = told.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise Unreadable(f"{where} has model_type={name!r}, which is unknown; known are {', '.join(FAMILIES)}.")
    f = Fields(told, where)
    if (name, (told.get("quantization_config") or {}).get("quant_method")) == ("gpt_oss", "mxfp4"):
        f("quantization_config")
    f.only("quantization_config", None)
    found = FAMILIES[name](f)
    f.done(IGNORED)
    return name, flat(found)


def _sizes(f: Fields, *, tied: bool, kv: bool = True, width: bool = True) -> dict[str, Any]:
    """Sizes and parts of a decoder whose fields are named as Llama's."""
    heads = f.count("num_attention_heads")
    return {
        "vocab_size": f.count("vocab_size"),
        "width": f.count("hidden_size"),
        "num_layers": f.count("num_hidden_layers", most=LAYERS),
        "num_heads": heads,
        "num_kv_heads": f.count("num_key_value_heads", heads) if kv else 0,
        "head_dim": (f("head_dim", None) or 0) if width else 0,
        "tied": bool(f("tie_word_embeddings", tied)),
        "norm": "rmsnorm",
        "norm_eps": float(f.number("rms_norm_eps", 1e-6)) if kv else 0.0,
        "mixer": "attention",
        "attention": {},
    }


def _gated(f: Fields, *, field: str = "hidden_act", default: str = "silu", bias: bool = False) -> dict[str, Any]:
    activation = f.choice(field, default, ACTIVATIONS)
    return {
        "channel": "swiglu",
        "swiglu": {"hidden": f.count("intermediate_size"), "activation": activation, "bias": bias},
    }


def _rope(f: Fields, *, longest: int, theta: float = 10000.0, original: int | None = None) -> dict[str, Any]:
    """Rotary options of all layers; `rope_theta` and `partial_rotary_factor` may stand beside the group."""
    told = dict(f("rope_scaling", None) or {}) | dict(f("rope_parameters", None) or {})
    beside = {"rope_theta": f("rope_theta", None), "partial_rotary_factor": f("partial_rotary_factor", None)}
    told = {name: value for name, value in beside.items() if value is not None} | told
    return rope(told, longest=longest, theta=theta, where=f.where, original=original)


def _longest(f: Fields, default: int) -> int:
    return f.count("max_position_embeddings", default)


def _windows(types: list, window: int | None, f: Fields, L: int) -> list[dict[str, Any]]:
    """What differs at each of the L layers by `layer_types`."""
    if len(types) != L:
        raise Unreadable(f"{f.where} has {len(types)} layer_types and {L} layers.")
    for name in types:
        if name not in ("full_attention", "sliding_attention"):
            raise Unreadable(f"{f.where} has layer_types with {name!r}; known are full_attention, sliding_attention.")
    return [{"window": window} if name == "sliding_attention" and window else {} for name in types]


def llama(f: Fields) -> dict[str, Any]:
    """Llama 2 and 3, SmolLM2, and whatever else is saved as one."""
    found = _sizes(f, tied=False) | _gated(f, bias=bool(f("mlp_bias", False)))
    f.only("rope_interleaved", None, False)
    found["attention"] = {"bias": bool(f("attention_bias", False)), **_rope(f, longest=_longest(f, 2048))}
    return found


def granite(f: Fields) -> dict[str, Any]:
    """Granite: a Llama with multipliers."""
    f.only("head_dim", None)
    found = llama(f)
    found["attention"]["scale"] = float(f.number("attention_multiplier", 1.0))
    return found | {
        "embedding_scale": float(f.number("embedding_multiplier", 1.0)),
        "residual_scale": float(f.number("residual_multiplier", 1.0)),
        "logit_scale": 1 / float(f.number("logits_scaling", 1.0)),
    }


def mistral(f: Fields) -> dict[str, Any]:
    """Mistral: a window in every layer."""
    found = _sizes(f, tied=False) | _gated(f)
    window = f("sliding_window", 4096) or 0
    found["attention"] = {"window": window, **_rope(f, longest=_longest(f, 131072))}
    return found


def qwen2(f: Fields) -> dict[str, Any]:
    """Qwen 2 and 2.5: bias in q, k and v; windows from `max_window_layers` on, where they are used."""
    found = _sizes(f, tied=False, width=False) | _gated(f)
    return _qwen(f, found, {"qkv_bias": True})


def qwen3(f: Fields) -> dict[str, Any]:
    """Qwen 3: norms of every head of q and k."""
    f.left.setdefault("head_dim", 128)
    found = _sizes(f, tied=False) | _gated(f)
    return _qwen(f, found, {"qk_norm": True, "bias": bool(f("attention_bias", False))})


def _qwen(f: Fields, found: dict, attention: dict) -> dict[str, Any]:
    attention |= _rope(f, longest=_longest(f, 32768))
    f.only("use_mrope", None, False)
    window, used, first = f("sliding_window", 4096), f("use_sliding_window", False), f.number("max_window_layers", 28)
    window = window if used else None
    L = found["num_layers"]
    types = ["sliding_attention" if window is not None and i >= first else "full_attention" for i in range(L)]
    return found | {"attention": attention} | by_layer(_windows(f("layer_types", None) or types, window, f, L))


def mixtral(f: Fields) -> dict[str, Any]:
    """Mixtral: a Mistral whose channel is a mixture of experts, a softmax over the chosen ones."""
    f.left.setdefault("rms_norm_eps", 1e-5)
    f.left.setdefault("num_key_value_heads", 8)
    found = _sizes(f, tied=False) | {"channel": "moe"}
    found["moe"] = _experts(f, "num_local_experts", k=2, L=found["num_layers"]) | {
        "hidden": f.count("intermediate_size"), "activation": f.choice("hidden_act", "silu", ACTIVATIONS),
        "router": "softmax_after",
    }  # fmt: skip
    window = f("sliding_window", None) or 0
    found["attention"] = {"window": window, **_rope(f, longest=_longest(f, 131072), theta=1e6)}
    return found


def qwen3_moe(f: Fields) -> dict[str, Any]:
    """Qwen 3 with experts in all layers or some; gates of a softmax over all may be divided by their sum."""
    found = _sizes(f, tied=False)
    f("max_window_layers", None)  # Of Qwen 3; here a window is that of every layer.
    name = "num_experts" if "num_experts" in f.left else "num_local_experts"
    channels = _sparse(f, found["num_layers"], f.left.get(name, 1))
    found |= _some_experts(f, name, channels, k=8, hidden=768)
    window, used = f("sliding_window", 4096), f("use_sliding_window", False)
    found["attention"] = {
        "qk_norm": True, "bias": bool(f("attention_bias", False)), "window": window or 0 if used else 0,
        **_rope(f, longest=_longest(f, 32768)),
    }  # fmt: skip
    return found | by_layer([{}] * found["num_layers"], channels)


def _sparse(f: Fields, L: int, experts: Any) -> list[str]:
    """The channel of each layer: those that `mlp_only_layers` names are dense, and all but every n-th of the others."""
    step, dense = f.count("decoder_sparse_step", 1), f("mlp_only_layers", None) or []
    if not all(isinstance(i, int) for i in dense):
        raise Unreadable(f"{f.where} has mlp_only_layers={dense!r}, which are no numbers of layers.")
    return ["moe" if experts and i not in dense and (i + 1) % step == 0 else "swiglu" for i in range(L)]


def _some_experts(f: Fields, name: str, channels: Sequence[str], *, k: int, hidden: int) -> dict[str, Any]:
    """The channels of a Qwen whose layers are dense or have experts, and the options of those that there are."""
    experts = _experts(f, name, k=k, L=max(channels.count("moe"), 1), some="moe" in channels) | {
        "hidden": f.count("moe_intermediate_size", hidden),
        "router": "softmax_after" if f("norm_topk_prob", False) else "softmax_before",
    }  # fmt: skip
    dense = _gated(f)
    experts["activation"] = dense["swiglu"]["activation"]
    found = {"channel": channels[0]} | ({"moe": experts} if "moe" in channels else {})
    return found | ({"swiglu": dense["swiglu"]} if "swiglu" in channels else {})


GPT_OSS_ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


def gpt_oss(f: Fields) -> dict[str, Any]:
    """gpt-oss: sinks, biases everywhere, experts with a clamped gate, every other layer with a window."""
    for field, value in (("rms_norm_eps", 1e-5), ("head_dim", 64), ("num_key_value_heads", 8)):
        f.left.setdefault(field, value)
    f.only("hidden_act", "silu")
    for field in ("experts_per_token", "initial_context_length"):  # Released files say these twice.
        f(field, None)
    found = _sizes(f, tied=False) | {"channel": "moe"}
    found["moe"] = _experts(f, "num_local_experts", k=4, L=found["num_layers"]) | {
        "hidden": f.count("intermediate_size"), "router": "softmax_after", "bias": True,
        "limit": float(f.number("swiglu_limit", 7.0)), "alpha": float(f.number("swiglu_alpha", 1.702)),
    }  # fmt: skip
    if found["moe"]["limit"] <= 0:
        raise Unreadable(f"{f.where} has swiglu_limit={found['moe']['limit']!r}, which lets nothing through.")
    if not (f.left.get("rope_parameters") or f.left.get("rope_scaling")):
        f.left["rope_parameters"] = GPT_OSS_ROPE
    found["attention"] = {
        "bias": bool(f("attention_bias", True)), "sink_scores": True,
        **_rope(f, longest=_longest(f, 131072), theta=150000.0),
    }  # fmt: skip
    L = found["num_layers"]
    types = f("layer_types", None) or [("sliding_attention", "full_attention")[i % 2] for i in range(L)]
    return found | by_layer(_windows(types, f("sliding_window", 128), f, L))


def _experts(f: Fields, name: str, *, k: int, L: int, some: bool = True) -> dict[str, Any]:
    """How many there are, how many a token has, and the losses that train them; L: layers that have them, if `some` do.

    The library's balance loss is one of all layers together, at K where the load is even; ours are added up.
    """
    experts, k = f.count(name) if some else f(name, 0), f.count("num_experts_per_tok", k)
    if some and k > experts:
        raise Unreadable(f"{f.where} gives a token {k} of {experts} experts; num_experts_per_tok is at most {name}.")
    balance = float(f.number("router_aux_loss_coef", 0.001)) / L
    if balance < 0:
        raise Unreadable(f"{f.where} has a router_aux_loss_coef below 0, which drives all tokens to one expert.")
    return {"experts": experts, "k": k, "balance": balance, "normalise_k": False, "z_loss": 0.0}


def gemma2(f: Fields) -> dict[str, Any]:
    """Gemma 2: sandwich norms by 1 + w, soft caps, every other layer with a window."""
    found = _gemma(f, soft_caps=(50.0, 30.0))
    found["attention"] |= _rope(f, longest=_longest(f, 8192))
    types = f("layer_types", None) or [
        ("sliding_attention", "full_attention")[i % 2] for i in range(found["num_layers"])
    ]
    return found | by_layer(_windows(types, f("sliding_window", 4096), f, found["num_layers"]))


def gemma3(f: Fields) -> dict[str, Any]:
    """Gemma 3 (text): norms of q and k; five layers of six with a window and wavelengths of their own."""
    found = _gemma(f, soft_caps=(None, None))
    found["attention"] |= {"qk_norm": True, "softcap": 0.0}  # Its attn_logit_softcapping is told and never applied.
    pattern = f("sliding_window_pattern", 6)
    types = f("layer_types", None) or [
        "full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(found["num_layers"])
    ]
    longest, told = _longest(f, 131072), f("rope_parameters", None) or {}
    near, far = f("rope_local_base_freq", 10000.0), f("rope_theta", 1000000.0)
    nested = {name: told.get(name) for name in ("full_attention", "sliding_attention")}
    if told and not any(nested.values()):
        nested["full_attention"], nested["sliding_attention"] = told, None
    scaling = f("rope_scaling", None) or {}
    full = rope(nested["full_attention"] or scaling, longest=longest, theta=far, where=f.where)
    local = rope(nested["sliding_attention"] or {}, longest=longest, theta=near, where=f.where)
    if "rope_scaling" in full:
        local.setdefault("rope_scaling", {"kind": "none"})
    found["attention"] |= full
    differs = {name: value for name, value in local.items() if value != full.get(name)}
    layers = _windows(types, f("sliding_window", 4096), f, found["num_layers"])
    layers = [each | differs if name == "sliding_attention" else each for each, name in zip(layers, types, strict=True)]
    return found | by_layer(layers)


def _gemma(f: Fields, *, soft_caps: tuple) -> dict[str, Any]:
    f.left.setdefault("head_dim", 256)
    found = _sizes(f, tied=True) | _gated(f, field="hidden_activation", default="gelu_pytorch_tanh")
    f("hidden_act", None)  # Older files say it twice; the other one is read.
    f.only("use_bidirectional_attention", None, False)
    scores, logits = (
        f(f"{name}_logit_softcapping", cap) for name, cap in zip(("attn", "final"), soft_caps, strict=True)
    )
    return found | {
        "embedding_scale": 0.0, "norm_place": "sandwich", "norm_offset": True, "softcap": float(logits or 0.0),
        "attention": {
            "bias": bool(f("attention_bias", False)), "softcap": float(scores or 0.0),
            "scale": float(f.number("query_pre_attn_scalar", 256)) ** -0.5,
        },
    }  # fmt: skip


def smollm3(f: Fields) -> dict[str, Any]:
    """SmolLM3: every fourth layer without positions."""
    found = _sizes(f, tied=True) | _gated(f, bias=bool(f("mlp_bias", False)))
    found["attention"] = {
        "bias": bool(f("attention_bias", False)), **_rope(f, longest=_longest(f, 32768), theta=2000000.0)
    }  # fmt: skip
    every, L = f("no_rope_layer_interval", 4), found["num_layers"]
    turned = f("no_rope_layers", None) or [int((i + 1) % every != 0) for i in range(L)]
    window, used = f("sliding_window", None), f("use_sliding_window", False)
    window = window if used else None
    types = [("full_attention", "sliding_attention")[bool(window) and not has] for has in turned]
    layers = _windows(f("layer_types", None) or types, window, f, L)
    return found | by_layer(
        [each | ({} if has else {"rope_fraction": 0.0}) for each, has in zip(layers, turned, strict=True)]
    )


def olmo2(f: Fields) -> dict[str, Any]:
    """OLMo 2: norms behind the parts, and over all heads of q and of k together."""
    f.left.setdefault("rms_norm_eps", 1e-5)
    found = _sizes(f, tied=False, width=False) | _gated(f)
    attention = {"bias": bool(f("attention_bias", False)), "qk_norm": True, "qk_norm_over": "row"}
    return found | {"norm_place": "post", "attention": attention | _rope(f, longest=_longest(f, 2048))}


def phi3(f: Fields) -> dict[str, Any]:
    """Phi-3: fused maps, perhaps LongRoPE."""
    f.left.setdefault("rms_norm_eps", 1e-5)
    found = _sizes(f, tied=False) | _gated(f)
    original = f("original_max_position_embeddings", 4096)
    for key in ("rope_scaling", "rope_parameters"):
        told = f.left.get(key)
        if told and "yarn" in (told.get("type"), told.get("rope_type")):  # What older files called LongRoPE.
            f.left[key] = {**told, "type": "longrope", "rope_type": "longrope"}
    attention = _rope(f, longest=_longest(f, 4096), original=original)
    return found | {"attention": attention | {"window": f("sliding_window", None) or 0}}


def gpt2(f: Fields) -> dict[str, Any]:
    """GPT-2: learned positions, LayerNorm and biases everywhere, one head width."""
    f.only("add_cross_attention", False)
    D, N, L = f.count("n_embd", 768), f.count("n_head", 12), f.count("n_layer", 12, LAYERS)
    scale = (D // N) ** -0.5 if f("scale_attn_weights", True) else 1.0
    layers = [{}] * L
    if f("scale_attn_by_inverse_layer_idx", False):
        layers = [{"scale": scale / (i + 1)} for i in range(L)]
    return {
        "vocab_size": f.number("vocab_size", 50257), "width": D, "num_layers": L, "num_heads": N,
        "positions": f.count("n_positions", 1024), "tied": bool(f("tie_word_embeddings", True)),
        "norm": "layernorm", "norm_bias": True, "norm_eps": float(f.number("layer_norm_epsilon", 1e-5)),
        "channel": "mlp",
        "mlp": {
            "hidden": f("n_inner", None) or 4 * D, "bias": True,
            "activation": f.choice("activation_function", "gelu_new", ACTIVATIONS),
        },
        "attention": {"bias": True, "rope_fraction": 0.0, "scale": 0.0 if scale != 1.0 else 1.0},
    } | by_layer(layers)  # fmt: skip


def gpt_neox(f: Fields) -> dict[str, Any]:
    """GPT-NeoX and Pythia: both parts read one stream, a quarter of a head turns, LayerNorm and biases."""
    found = _sizes(f, tied=False, kv=False, width=False)
    bias = bool(f("attention_bias", True))
    beside = {"rope_theta": f("rotary_emb_base", None), "partial_rotary_factor": f("rotary_pct", 0.25)}
    for name, value in beside.items():
        if value is not None:
            f.left.setdefault(name, value)
    return found | {
        "norm": "layernorm", "norm_bias": True, "norm_eps": float(f.number("layer_norm_eps", 1e-5)),
        "parallel": bool(f("use_parallel_residual", True)), "channel": "mlp",
        "mlp": {
            "hidden": f.count("intermediate_size"), "bias": True,
            "activation": f.choice("hidden_act", "gelu", ACTIVATIONS),
        },
        "attention": {"bias": bias, **_rope(f, longest=_longest(f, 2048))},
    }  # fmt: skip


FAMILIES: dict[str, Callable[[Fields], dict[str, Any]]] = {
    "llama": llama, "granite": granite,
    "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3, "gemma2": gemma2, "gemma3_text": gemma3,
    "smollm3": smollm3, "olmo2": olmo2, "phi3": phi3, "gpt2": gpt2, "gpt_neox": gpt_neox,
    "mixtral": mixtral, "qwen3_moe": qwen3_moe, "gpt_oss": gpt_oss,
}  # fmt: skip
