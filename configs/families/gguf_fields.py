"""The fields of a GGUF file as values of `model.*`: one function an architecture."""

from collections.abc import Callable
from typing import Any

from configs.families.fields import LAYERS, Fields, Unreadable, by_layer, flat
from configs.families.gguf_header import Header

# They change no logit here: what the file is called, how it was made, its tokenizer, what ggml wants to know beside.
IGNORED = (
    "context_length",
    "file_type",
    "quantization_version",
    "vocab_size",
    "attention.causal",
    "tensor_data_layout",
)
BETAS = {"fast": 32.0, "slow": 1.0}  # Of yarn.


def describe(header: Header) -> tuple[str, dict[str, Any]]:
    """(architecture, values by key within `model`); see `configs.families.describe`."""
    name = header.fields.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise Unreadable(
            f"{header.path} has general.architecture={name!r}, which is unknown; known are {', '.join(ARCHITECTURES)}."
        )
    told = {key.removeprefix(f"{name}."): v for key, v in header.fields.items() if key.startswith(f"{name}.")}
    f = Fields(told, str(header.path))
    found = ARCHITECTURES[name](f, header)
    f.done(IGNORED)
    return name, flat(found)


def _decoder(f: Fields, header: Header) -> dict[str, Any]:
    if "token_embd.weight" not in header.tensors:
        raise Unreadable(f"{header.path} lacks the tensor 'token_embd.weight'; bring the whole file back.")
    D, N = f.count("embedding_length"), f.count("attention.head_count")
    H = f.count("attention.key_length", D // N)
    if f.number("attention.value_length", H) != H:
        raise Unreadable(f"{header.path} has values of another width than keys, which is not computed here.")
    L = f.count("block_count", most=LAYERS)
    return {
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "width": D, "num_layers": L, "num_heads": N,
        "num_kv_heads": f.count("attention.head_count_kv", N), "head_dim": H if H * N != D else 0,
        "tied": "output.weight" not in header.tensors, "norm": "rmsnorm",
        "norm_eps": float(f.number("attention.layer_norm_rms_epsilon")), "mixer": "attention",
        "attention": _rope(f, header, H), **(_experts(f, L) if f.left.get("expert_count") else _dense(f)),
    }  # fmt: skip


def _dense(f: Fields) -> dict[str, Any]:
    f.only("expert_count", None, 0)
    f.only("expert_used_count", None, 0)
    hidden = f.count("feed_forward_length")
    return {"channel": "swiglu", "swiglu": {"hidden": hidden, "activation": "silu", "bias": False}}


def _experts(f: Fields, L: int) -> dict[str, Any]:
    """A mixture of experts in every layer, of the k best by a softmax over them (llama.cpp divides by their sum)."""
    E, k = f.count("expert_count"), f.count("expert_used_count")
    if k > E:
        raise Unreadable(f"{f.where} gives a token {k} of {E} experts; expert_used_count is at most expert_count.")
    f.only("expert_gating_func", None, 1)
    f.only("expert_weights_norm", None, True)
    f.only("expert_weights_scale", None, 0.0, 1.0)
    f.only("expert_shared_count", None, 0)
    dense = f.count("feed_forward_length")
    return {
        "channel": "moe",
        "moe": {
            "experts": E, "k": k, "hidden": f.count("expert_feed_forward_length", dense), "activation": "silu",
            "router": "softmax_after", "balance": 0.001 / L, "normalise_k": False, "z_loss": 0.0,
        },
    }  # fmt: skip


def _rope(f: Fields, header: Header, H: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rope_theta": float(f.number("rope.freq_base", 10000.0)),
        "rope_fraction": f.number("rope.dimension_count", H) / H,
    }
    kind, factor = f("rope.scaling.type", "none"), float(f.number("rope.scaling.factor", 1.0))
    original = f.count("rope.scaling.original_context_length", f.left.get("context_length", 8192))
    f("rope.scaling.finetuned", None)
    betas = {f"beta_{end}": float(f.number(f"rope.scaling.yarn_beta_{end}", beta)) for end, beta in BETAS.items()}
    if "rope_freqs.weight" in header.tensors:  # Llama 3.1: what every rate is divided by.
        factors = tuple(repr(float(number)) for number in header.numbers("rope_freqs.weight"))
        told = {"kind": "longrope", "factor": 1.0, "original": original, "attention_factor": 1.0}
        return found | {"rope_scaling": told | {"short_factors": factors, "long_factors": factors}}
    if kind == "linear":
        found["rope_scaling"] = {"kind": "linear", "factor": factor}
    elif kind == "yarn":
        found["rope_scaling"] = {"kind": "yarn", "factor": factor, "original": original, **betas}
    elif kind != "none":
        raise Unreadable(
            f"{header.path} has rope.scaling.type={kind!r}, which is unknown; known are none, linear, yarn."
        )
    return found


def llama(f: Fields, header: Header) -> dict[str, Any]:
    """Llama, Mistral, Mixtral, SmolLM2: everything that is saved as one."""
    found = _decoder(f, header)
    if "blk.0.ffn_gate.0.weight" in header.tensors:
        raise Unreadable(
            f"{header.path} has a tensor for every expert, as files of before April 2024; convert the model again."
        )
    bias = "blk.0.attn_q.bias" in header.tensors
    return found | {"attention": found["attention"] | ({"qkv_bias": True} if bias else {})}


def qwen2(f: Fields, header: Header) -> dict[str, Any]:
    """Qwen 2 and 2.5: bias in q, k and v."""
    found = _without_experts(_decoder(f, header), header)
    return found | {"attention": found["attention"] | {"qkv_bias": True}}


def qwen3(f: Fields, header: Header) -> dict[str, Any]:
    """Qwen 3: norms of every head of q and k."""
    return _without_experts(_normed(f, header), header)


def _normed(f: Fields, header: Header) -> dict[str, Any]:
    found = _decoder(f, header)
    return found | {"attention": found["attention"] | {"qk_norm": True}}


def qwen3moe(f: Fields, header: Header) -> dict[str, Any]:
    """Qwen 3 with experts in every layer, gates divided by their sum."""
    return _mixture(_normed(f, header), header)


def gpt_oss(f: Fields, header: Header) -> dict[str, Any]:
    """gpt-oss: what its files do not say is as in those of its release, its wavelengths included."""
    window = f.number("attention.sliding_window", 128)
    found = _mixture(_decoder(f, header), header)
    found["moe"] |= {"bias": True, "limit": 7.0, "alpha": 1.702}
    attention = found["attention"] | {"sink_scores": True, "bias": "blk.0.attn_q.bias" in header.tensors}
    if (scaling := attention.get("rope_scaling", {})).get("kind") == "yarn":
        attention["rope_scaling"] = scaling | {"truncate": False}
    layers = [{"window": window} if i % 2 == 0 and window else {} for i in range(found["num_layers"])]
    return found | {"attention": attention} | by_layer(layers)


def _without_experts(found: dict[str, Any], header: Header) -> dict[str, Any]:
    if found["channel"] != "swiglu":
        raise Unreadable(f"{header.path} has an expert_count, and its architecture has no experts.")
    return found


def _mixture(found: dict[str, Any], header: Header) -> dict[str, Any]:
    if found["channel"] != "moe":
        raise Unreadable(f"{header.path} has no expert_count, which its architecture needs.")
    return found


def gemma3(f: Fields, header: Header) -> dict[str, Any]:
    """Gemma 3 (text). Its norms hold 1 + w here."""
    found = _without_experts(_decoder(f, header), header)
    H, window, L = found["head_dim"] or found["width"] // found["num_heads"], 0, found["num_layers"]
    window = f.number("attention.sliding_window", 0)
    wide = L == 62  # 27B: query_pre_attn_scalar is D / N.
    scale = (found["width"] / found["num_heads"] if wide else H) ** -0.5
    found["swiglu"]["activation"] = "gelu"
    near = {"window": window, "rope_theta": float(f.number("rope.freq_base_swa", 10000.0))}
    if "rope_scaling" in found["attention"]:
        near["rope_scaling"] = {"kind": "none"}
    more = {
        "embedding_scale": 0.0, "norm_place": "sandwich", "softcap": float(f.number("final_logit_softcapping", 0.0)),
        "attention": found["attention"] | {"qk_norm": True, "scale": scale},
    }  # fmt: skip
    return found | more | by_layer([{} if (i + 1) % 6 == 0 else near for i in range(L)])


ARCHITECTURES: dict[str, Callable[[Fields, Header], dict[str, Any]]] = {
    "llama": llama, "qwen2": qwen2, "qwen3": qwen3, "gemma3": gemma3, "qwen3moe": qwen3moe,
    "gpt-oss": gpt_oss,
}  # fmt: skip
