"""Knobs of channels and projections: each reads the group of its own name."""

from configs.knobs.kinds import group, number, one_of, part, switch, texts, whole

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

ROUTER = "model.moe.router"
moe = group("Mixture of experts: docs/moe.md.", of="model.channel=moe")
moe.experts = whole(8, "Feed-forward experts that tokens are routed to.", least=1, before=8)
moe.k = whole(
    2, "Experts of a token, those that cost nothing included; with relu of `hidden` alone.", least=1, before=2
)
moe.hidden = whole(
    0, "F of an expert; 0 = 8D/3k up to a multiple of 64: k experts cost a token a SwiGLU.", least=0, small=32, before=0
)
moe.gated = switch(True, "Experts are gated, act(x W_gate) * x W_up (BlockFFN: not).", before=True)
moe.activation = part("silu", "models.activations:ACTIVATIONS", "Of an expert.", before="silu")
moe.bias = switch(False, "Bias in the maps of the routed experts, and in the router's (gpt-oss).", before=False)
moe.limit = number(
    0.0,
    "Gate and up are clamped to it and joined as (up + 1) gate sigmoid(alpha gate) (gpt-oss: 7); 0 = act(gate) * up.",
    least=0,
    of="model.moe.gated=*",
    before=0.0,
)
moe.alpha = number(1.702, "Of that sigmoid.", least=0, of="model.moe.limit=*", before=1.702)
moe.shared = whole(0, "Experts of every token, beside the routed ones.", least=0, before=0)
moe.small = whole(0, "Experts of another hidden width, behind the others (Duo-LLM).", least=0, before=0)
moe.small_hidden = whole(64, "F of those.", least=1, of="model.moe.small=*", before=64)
moe.constant = whole(0, "Experts a x + b v, (a, b) = softmax(x W) (MoE++).", least=0, before=0)
moe.copy = whole(0, "Experts that give their input (MoE++).", least=0, before=0)
moe.zero = whole(0, "Experts that give 0 (MoE++; skip in Duo-LLM).", least=0, before=0)
moe.null = whole(0, "Experts that give 0 and balance together (AdaMoE), with router=null.", least=0, before=0)
moe.router = part(
    "softmax_after",
    "models.experts.options:ROUTERS",
    "Who chooses: softmax_before, softmax_after (the choice), sigmoid_bias, group_softmax, group_sigmoid, moge, "
    "expert_choice, relu, null, moepp, graph, duo, duo_chance (Duo-LLM's training: a module by chance).",
    before="softmax_after",
)
moe.renormalise = switch(
    False, "Gates are divided by their sum.", of=f"{ROUTER}=softmax_before|sigmoid_bias|graph", before=False
)
moe.scale = number(
    1.0,
    "Multiplies the gates.",
    least=1e-3,
    most=1e3,
    of=f"{ROUTER}=softmax_before|softmax_after|sigmoid_bias|group_softmax|group_sigmoid",
    before=1.0,
)
moe.groups = whole(
    1, "Groups of neighbouring experts.", least=1, of=f"{ROUTER}=group_softmax|group_sigmoid|moge", before=1
)
moe.kept_groups = whole(1, "Groups that a token keeps.", least=1, of=f"{ROUTER}=group_softmax|group_sigmoid", before=1)
moe.group_rule = one_of(
    "best_two",
    ("max", "best_two", "sum"),
    "A group's score: its largest, the sum of its two largest, or of its k / kept_groups largest.",
    of=f"{ROUTER}=group_softmax|group_sigmoid",
    before="best_two",
)
moe.temperature = number(
    1.0,
    "Divides logits (duo) or similarities (graph).",
    least=1e-3,
    of=f"{ROUTER}=duo|duo_chance|graph",
    before=1.0,
)
moe.chance = number(
    1.0,
    "Share of the tokens, in each layer, whose module is drawn; the others' is the likeliest (duo).",
    least=0,
    most=1,
    of=f"{ROUTER}=duo_chance",
    before=1.0,
)
moe.budget = number(
    0.0, "Coefficient of (mean over layers of P(experts) - big)^2, a token (Duo-LLM).", least=0, before=0.0
)
moe.big = number(
    0.5,
    "The share of layers in which a token has one of `experts`.",
    least=0,
    most=1,
    of="model.moe.budget=*",
    before=0.5,
)
moe.residual = switch(False, "Logits add those of the layer before times a matrix (MoE++).", before=False)
moe.bias_rate = number(
    1e-3,
    "How far a step moves the bias of the choice towards an even load; 0 = it stays 0.",
    least=0,
    most=1,
    of=f"{ROUTER}=sigmoid_bias|group_sigmoid",
    before=1e-3,
)
moe.capacity = number(
    0.0,
    "Times K T / E: places of an expert in a row of tokens, in training; 0 = nothing is dropped.",
    least=0,
    before=0.0,
)
moe.capacity_order = part(
    "fifo",
    "models.experts.capacity:ORDERS",
    "Who comes first: fifo (all first choices), token (causal), probability, batch_prioritised.",
    of="model.moe.capacity=*",
    before="fifo",
)
moe.balance = number(0.01, "Coefficient of the balance loss E sum f P, in every layer.", least=0, before=0.01)
moe.balance_scope = one_of(
    "global",
    ("sequence", "micro", "global", "accumulated", "shuffled"),
    "Tokens of f and P: a row, a share of the batch, the batch, f of the step so far, or a share drawn at random.",
    of="model.moe.balance=*",
    before="global",
)
moe.balance_parts = whole(
    4, "Shares that the batch is cut into.", least=1, of="model.moe.balance_scope=micro|shuffled", before=4
)
moe.normalise_k = switch(
    True, "f sums to 1; False: to K, and so does the loss at balance.", of="model.moe.balance=*", before=True
)
moe.eta = number(
    1.0,
    "Weight in the balance loss of experts that cost nothing (tau in MoE++).",
    least=0,
    of="model.moe.balance=*",
    before=1.0,
)
moe.z_loss = number(1e-3, "Coefficient of the mean of log(sum e^z)^2, in every layer.", least=0, before=1e-3)
moe.locality = number(0.0, "Coefficient of BlockFFN's locality loss (2e-3).", least=0, of=f"{ROUTER}=relu", before=0.0)
moe.sparsity = number(
    0.0,
    "Coefficient of BlockFFN's chunk loss at first (5e-2); its schedule moves it.",
    least=0,
    of=f"{ROUTER}=relu",
    before=0.0,
)
moe.chunk = whole(64, "Neighbouring tokens of that loss.", least=1, of="model.moe.sparsity=*", before=64)
moe.stable = whole(1000, "Steps before its coefficient moves.", least=1, of="model.moe.sparsity=*", before=1000)
moe.window = whole(100, "Steps between two moves.", least=1, of="model.moe.sparsity=*", before=100)
moe.dispatch = one_of(
    "",
    ("", "sorted", "dense", "einsum", "gather", "alltoall", "weights"),
    'How tokens get to experts; "" = sorted, alltoall where mesh.expert cuts the experts; weights: they come here.',
    before="",
)
moe.share = one_of(
    "width",
    ("width", "tokens"),
    "What the devices of mesh.tensor share: the hidden width of each expert, or the tokens (each gathers the weights).",
    before="width",
)
moe.implementation = part(
    "",
    "kernels.grouped_matmul:IMPLEMENTATIONS",
    'Of the grouped matmul: "" = best for the platform; else reference, tiled, pallas_tpu, pallas_gpu.',
    also=("",),
    before="",
)

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
