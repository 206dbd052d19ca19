"""Knobs of mixers: a mixer reads the group of its own name."""

from configs.knobs.kinds import group, number, one_of, part, switch, texts, whole

attention = group("Softmax attention.", of="model.mixer=attention")
attention.rope_fraction = number(
    1.0, "Share of head dims that rotate (rotate-half); 0 = no positions at all.", least=0, most=1
)
attention.rope_theta = number(10000.0, "Base of the rotary wavelengths.", least=1, most=1e12)
attention.qk_norm = switch(False, "RMSNorm with scale over each head of q and k.")
attention.qk_norm_over = one_of(
    "head",
    ("head", "row"),
    "What it is over: each head, or all heads together (OLMo 2).",
    of="model.attention.qk_norm=*",
    before="head",
)
attention.qk_norm_eps = number(
    0.0, "Added to its mean square; 0 = model.norm_eps.", least=0, most=1, of="model.attention.qk_norm=*", before=0.0
)
attention.scale = number(0.0, "Multiplies q k; 0 = 1 / sqrt(H).", least=0, before=0.0)
attention.softcap = number(0.0, "Scores are cap * tanh(score / cap) (Gemma 2); 0 = off.", least=0, before=0.0)
attention.window = whole(0, "Tokens a query sees, itself included; 0 = all.", least=0, small=8)
attention.sinks = whole(
    0,
    "First tokens of the sequence that stay visible beyond the window.",
    least=0,
    small=2,
    of="model.attention.window=*",
)
attention.sink_scores = switch(
    False, "A learned score per head that joins its softmax as a key of value zero (gpt-oss).", before=False
)
attention.bias = switch(False, "Bias in q, k, v, o.")
attention.qkv_bias = switch(False, "Bias in q, k, v, and none in o (Qwen2).", before=False)
attention.implementation = part(
    "",
    "kernels.attention:IMPLEMENTATIONS",
    '"" = best for the platform; else reference, chunked, pallas_tpu, ...',
    also=("",),
)

attention.rope_scaling = scaling = group(
    "Wavelengths for texts longer than those that a model was trained on: models/rope_scaling.py.",
    of="model.attention.rope_fraction=*",
)
scaling.kind = part(
    "none", "models.rope_scaling:KINDS", "none, linear, dynamic, yarn, llama3, longrope.", before="none"
)
LONGER = "model.attention.rope_scaling.kind"
scaling.factor = number(
    1.0, "How much longer texts may be.", least=1e-3, of=f"{LONGER}=linear|dynamic|yarn|llama3|longrope", before=1.0
)
scaling.original = whole(
    8192, "Tokens that it was trained on.", least=1, of=f"{LONGER}=dynamic|yarn|llama3|longrope", before=8192
)
scaling.length = whole(
    0,
    "Tokens of the text, all of it; 0 = as released: of each call, so that a later token changes earlier ones.",
    least=0,
    of=f"{LONGER}=dynamic|longrope",
    before=0,
)
scaling.low = number(1.0, "Turns in `original`: below, a wavelength is stretched.", of=f"{LONGER}=llama3", before=1.0)
scaling.high = number(4.0, "Turns above which it stays.", of=f"{LONGER}=llama3", before=4.0)
scaling.beta_fast = number(32.0, "Turns in `original`: above, a wavelength stays.", of=f"{LONGER}=yarn", before=32.0)
scaling.beta_slow = number(1.0, "Turns below which it is stretched.", of=f"{LONGER}=yarn", before=1.0)
scaling.truncate = switch(True, "The two borders are rounded outwards.", of=f"{LONGER}=yarn", before=True)
scaling.mscale = number(0.0, "With mscale_all_dim: numerator of the factor.", least=0, of=f"{LONGER}=yarn", before=0.0)
scaling.mscale_all_dim = number(0.0, "Its denominator (DeepSeek).", least=0, of=f"{LONGER}=yarn", before=0.0)
scaling.attention_factor = number(
    0.0, "Multiplies cos and sin; 0 = as the kind says.", least=0, of=f"{LONGER}=yarn|longrope", before=0.0
)
scaling.short_factors = texts(
    (), "R/2 numbers that divide the rates of texts up to `original`.", of=f"{LONGER}=longrope", before=()
)
scaling.long_factors = texts((), "The same of longer texts.", of=f"{LONGER}=longrope", before=())

