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
    return {
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "width": D, "num_layers": f.count("block_count", most=LAYERS), "num_heads": N,
        "num_kv_heads": f.count("attention.head_count_kv", N), "head_dim": H if H * N != D else 0,
        "tied": "output.weight" not in header.tensors, "norm": "rmsnorm",
        "norm_eps": float(f.number("attention.layer_norm_rms_epsilon")), "channel": "swiglu",
        "swiglu": {"hidden": f.count("feed_forward_length"), "activation": "silu", "bias": False},
        "mixer": "attention", "attention": _rope(f, header, H),
    }  # fmt: skip


def _rope(f: Fields, header: Header, H: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rope_theta": float(f.number("rope.freq_base", 10000.0)),
        "rope_fraction": f.number("rope.dimension_count", H) / H,
    }
    kind, factor = f("rope.scaling.type", "none"), float(f.number("rope.scaling.factor", 1.0))
    original = f.count("rope.scaling.original_context_length", f.left.get("context_length", 8192))
    f("rope.scaling.finetuned", None)
    if "rope_freqs.weight" in header.tensors:  # Llama 3.1: what every rate is divided by.
        factors = tuple(repr(float(number)) for number in header.numbers("rope_freqs.weight"))
        told = {"kind": "longrope", "factor": 1.0, "original": original, "attention_factor": 1.0}
        return found | {"rope_scaling": told | {"short_factors": factors, "long_factors": factors}}
    if kind == "linear":
        found["rope_scaling"] = {"kind": "linear", "factor": factor}
    elif kind == "yarn":
        found["rope_scaling"] = {"kind": "yarn", "factor": factor, "original": original}
    elif kind != "none":
        raise Unreadable(
            f"{header.path} has rope.scaling.type={kind!r}, which is unknown; known are none, linear, yarn."
        )
    return found


def llama(f: Fields, header: Header) -> dict[str, Any]:
    """Llama, Mistral, SmolLM2: everything that is saved as one."""
    found = _decoder(f, header)
    if any("_exps" in name for name in header.tensors) or f("expert_count", None):
        raise Unreadable(f"{header.path} is a mixture of experts, which is not read yet; give a dense model.")
    bias = "blk.0.attn_q.bias" in header.tensors
    return found | {"attention": found["attention"] | ({"qkv_bias": True} if bias else {})}


def qwen2(f: Fields, header: Header) -> dict[str, Any]:
    """Qwen 2 and 2.5: bias in q, k and v."""
    found = _decoder(f, header)
    return found | {"attention": found["attention"] | {"qkv_bias": True}}


def qwen3(f: Fields, header: Header) -> dict[str, Any]:
    """Qwen 3: norms of every head of q and k."""
    found = _decoder(f, header)
    return found | {"attention": found["attention"] | {"qk_norm": True}}


def gemma3(f: Fields, header: Header) -> dict[str, Any]:
    """Gemma 3 (text). Its norms hold 1 + w here."""
    found = _decoder(f, header)
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
    "llama": llama, "qwen2": qwen2, "qwen3": qwen3, "gemma3": gemma3,
}  # fmt: skip
