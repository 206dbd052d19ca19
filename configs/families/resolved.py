"""What a model computes, every rule as its value and every layer by itself: what is equal here has equal logits."""

import math
from collections.abc import Mapping
from typing import Any

from configs.families.fields import flat

# What changes no logit.
FREE = (
    "vocab_size", "vocab_multiple", "dtype", "param_dtype", "remat", "unroll", "init", "init_std", "mixer",
    "channel", "by_position", "time_features", "self_condition", "num_layers", "projection", "parametrization",
)  # fmt: skip
_GONE = ("implementation", "length")


def differences(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> dict[str, tuple]:
    """What differs of two `resolved` models: key -> (wanted, got)."""
    found = {}
    for key, value in wanted.items():
        if key == "layers":
            for mine, theirs in zip(value, got["layers"], strict=True):
                mine, theirs = flat(mine), flat(theirs)
                names = [name for name in mine if not _same(mine[name], theirs.get(name))]
                found |= {f"attention.{name}": (mine[name], theirs.get(name)) for name in names}
        elif key == "channels":
            for mine, theirs in zip(value, got["channels"], strict=True):
                found |= {name: (each, theirs.get(name)) for name, each in mine.items()
                          if not _same(each, theirs.get(name))}  # fmt: skip
        elif not _same(value, got.get(key)):
            found[key] = value, got.get(key)
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-9)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def merged(base: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults with values by dotted key in their place."""
    made = {key: dict(value) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in told.items():
        *groups, leaf = key.split(".")
        at = made
        for name in groups:
            at[name] = dict(at[name])
            at = at[name]
        at[leaf] = value
    return made


def resolved(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a model computes, with every 0 that stands for a rule as its value, and attention's options by layer."""
    D, N = model["width"], model["num_heads"]
    H = model["head_dim"] or D // N
    found = {k: v for k, v in model.items() if not isinstance(v, Mapping) and k not in FREE}
    found |= {
        "num_kv_heads": model["num_kv_heads"] or N, "head_dim": H,
        "logit_scale": model["logit_scale"] or D**-0.5, "embedding_scale": model["embedding_scale"] or D**0.5,
    }  # fmt: skip
    found["final_norm"] = (
        "same" if found["final_norm"] == found["norm"] and found["norm_scale"] else found["final_norm"]
    )
    period, names = ([name.strip() for name in model[key].split(",")] for key in ("mixer", "channel"))
    differ = model["by_position"] or ({},) * len(period)
    each = [
        _channel(name, {**(model.get(name) or {}), **(differ[i].get(name) or {})}, D)
        for i, name in enumerate(names if len(names) == len(period) else names * len(period))
    ]
    found["channels"] = [each[i % len(period)] for i in range(model["num_layers"])]
    found["mixer"] = sorted(set(period))
    found["projection"] = "dense" if model["projection"] == "lora" else model["projection"]
    found["parametrization"] = model["parametrization"]
    found["layers"] = [
        _attention(model["attention"], differ[i % len(period)].get("attention") or {}, H)
        for i in range(model["num_layers"])
    ]
    return found


def _channel(name: str, options: Mapping[str, Any], D: int) -> dict[str, Any]:
    """What the channel `name` of one layer computes."""
    made, rule = dict(options), -(-8 * D // 3 // 64) * 64 if name == "swiglu" else 4 * D
    if name == "moe":
        made, rule = _experts(made), -(-8 * D // (3 * made["k"]) // 64) * 64
    made["hidden"] = made.get("hidden", 0) or rule
    return {"channel": name, **{f"{name}.{key}": value for key, value in made.items()}}


def hidden(wanted: Mapping[str, Any], *names: str) -> int:
    """The hidden width of the first layer whose channel is one of `names`; of the first layer where none is."""
    each = next((c for c in wanted["channels"] if c["channel"] in names), wanted["channels"][0])
    return each[f"{each['channel']}.hidden"]


def option(wanted: Mapping[str, Any], name: str) -> Any:
    """An option of the first layer's channel; None where it has none of that name."""
    each = wanted["channels"][0]
    return each.get(f"{each['channel']}.{name}")


def of_experts(wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options "moe.NAME" of the first layer that has experts; {} where none has."""
    return next((each for each in wanted["channels"] if each["channel"] == "moe"), {})


# Of a mixture of experts: what its logits need, in a family that there is.
_MOE = (
    "experts", "k", "hidden", "gated", "activation", "bias", "limit", "alpha", "shared", "small", "constant", "copy",
    "zero", "null", "router", "renormalise", "scale", "residual", "capacity",
)  # fmt: skip


def _experts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that compute the same are the same: a softmax over the chosen is one over all, divided by its sum."""
    made = {name: options[name] for name in _MOE}
    if made["router"] == "softmax_before" and made["renormalise"]:
        made["router"] = "softmax_after"
    if made["router"] == "softmax_after":
        made["renormalise"] = False
    if made["limit"] and made["gated"]:
        made["activation"] = "silu"
    else:
        made |= {"limit": 0.0, "alpha": 0.0}
    return made


def _attention(options: Mapping[str, Any], differs: Mapping[str, Any], H: int) -> dict[str, Any]:
    made = {**options, **differs}
    made["rope_scaling"] = {**options["rope_scaling"], **(differs.get("rope_scaling") or {})}
    made = {key: value for key, value in made.items() if key not in _GONE}
    made["scale"] = made["scale"] or H**-0.5
    made["qkv_bias"] = made["qkv_bias"] or made["bias"]
    scaling, kind = made["rope_scaling"], made["rope_scaling"]["kind"]
    read = {
        "none": (), "linear": ("factor",), "dynamic": ("factor", "original"),
        "llama3": ("factor", "low", "high", "original"),
        "longrope": ("factor", "original", "attention_factor", "short_factors", "long_factors"),
        "yarn": ("factor", "original", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim",
                 "attention_factor"),
    }[kind]  # fmt: skip
    made["rope_scaling"] = {"kind": kind, **{name: scaling[name] for name in read}}
    if made["rope_fraction"] == 0:
        made["rope_scaling"] = {"kind": "none"}
        made["rope_theta"] = 0.0
    if not made["qk_norm"]:
        made |= {"qk_norm_over": "", "qk_norm_eps": 0.0}
    if not made["window"]:
        made["sinks"] = 0
    return made
