"""Knobs of channels and projections: each reads the group of its own name."""

from configs.knobs.kinds import group, number, part, switch, texts, whole

MAPS = "model.projection=pattention"

lora = group("Two thin maps beside every linear map, which can train alone.", of="model.projection=lora")
lora.rank = whole(8, "r: width between the two.", least=1, small=3, before=8)
lora.alpha = number(16.0, "Their product is multiplied by alpha / r.", least=0, before=16.0)
lora.scaling = part(
    "rank", "models.lora:SCALINGS", "rank: alpha / r; root: alpha / sqrt(r), which larger r need.", before="rank"
)
lora.maps = texts((), "Maps that have them: q, k, v, o, up (with the gate), down; () = all.", before=())

mlp = group("Two maps with an activation between them.", of="model.channel=mlp")
mlp.hidden = whole(0, "F: hidden width; 0 = 4D.", least=0, small=64)
mlp.activation = part("gelu", "models.channels:ACTIVATIONS", "gelu (tanh), gelu_exact, relu, relu2, silu.")
mlp.bias = switch(False, "Bias in both maps.")

swiglu = group("A gated channel of three maps.", of="model.channel=swiglu")
swiglu.hidden = whole(0, "F: hidden width; 0 = 8D/3 rounded up to a multiple of 64.", least=0, small=64)
swiglu.activation = part(
    "silu", "models.channels:ACTIVATIONS", "Of the gate: silu; gelu makes it GeGLU (Gemma).", before="silu"
)
swiglu.bias = switch(False, "Bias in all three maps.")

pattention = group(
    "Attention to parameter tokens in place of linear maps.",
    of="model.projection=pattention or model.channel=pattention",
)
pattention.tokens = whole(0, "P: parameter tokens of each map of a mixer; 0 = D.", least=0, small=32)
pattention.channel_tokens = whole(0, "P of each map of a channel; 0 = 4 x tokens.", least=0, small=64)
pattention.q_tokens = whole(0, "P of one map of a mixer; 0 = tokens.", least=0, small=32, before=0, of=MAPS)
pattention.k_tokens = whole(0, "P of one map of a mixer; 0 = tokens.", least=0, small=32, before=0, of=MAPS)
pattention.v_tokens = whole(0, "P of one map of a mixer; 0 = tokens.", least=0, small=32, before=0, of=MAPS)
pattention.o_tokens = whole(0, "P of the map back to D; 0 = tokens.", least=0, small=32, before=0, of=MAPS)
pattention.up_tokens = whole(
    0, "P of the maps of a channel to its hidden width; 0 = channel_tokens.", least=0, small=64, before=0, of=MAPS
)
pattention.down_tokens = whole(
    0, "P of the map of a channel from its hidden width; 0 = channel_tokens.", least=0, small=64, before=0, of=MAPS
)
pattention.normalization = part(
    "l2_gelu",
    "kernels.pattention:NORMALIZATIONS",
    "Of the scores over P: l2_gelu, gelu_l2, softmax (which cannot grow).",
)
pattention.gelu = part("exact", "kernels.pattention:GELUS", "exact or tanh.")
pattention.init_values = part(
    "wang",
    "models.pattention:INIT_VALUES",
    "wang: N(0, (2 / (L sqrt(D)))^2); normal(init_std); fan_in. Keys: init_std.",
)
pattention.top_r = whole(
    0, "Router: keeps so many of `tokens` by score, the same share in channels; 0 = all.", least=0, small=8
)
pattention.top_by = part(
    "score", "models.pattention:ROUTERS", "score, or magnitude: |score|, with which growth stays exact."
)
pattention.implementation = part(
    "", "kernels.pattention:IMPLEMENTATIONS", '"" = best for the platform; else reference, xla, tpu, gpu.', also=("",)
)
