"""A model of this house as the config.json of a family that can say it, or a sentence about what none can say.

Each family's fields are written from the config, read back by `hugging_face.describe`, and compared: what a family
cannot say shows as a difference, so nothing is exported that would compute something else.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from configs.families import gguf_fields, gguf_header, hugging_face
from configs.families.fields import ACTIVATIONS, Unreadable
from configs.families.resolved import differences, hidden, merged, of_experts, option, resolved


def hugging_face_config(
    model: Mapping[str, Any], base: Mapping[str, Any], *, longest: int
) -> tuple[str, dict[str, Any]]:
    """(family, config.json) of `config.model` as nested dicts.

    Args:
      model: of the model; vocab_size is V.
      base: the defaults of the house.
      longest: tokens of the longest text that it was trained on.

    Errors: Unreadable with one sentence that names the part that no family has.
    """
    wanted, tried, failed = resolved(model), {}, None
    for family, write in WRITERS.items():
        fields = {"model_type": family, **write(model, wanted, longest)}
        try:
            told = hugging_face.describe(fields, family)[1]
        except Unreadable as error:
            failed = error
            continue
        tried[family] = differences(wanted, resolved(merged(base, told)))
        if not tried[family]:
            return family, fields
    raise Unreadable(_refusal(tried) if tried else f"the model cannot be exported: {failed}")


def gguf_fields_of(
    model: Mapping[str, Any],
    base: Mapping[str, Any],
    shapes: Mapping[str, Mapping[str, tuple]],
    factors: Mapping[str, Any],
    *,
    longest: int,
) -> tuple[str, dict[str, Any]]:
    """(architecture, fields "ARCHITECTURE.name") of `config.model` for a .gguf file; see `hugging_face_config`.

    shapes: by architecture the tensors that would be written; factors: those that divide rotary rates, by name.
    """
    wanted, tried, failed = resolved(model), {}, None
    for name, tensors in shapes.items():
        fields = {f"{name}.{key}": value for key, value in _gguf_fields(name, model, wanted, longest).items()}
        header = _Header(
            None,
            {"general.architecture": name, **fields},
            {key: gguf_header.Tensor(key, shape, 0, 0, 0) for key, shape in tensors.items()},
            factors,
        )
        try:
            told = gguf_fields.describe(header)[1]
        except Unreadable as error:
            failed = error
            continue
        tried[name] = differences(wanted, resolved(merged(base, told)))
        if not tried[name]:
            return name, fields
    raise Unreadable(_refusal(tried) if tried else f"the model cannot be exported: {failed}")


def _gguf_fields(name: str, model: Mapping[str, Any], wanted: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """The fields of a model by what stands behind "ARCHITECTURE."."""
    wide = [each for each in wanted["layers"] if not each["window"]] or wanted["layers"]
    each, near = wide[0], next((each for each in wanted["layers"] if each["window"]), None)
    scaling = each["rope_scaling"]
    fields = {
        "embedding_length": model["width"], "block_count": model["num_layers"], "context_length": longest,
        "feed_forward_length": hidden(wanted, "mlp", "swiglu"), "attention.head_count": model["num_heads"],
        "attention.head_count_kv": wanted["num_kv_heads"], "attention.key_length": wanted["head_dim"],
        "attention.value_length": wanted["head_dim"], "attention.layer_norm_rms_epsilon": model["norm_eps"],
        "rope.freq_base": each["rope_theta"], "vocab_size": model["vocab_size"],
        "rope.dimension_count": int(wanted["head_dim"] * each["rope_fraction"]) // 2 * 2,
    }  # fmt: skip
    if name == "gemma3" and near:
        fields |= {"attention.sliding_window": near["window"], "rope.freq_base_swa": near["rope_theta"]}
    if name == "gemma3" and model["softcap"]:
        fields["final_logit_softcapping"] = model["softcap"]
    if name == "gpt-oss":
        fields["attention.sliding_window"] = near["window"] if near else 0
    if experts := of_experts(wanted):
        fields |= {"expert_count": experts["moe.experts"], "expert_used_count": experts["moe.k"],
                   "expert_feed_forward_length": hidden(wanted, "moe")}  # fmt: skip
    if scaling["kind"] in ("linear", "yarn"):
        fields |= {"rope.scaling.type": scaling["kind"], "rope.scaling.factor": scaling["factor"]}
        fields |= {"rope.scaling.original_context_length": scaling["original"]} if "original" in scaling else {}
    elif scaling["kind"] == "longrope":  # Named by their tensor alone.
        fields["rope.scaling.original_context_length"] = scaling["original"]
    for end, usual in gguf_fields.BETAS.items() if scaling["kind"] == "yarn" else ():
        if scaling[f"beta_{end}"] != usual:
            fields[f"rope.scaling.yarn_beta_{end}"] = scaling[f"beta_{end}"]
    return fields


@dataclasses.dataclass(frozen=True)
class _Header(gguf_header.Header):
    """The front of a file that is not written yet."""

    small: Mapping[str, Any]

    def numbers(self, name: str) -> tuple[float, ...]:
        return tuple(float(number) for number in self.small[name])


def _refusal(tried: Mapping[str, Mapping[str, tuple]]) -> str:
    family, rest = min(tried.items(), key=lambda item: len(item[1]))
    key, (here, there) = next(iter(rest.items()))
    return (
        f"model.{key}={here!r} cannot be exported: the nearest family, {family}, has {there!r} there and no field for "
        f"it; train with model.{key}={there!r}, or export with --format=safetensors."
    )


def _decoder(model: Mapping[str, Any], wanted: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """Fields named as Llama's."""
    back = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    each = wanted["layers"][0]
    return {
        "vocab_size": model["vocab_size"], "hidden_size": model["width"],
        "intermediate_size": hidden(wanted, "mlp", "swiglu"), "num_hidden_layers": model["num_layers"],
        "num_attention_heads": model["num_heads"], "num_key_value_heads": wanted["num_kv_heads"],
        "head_dim": wanted["head_dim"], "hidden_act": back.get(option(wanted, "activation"), ""),
        "rms_norm_eps": model["norm_eps"], "tie_word_embeddings": model["tied"],
        "max_position_embeddings": _longest(each, longest), "rope_parameters": _rope(each),
        "attention_bias": each["bias"], "mlp_bias": bool(option(wanted, "bias")),
    }  # fmt: skip