lact = group("Large-chunk test-time training beside a sliding window.", of="model.mixer=lact")
lact.heads = whole(
    4, "Networks of fast weights; divides N x H. Their width and number fix the state: 3 F d each.", least=1
)
lact.hidden_ratio = number(1.0, "F of a network as a multiple of its width d.", least=0.01, most=100)
lact.chunk_size = whole(
    2048, "Tokens per update. A document of no more than one chunk is never learned from.", least=1, small=8
)
lact.window = whole(
    2048,
    "Tokens that the attention branch sees; below chunk_size some tokens of a chunk are seen by none.",
    least=1,
    small=8,
)
lact.newton_schulz_steps = whole(
    5,
    "Steps that orthogonalise each update (Muon); 0 = off: the size of an update then grows with the gradient.",
    least=0,
)
lact.momentum = switch(True, "A learned gate per chunk carries the update before into this one; doubles the state.")
lact.normalize = part(
    "post",
    "kernels.lact.reference:NORMALIZE",
    "When rows of fast weights are rescaled to their first length: post (after each update), pre (when read), none.",
)
lact.base_rate = number(0.001, "Rate of a token at initialisation.", least=1e-8, most=10)
lact.rank = whole(32, "Of the start of two of the three matrices, beside 0.5 I; 0 = full matrices.", least=0, small=4)
lact.value_silu = switch(True, "SiLU on the values of the fast branch; queries and keys always have it.")
lact.output_scale = switch(True, "A learned gate per token and head on the fast branch.")
lact.qk_norm = switch(False, "RMSNorm over all of q and of k, before both branches.")
lact.rope_fast = switch(True, "Rotary positions in the fast branch too; the attention branch always has them.")
lact.rope_theta = number(1000000.0, "Base of the rotary wavelengths.", least=1, most=1e12)

ttt_linear = group("Test-time training of one linear map a head (num_heads of them).", of="model.mixer=ttt_linear")
ttt_linear.mini_batch = whole(16, "Tokens that share the weights at which gradients are taken.", least=1, small=5)
ttt_linear.base_rate = number(1.0, "Times a sigmoid gate / H: the inner learning rate.", least=1e-8, most=100)
ttt_linear.gate = switch(False, "A GeLU gate on the output, one more D x D map (published beside a short convolution).")
ttt_linear.rope_theta = number(
    10000.0, "Base of the rotary wavelengths; positions count within a mini-batch.", least=1, most=1e12
)

ttt_mlp = group("As ttt_linear, with two maps and GeLU between them.", of="model.mixer=ttt_mlp")
ttt_mlp.mini_batch = whole(16, "Tokens that share the weights at which gradients are taken.", least=1, small=5)
ttt_mlp.base_rate = number(0.1, "Times a sigmoid gate / H: the inner learning rate.", least=1e-8, most=100)
ttt_mlp.hidden_ratio = number(4.0, "Hidden width of the inner model as a multiple of H.", least=0.01, most=100)
ttt_mlp.gate = switch(False, "A GeLU gate on the output, one more D x D map.")
ttt_mlp.rope_theta = number(
    10000.0, "Base of the rotary wavelengths; positions count within a mini-batch.", least=1, most=1e12
)

linear_attention = group("A matrix of memory a head.", of="model.mixer=linear_attention")
linear_attention.chunk_size = whole(
    64, "Tokens a matmul; any gives the same numbers, only the speed differs.", least=1, small=5
)
linear_attention.decay = switch(True, "A learned gate per token and head forgets; False: the memory only grows.")
linear_attention.prefix = whole(
    0,
    "M: first tokens of a document that are read both ways (JRT); data.given must be as large. 0: none.",
    least=0,
    before=0,
)
linear_attention.conv = whole(
    0,
    "Tokens of a causal convolution of each channel of q, k and v, before all else; 0: none.",
    least=0,
    most=64,
    before=0,
)

gated_delta = group("A memory that corrects what it holds.", of="model.mixer=gated_delta")
gated_delta.chunk_size = whole(
    64, "Tokens a matmul; any gives the same numbers, only the speed differs.", least=1, small=5
)
gated_delta.conv = whole(0, "As linear_attention.conv; 4 in the published layer.", least=0, most=64, before=0)

lococo = group("Attention to a cache of fixed size, filled by a convolution.", of="model.mixer=lococo")
lococo.slots = whole(64, "M: keys and values of the past that a key head keeps.", least=2, small=4, before=64)
lococo.chunk_size = whole(128, "C: tokens that are read before the cache is filled anew.", least=1, small=5, before=128)
lococo.heavy = number(0.5, "Share of the slots that keep tokens as they are.", least=0, most=1, before=0.5)
lococo.local = whole(0, "Of those, the last tokens, whatever attention they got.", least=0, before=0)
lococo.taps = whole(21, "Tokens that the convolution sees, an odd number.", least=1, small=3, before=21)
lococo.gate = number(0.5, "g at first: how much of a merged slot is mixed; 0 = eviction.", least=0, most=1, before=0.5)
lococo.rate = number(
    1.0,
    "Learning rate of convolution and g, times that of the model (1000 beside a frozen one).",
    least=1e-3,
    before=1.0,
)
lococo.detach = switch(False, "No gradient goes through what is merged, as released.", before=False)
lococo.rope_theta = number(10000.0, "Base of the rotary wavelengths.", least=1, most=1e12, before=10000.0)
