"""Which tensor of a foreign file is which parameter of ours, as data: one table a family.

A key is a path within the parameters, within a layer for those under LAYERS; a value says what theirs is called ("{i}"
is the number of the layer) and how it lies there. A table names more than a model has: biases, norms, a head.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Theirs:
    """A tensor of a foreign file, or a part of one.

    name: with "{i}" the number of a layer, with "{e}" that of an expert: ours are stacked, [E, ...].
    turned: it lies as [out, in]; our kernels are [in, out].
    part: which part of its outputs, of those that `parts` names in their order.
    parts: ("q", "k", "v") or ("gate", "up"): maps that are one tensor there.
    by_head: the parts alternate head by head: [heads, parts, H] outputs (GPT-NeoX).
    mixed: the parts alternate number by number: [..., F, parts] (gpt-oss).
    pairs: each head's outputs lie as its rotated pairs side by side (GGUF's llama): [heads, H/2, 2].
    """

    name: str
    turned: bool = False
    part: str = ""
    parts: tuple[str, ...] = ()
    by_head: bool = False
    pairs: bool = False
    mixed: bool = False

    @property
    def by_expert(self) -> bool:
        """Whether each expert is a tensor."""
        return "{e}" in self.name


def linear(ours: str, theirs: str, *, turned: bool = True, **how) -> dict[str, Theirs]:
    """Kernel and bias of a linear map."""
    return {
        f"{ours}/kernel": Theirs(f"{theirs}.weight", turned, **how),
        f"{ours}/bias": Theirs(f"{theirs}.bias", **how),
    }


def norm(ours: str, theirs: str) -> dict[str, Theirs]:
    """Scale and bias of a norm."""
    return {f"{ours}/scale": Theirs(f"{theirs}.weight"), f"{ours}/bias": Theirs(f"{theirs}.bias")}


def fused(ours: dict[str, str], theirs: str, **how) -> dict[str, Theirs]:
    """Linear maps, part -> ours, that are one there."""
    maps = [linear(path, theirs, part=part, parts=tuple(ours), **how) for part, path in ours.items()]
    return {key: value for each in maps for key, value in each.items()}


QKV = {"q": "mixer/q", "k": "mixer/k", "v": "mixer/v"}
HEAD = {"head": Theirs("lm_head.weight")}
OUTER = {"embedding": Theirs("model.embed_tokens.weight"), **norm("norm", "model.norm"), **HEAD}
LAYER = "model.layers.{i}."
ATTENTION = {
    **{k: v for part in "qkv" for k, v in linear(f"mixer/{part}", f"{LAYER}self_attn.{part}_proj").items()},
    **linear("mixer/out", f"{LAYER}self_attn.o_proj"),
    **norm("mixer/q_norm", f"{LAYER}self_attn.q_norm"),
    **norm("mixer/k_norm", f"{LAYER}self_attn.k_norm"),
    "mixer/sink_scores": Theirs(f"{LAYER}self_attn.sinks"),
}
GATED = {
    k: v
    for part in ("gate", "up", "down")
    for k, v in linear(f"channel/{part}", f"{LAYER}mlp.{part}_proj").items()
}  # fmt: skip
PRE = {
    **norm("mixer_norm", f"{LAYER}input_layernorm"),
    **norm("channel_norm", f"{LAYER}post_attention_layernorm"),
}
POST = {
    **norm("mixer_out_norm", f"{LAYER}post_attention_layernorm"),
    **norm("channel_out_norm", f"{LAYER}post_feedforward_layernorm"),
}
SANDWICH = {
    **norm("mixer_norm", f"{LAYER}input_layernorm"),
    **norm("channel_norm", f"{LAYER}pre_feedforward_layernorm"),
    **POST,
}
LLAMA = (OUTER, ATTENTION | GATED | PRE)
PHI3 = (
    OUTER,
    ATTENTION
    | fused(QKV, f"{LAYER}self_attn.qkv_proj")
    | fused({"gate": "channel/gate", "up": "channel/up"}, f"{LAYER}mlp.gate_up_proj")
    | linear("channel/down", f"{LAYER}mlp.down_proj")
    | PRE,
)
NEOX_LAYER = "gpt_neox.layers.{i}."
NEOX = (
    {
        "embedding": Theirs("gpt_neox.embed_in.weight"),
        **norm("norm", "gpt_neox.final_layer_norm"),
        "head": Theirs("embed_out.weight"),
    },
    {
        **norm("mixer_norm", f"{NEOX_LAYER}input_layernorm"),
        **norm("channel_norm", f"{NEOX_LAYER}post_attention_layernorm"),
        **fused(QKV, f"{NEOX_LAYER}attention.query_key_value", by_head=True),
        **linear("mixer/out", f"{NEOX_LAYER}attention.dense"),
        **linear("channel/up", f"{NEOX_LAYER}mlp.dense_h_to_4h"),
        **linear("channel/down", f"{NEOX_LAYER}mlp.dense_4h_to_h"),
    },
)
GPT2_LAYER = "transformer.h.{i}."
GPT2 = (
    {
        "embedding": Theirs("transformer.wte.weight"),
        "positions": Theirs("transformer.wpe.weight"),
        **norm("norm", "transformer.ln_f"),
        **HEAD,
    },
    {
        **norm("mixer_norm", f"{GPT2_LAYER}ln_1"),
        **norm("channel_norm", f"{GPT2_LAYER}ln_2"),
        **fused(QKV, f"{GPT2_LAYER}attn.c_attn", turned=False),
        **linear("mixer/out", f"{GPT2_LAYER}attn.c_proj", turned=False),
        **linear("channel/up", f"{GPT2_LAYER}mlp.c_fc", turned=False),
        **linear("channel/down", f"{GPT2_LAYER}mlp.c_proj", turned=False),
    },
)
MIXTRAL_EXPERT = f"{LAYER}block_sparse_moe.experts.{{e}}."
MIXTRAL = {
    "channel/router": Theirs(f"{LAYER}block_sparse_moe.gate.weight", turned=True),
    "channel/experts/gate": Theirs(f"{MIXTRAL_EXPERT}w1.weight", turned=True),
    "channel/experts/up": Theirs(f"{MIXTRAL_EXPERT}w3.weight", turned=True),
    "channel/experts/down": Theirs(f"{MIXTRAL_EXPERT}w2.weight", turned=True),
}
QWEN3_MOE = {
    "channel/router": Theirs(f"{LAYER}mlp.gate.weight", turned=True),
    **{
        f"channel/experts/{part}": Theirs(f"{LAYER}mlp.experts.{{e}}.{part}_proj.weight", turned=True)
        for part in ("gate", "up", "down")
    },
}
GLU = {"parts": ("gate", "up"), "mixed": True}
GPT_OSS = {
    "channel/router": Theirs(f"{LAYER}mlp.router.weight", turned=True),
    "channel/router_bias": Theirs(f"{LAYER}mlp.router.bias"),
    **{
        f"channel/experts/{part}": Theirs(f"{LAYER}mlp.experts.gate_up_proj", part=part, **GLU)
        for part in ("gate", "up")
    },
    **{
        f"channel/experts/{part}_bias": Theirs(f"{LAYER}mlp.experts.gate_up_proj_bias", part=part, **GLU)
        for part in ("gate", "up")
    },
    "channel/experts/down": Theirs(f"{LAYER}mlp.experts.down_proj"),
    "channel/experts/down_bias": Theirs(f"{LAYER}mlp.experts.down_proj_bias"),
}
# Family -> (the model's own parameters, those of a layer).
HUGGING_FACE = {
    "llama": LLAMA, "granite": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "smollm3": LLAMA,
    "gemma2": (OUTER, ATTENTION | GATED | SANDWICH), "gemma3_text": (OUTER, ATTENTION | GATED | SANDWICH),
    "olmo2": (OUTER, ATTENTION | GATED | POST), "phi3": PHI3, "gpt_neox": NEOX, "gpt2": GPT2,
    "mixtral": (OUTER, ATTENTION | MIXTRAL | PRE), "qwen3_moe": (OUTER, ATTENTION | GATED | QWEN3_MOE | PRE),
    "gpt_oss": (OUTER, ATTENTION | GPT_OSS | PRE),
}  # fmt: skip


def _gguf(
    *, pairs: bool = False, sandwich: bool = False, channel_norm: str = "ffn_norm"
) -> tuple[dict[str, Theirs], dict[str, Theirs]]:
    """Dense models and mixtures of experts, whose maps of all experts are one tensor [E, out, in]."""
    block = "blk.{i}."
    outer = {
        "embedding": Theirs("token_embd.weight"), **norm("norm", "output_norm"), "head": Theirs("output.weight")
    }  # fmt: skip
    layer = {
        **linear("mixer/q", f"{block}attn_q", pairs=pairs), **linear("mixer/k", f"{block}attn_k", pairs=pairs),
        **linear("mixer/v", f"{block}attn_v"), **linear("mixer/out", f"{block}attn_output"),
        **norm("mixer/q_norm", f"{block}attn_q_norm"), **norm("mixer/k_norm", f"{block}attn_k_norm"),
        **norm("mixer_norm", f"{block}attn_norm"), **norm("channel_norm", f"{block}{channel_norm}"),
        **{k: v for part in ("gate", "up", "down") for k, v in linear(f"channel/{part}", f"{block}ffn_{part}").items()},
        "mixer/sink_scores": Theirs(f"{block}attn_sinks.weight"),
        "channel/router": Theirs(f"{block}ffn_gate_inp.weight", turned=True),
        "channel/router_bias": Theirs(f"{block}ffn_gate_inp.bias"),
    }  # fmt: skip
    for part in ("gate", "up", "down"):
        layer[f"channel/experts/{part}"] = Theirs(f"{block}ffn_{part}_exps.weight", turned=True)
        layer[f"channel/experts/{part}_bias"] = Theirs(f"{block}ffn_{part}_exps.bias")
    if sandwich:
        layer |= norm("mixer_out_norm", f"{block}post_attention_norm")
        layer |= norm("channel_out_norm", f"{block}post_ffw_norm")
    return outer, layer


GGUF = {
    "llama": _gguf(pairs=True), "qwen2": _gguf(), "qwen3": _gguf(), "gemma3": _gguf(sandwich=True),
    "qwen3moe": _gguf(), "gpt-oss": _gguf(channel_norm="post_attention_norm"),
}  # fmt: skip
# Tensors that hold no number of the model: tables that are computed, masks, Llama 3.1's factors in GGUF.
COMPUTED = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias",
            "rope_freqs.weight")  # fmt: skip