def _longest(each: Mapping[str, Any], longest: int) -> int:
    scaling = each["rope_scaling"]
    if scaling["kind"] == "dynamic":
        return scaling["original"]
    return max(longest, int(scaling["original"] * max(scaling["factor"], 1)) + 1) if "original" in scaling else longest


def _rope(each: Mapping[str, Any]) -> dict[str, Any]:
    scaling = dict(each["rope_scaling"])
    kind = scaling.pop("kind")
    names = {
        "low": "low_freq_factor", "high": "high_freq_factor", "original": "original_max_position_embeddings",
        "short_factors": "short_factor", "long_factors": "long_factor",
    }  # fmt: skip
    told = {"rope_type": {"none": "default"}.get(kind, kind), "rope_theta": each["rope_theta"]}
    if each["rope_fraction"] != 1.0:
        told["partial_rotary_factor"] = each["rope_fraction"]
    for name, value in scaling.items():
        if isinstance(value, list | tuple):
            value = [float(number) for number in value]
        if name in ("attention_factor", "mscale", "mscale_all_dim") and not value:
            continue
        told[names.get(name, name)] = value
    if kind == "dynamic":
        del told["original_max_position_embeddings"]
    return told


def _types(wanted: Mapping[str, Any]) -> dict[str, Any]:
    windows = [each["window"] for each in wanted["layers"]]
    return {
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
        "sliding_window": max(windows) or None,
    }


def _without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in names}


def _qwen(model: Mapping[str, Any], wanted: Mapping[str, Any], longest: int) -> dict[str, Any]:
    types = _types(wanted)
    return (
        _without(_decoder(model, wanted, longest), "mlp_bias")
        | types
        | {"use_sliding_window": bool(types["sliding_window"])}
    )


def _gemma(model: Mapping[str, Any], wanted: Mapping[str, Any], longest: int) -> dict[str, Any]:
    fields, each = _decoder(model, wanted, longest), wanted["layers"][0]
    fields["hidden_activation"] = fields.pop("hidden_act")
    scalar = each["scale"] ** -2
    scalar = round(scalar) if math.isclose(scalar, round(scalar), rel_tol=1e-9) else scalar
    return _without(fields, "mlp_bias") | _types(wanted) | {"query_pre_attn_scalar": scalar}


def _gemma2(model: Mapping[str, Any], wanted: Mapping[str, Any], longest: int) -> dict[str, Any]:
    caps = {
        "attn_logit_softcapping": wanted["layers"][0]["softcap"] or None,
        "final_logit_softcapping": model["softcap"] or None,
    }
    return _gemma(model, wanted, longest) | caps


def _gemma3(model: Mapping[str, Any], wanted: Mapping[str, Any], longest: int) -> dict[str, Any]:
    by_type = {bool(each["window"]): each for each in wanted["layers"]}
    first = wanted["layers"][0]
    return _gemma2(model, wanted, longest) | {
        "rope_parameters": {
            "full_attention": _rope(by_type.get(False, first)), "sliding_attention": _rope(by_type.get(True, first))
        }
    }  # fmt: skip


def _smollm3(model: Mapping[str, Any], wanted: Mapping[str, Any], longest: int) -> dict[str, Any]:
    turned = [int(each["rope_fraction"] != 0) for each in wanted["layers"]]
    first = next((each for each in wanted["layers"] if each["rope_fraction"]), wanted["layers"][0])
    types = _types(wanted)
    return _decoder(model, wanted, longest) | types | {
        "rope_parameters": _rope(first), "no_rope_layers": turned, "use_sliding_window": bool(types["sliding_window"])
    }  # fmt: skip


def _phi3(model: Mapping[str, Any], wanted: Mapping[str, Any], longest: int) -> dict[str, Any]:
    each = wanted["layers"][0]
    fields = _without(_decoder(model, wanted, longest), "attention_bias", "mlp_bias")
    original = each["rope_scaling"].get("original", 4096)
    return fields | {"sliding_window": each["window"] or None, "original_max_position_embeddings": original}


def _gpt2(model: Mapping[str, Any], wanted: Mapping[str, Any], longest: int) -> dict[str, Any]:
    back = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    scales, H = [each["scale"] for each in wanted["layers"]], wanted["head_dim"]
    return {
        "vocab_size": model["vocab_size"], "n_embd": model["width"], "n_layer": model["num_layers"],
        "n_head": model["num_heads"], "n_positions": model["positions"], "n_inner": hidden(wanted, "mlp", "swiglu"),
        "activation_function": back.get(option(wanted, "activation"), ""),
        "layer_norm_epsilon": model["norm_eps"], "tie_word_embeddings": model["tied"],
        "scale_attn_weights": math.isclose(scales[0], H**-0.5),
        "scale_attn_by_inverse_layer_idx": len(scales) > 1 and math.isclose(scales[1], scales[0] / 2),
    }  # fmt: skip


def _neox(model: Mapping[str, Any], wanted: Mapping[str, Any], longest: int) -> dict[str, Any]:
    fields = _without(_decoder(model, wanted, longest), "num_key_value_heads", "head_dim", "rms_norm_eps", "mlp_bias")
    fields["rope_parameters"].setdefault("partial_rotary_factor", 1.0)
    return fields | {"layer_norm_eps": model["norm_eps"], "use_parallel_residual": model["parallel"]}


def _mixture(model: Mapping[str, Any], wanted: Mapping[str, Any], fields: dict, name: str) -> dict[str, Any]:
    """Fields of a model with experts, from those of a dense one; `name`: of the number of experts."""
    layers = sum(each["channel"] == "moe" for each in wanted["channels"])
    moe = model.get("moe") or {}
    return {**_without(fields, "mlp_bias"), name: moe.get("experts", 1), "num_experts_per_tok": moe.get("k", 1),
            "router_aux_loss_coef": moe.get("balance", 0.0) * max(1, layers)}  # fmt: skip


def _mixtral(model: Mapping[str, Any], wanted: Mapping[str, Any], longest: int) -> dict[str, Any]:
    fields = _mixture(model, wanted, _decoder(model, wanted, longest), "num_local_experts")
    return _without(fields, "attention_bias") | {"sliding_window": wanted["layers"][0]["window"] or None}


def _qwen3_moe(model: Mapping[str, Any], wanted: Mapping[str, Any], longest: int) -> dict[str, Any]:
    window = wanted["layers"][0]["window"] or None
    dense = [i for i, each in enumerate(wanted["channels"]) if each["channel"] != "moe"]
    return _mixture(model, wanted, _decoder(model, wanted, longest), "num_experts") | {
        "moe_intermediate_size": hidden(wanted, "moe"), "mlp_only_layers": dense,
        "norm_topk_prob": of_experts(wanted).get("moe.router") == "softmax_after",
        "sliding_window": window, "use_sliding_window": window is not None,
    }  # fmt: skip


def _gpt_oss(model: Mapping[str, Any], wanted: Mapping[str, Any], longest: int) -> dict[str, Any]:
    clamp = {f"swiglu_{name}": of_experts(wanted).get(f"moe.{name}", 0.0) for name in ("limit", "alpha")}
    fields = _mixture(model, wanted, _decoder(model, wanted, longest), "num_local_experts")
    return fields | _types(wanted) | clamp | {"hidden_act": "silu"}


def _granite(model: Mapping[str, Any], wanted: Mapping[str, Any], longest: int) -> dict[str, Any]:
    return _without(_decoder(model, wanted, longest), "head_dim") | {
        "embedding_multiplier": wanted["embedding_scale"], "attention_multiplier": wanted["layers"][0]["scale"],
        "residual_multiplier": model["residual_scale"], "logits_scaling": 1 / wanted["logit_scale"],
    }  # fmt: skip


Writer = Callable[[Mapping[str, Any], Mapping[str, Any], int], dict[str, Any]]
WRITERS: dict[str, Writer] = {
    "llama": _decoder,
    "mistral": lambda m, w, n: (
        _without(_decoder(m, w, n), "attention_bias", "mlp_bias") | {"sliding_window": w["layers"][0]["window"] or None}
    ),
    "qwen2": lambda m, w, n: _without(_qwen(m, w, n), "attention_bias", "head_dim"),
    "qwen3": _qwen,
    "smollm3": _smollm3,
    "phi3": _phi3,
    "olmo2": lambda m, w, n: _without(_decoder(m, w, n), "mlp_bias", "head_dim"),
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gpt_neox": _neox,
    "gpt2": _gpt2,
    "granite": _granite,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
}
