"""Knobs of the backbone: its sizes, its parts by name, how it is computed. D, L, N, K, H, V are the house's letters."""

from configs.knobs.kinds import group, number, one_of, part, switch, text, texts, whole

model = group("The model.")
model.kind = part(
    "lm",
    "models.kinds:MODELS",
    "lm: one stack of layers; segmented: layers of bytes around layers of segments (models/segmented.py); hamburger: "
    "a step reads and writes several tokens (models/hamburger.py); swiftkv: later layers read keys of an early one "
    "(models/rewired.py).",
    before="lm",
)
model.vocab_size = whole(0, "V. 0 = what the tokenizer and the objective need.", least=0, smoke=0)
model.vocab_multiple = whole(
    1, "V is rounded up to a multiple of this, e.g. 128 for accelerators; the extra rows are never targets.", least=1
)
model.width = whole(256, "D: model width.", least=1)
model.num_layers = whole(4, "L: layers.", least=1)
model.num_heads = whole(4, "N: query heads.", least=1)
model.num_kv_heads = whole(0, "K: key/value heads (GQA); 0 = N.", least=0)
model.head_dim = whole(0, "H; 0 = D / N.", least=0, smoke=0)
model.mixer = text(
    "attention", 'How tokens see each other: models.mixers.MIXERS. A comma list repeats over depth: "lact,attention".'
)
model.channel = part(
    "mlp",
    "models.channels:CHANNELS",
    "What happens to one token: mlp, swiglu, pattention (one map of parameter tokens), moe. A comma list has one for "
    "each name in model.mixer.",
)
model.by_position = texts(
    (),
    "A tuple of dicts, one for each name in model.mixer: what differs, e.g. ({'attention': {'window': 512}}, {}).",
    before=(),
)
model.projection = part(
    "dense", "models.projections:PROJECTIONS", "What a linear map is: dense, lora, pattention (TokenFormer)."
)
model.norm = part("rmsnorm", "models.norms:NORMS", "The norm before each mixer and channel: rmsnorm or layernorm.")
model.norm_place = part(
    "pre",
    "models.block:NORM_PLACES",
    "Where they stand: pre (input of each part), post (its output: OLMo 2), sandwich (both: Gemma 2).",
    before="pre",
)
model.norm_scale = switch(True, "A learned scale in those norms (False: non-parametric).")
model.norm_offset = switch(
    False, "Norms multiply by 1 + their scale, which starts at 0 (Gemma).", of="model.norm_scale=*", before=False
)
model.norm_bias = switch(False, "A learned bias in those norms.")
model.norm_eps = number(1e-6, "Added to the mean square in those norms.", least=0, most=1)
model.final_norm = part(
    "same",
    "models.norms:NORMS",
    'The norm before the head: "same", or rmsnorm / layernorm with scale (and bias).',
    also=("same",),
)
model.parallel = switch(
    False, "x + mixer(norm x) + channel(norm x): both read the same x, each with its norm (GPT-NeoX).", before=False
)
model.residual_scale = number(1.0, "Multiplies what mixers and channels add (Granite).", least=0, before=1.0)
model.positions = whole(
    0,
    "Learned positions: rows of a table added to the embedding (GPT-2), at least the tokens of a text; 0 = none.",
    least=0,
    before=0,
)
model.tied = switch(True, "The head is the transposed embedding.")
model.logit_scale = number(1.0, "Multiplies logits; 0 = 1/sqrt(D) (tied heads with unit-variance embeddings).", least=0)
model.softcap = number(0.0, "cap * tanh(logits / cap); 0 = off.", least=0)
model.embedding_scale = number(1.0, "Multiplies embeddings after look-up; 0 = sqrt(D).", least=0)
model.time_features = whole(
    0, "Even: features of the noise level t, added to the input by a learned map; 0 = t is not told.", least=0
)
model.self_condition = switch(False, "A learned map of an earlier prediction, added to the input (neodiff).")
model.roles = whole(
    0,
    "A learned vector added to a token's embedding by who it comes from (data.roles): 4 = system, user, data, output; "
    "3 = instructions, data, output; 2 = given, written; 0 = none.",
    least=0,
    most=4,
    before=0,
)
model.parametrization = part(
    "standard",
    "models.parametrization:RULES",
    "How sizes set the rest: standard, or mup (a learning rate tuned at mup.base_width holds at every width).",
)
model.init = part(
    "normal",
    "models.parameters:INITS",
    "Of projections: normal (init_std), fan_in, or normal_depth (outputs / sqrt(2L)).",
)
model.init_std = number(
    0.02, "Standard deviation of embeddings, and of projections where init says so.", least=1e-8, most=10
)
model.dtype = text("float32", "Computation: float32 or bfloat16. Norms, softmax and losses stay in float32.")
model.param_dtype = text("float32", "Storage of parameters: float32 or bfloat16; see optimizer.rounding.")
model.remat = part(
    "none", "models.block:REMAT", "Rematerialisation of a layer: none, full, dots (keeps matmul outputs)."
)
model.unroll = whole(
    0,
    "Layers unrolled in one scan iteration; 0 = all when L <= 12 and remat is none, else 1.",
    least=0,
    smoke=1,  # One layer compiles sooner than many.
)

model.mup = mup = group("Sizes of the model at which the rest was tuned.", of="model.parametrization=mup")
mup.base_width = whole(128, "D of the base.", least=1)
mup.base_head_dim = whole(0, "H of the base; 0 = H: a wider model has more heads, not wider ones.", least=0)
mup.base_layers = whole(0, "L of the base; 0 = L: branches are not scaled by depth.", least=0)

model.swiftkv = rewired = group("Keys and values of later layers are made of an early one.", of="model.kind=swiftkv")
rewired.layer = whole(
    0,
    "l: layers that a prompt passes; those behind read what leaves layer l. 0 = half of them.",
    least=0,
    small=1,
    before=0,
)
rewired.share = whole(
    1, "g: layers behind l that read one pair of keys and values; divides their number.", least=1, small=1, before=1
)

model.segmented = segmented = group(
    "Bytes cut into segments; the rest of `model` is the backbone over segments.", of="model.kind=segmented"
)
segmented.segmenter = part(
    "words",
    "models.segments.segmenters:SEGMENTERS",
    "Where segments are cut: stride, words, spaces, magnet, hnet, entropy, mrt5.",
    before="words",
)
segmented.pool = part(
    "mean",
    "models.segments.pools:POOLS",
    "What a token holds of its segment's bytes: mean, or attention to them.",
    before="mean",
)
segmented.queries = whole(
    1,
    "Learned queries of that attention, whose results stand side by side: 1 HAT, several Learn Your Tokens.",
    least=1,
    of="model.segmented.pool=attention",
    before=1,
)
segmented.width = whole(128, "D': width of the bytes' layers.", least=1, small=32, before=128)
segmented.heads = whole(4, "Heads of their attention.", least=1, small=4, before=4)
segmented.encoder_layers = whole(1, "Layers before the bytes are cut.", least=1, small=1, before=1)
segmented.decoder_layers = whole(1, "Layers behind the backbone.", least=1, small=1, before=1)
segmented.window = whole(128, "Bytes that these layers see, itself included; 0 = all.", least=0, small=8, before=128)
segmented.least = whole(
    1,
    "Bytes a segment at least, on average from a document's first byte on; the backbone is computed for length / least "
    "tokens a row. Cuts beyond that are not made.",
    least=1,
    before=1,
)
segmented.documents = whole(
    8,
    "Documents of a row for which there is room beside; bytes for which there is none read no segment.",
    least=0,
    of="model.kind=segmented",
    before=8,
)
segmented.stride = stride = group("Segments of equal length.", of="model.segmented.segmenter=stride")
stride.bytes = whole(4, "Bytes of a segment.", least=1, before=4)
segmented.magnet = predictor = group("Learned boundaries.", of="model.segmented.segmenter=magnet")
predictor.prior = number(0.2, "Share of bytes that end a segment, by the prior.", least=1e-4, most=0.9999, before=0.2)
predictor.priors = texts(
    (),
    "The same of Latin, Greek, Cyrillic and other letters, four numbers, each with a predictor of its own; () = one.",
    before=(),
)
predictor.temperature = number(0.5, "Of the relaxed boundaries.", least=1e-3, before=0.5)
predictor.weight = number(1.0, "Of the prior's loss.", least=0, before=1.0)
segmented.hnet = chunks = group("Chunks where neighbours differ.", of="model.segmented.segmenter=hnet")
chunks.ratio = number(4.0, "N: bytes a chunk that the loss aims at.", least=1.01, before=4.0)
chunks.weight = number(0.03, "Of the ratio loss.", least=0, before=0.03)
segmented.entropy = hard = group(
    "Patches begin at bytes that are hard to predict.", of="model.segmented.segmenter=entropy"
)
hard.rule = one_of(
    "global",
    ("global", "monotonic"),
    "What exceeds the threshold: the entropy, or its rise from byte to byte.",
    before="global",
)
hard.threshold = number(1.3, "Nats.", before=1.3)
hard.weight = number(1.0, "Of the loss of the head that predicts bytes.", least=0, before=1.0)
segmented.mrt5 = gate = group("A gate deletes bytes.", of="model.segmented.segmenter=mrt5")
gate.k = number(-30.0, "Added to the scores of a byte that is deleted.", least=-1e6, most=-1e-3, before=-30.0)
gate.deleted = number(0.5, "Share of bytes that the controller aims at.", least=0, most=1, before=0.5)
gate.proportional = number(0.5, "p of the controller: answers the error of now.", least=0, before=0.5)
gate.integral = number(1e-5, "i of the controller: adds errors up.", least=0, before=1e-5)

model.hamburger = burger = group("Several tokens a step of the stack.", of="model.kind=hamburger")
burger.most = whole(4, "Tokens of a step at most; 1: the plain model.", least=1, before=4)
burger.groups = one_of(
    "confidence",
    ("confidence", "fixed"),
    "Who says where a group ends: a teacher that finds the next token hard to predict, or its length alone.",
    before="confidence",
)
burger.confidence = number(
    0.7,
    "A token is easy where the teacher's entropy is below that of one with this probability, the rest even.",
    least=1e-3,
    most=1,
    of="model.hamburger.groups=confidence",
    before=0.7,
)
burger.least = whole(
    2,
    "Tokens a group at least, on average from a document's first on; the stack is computed for length / least steps a "
    "row. Groups that would end earlier go on.",
    least=1,
    small=1,
    of="model.hamburger.groups=confidence",
    before=2,
)
burger.documents = whole(
    8, "Documents of a row for which there is room beside; tokens for which there is none read nothing.",
    least=0, of="model.kind=hamburger", before=8,
)  # fmt: skip
burger.features = whole(4, "F: layers of the stack that the micro decoder reads.", least=1, small=2, before=4)
burger.layers = whole(4, "Layers of the micro decoder.", least=1, small=1, before=4)
burger.stop = one_of(
    "teacher",
    ("teacher", "head"),
    "Who ends a group where text is written token by token: as in training, or the stop head as released.",
    before="teacher",
)
burger.stop_confidence = number(
    0.9, "The stop head ends a group where it goes on with less than this probability.", least=0, most=1, before=0.9
)
burger.stop_weight = number(0.5, "Of the stop head's loss.", least=0, before=0.5)
burger.teacher_weight = number(
    1.0, "Of the teacher's loss.", least=0, of="model.hamburger.groups=confidence", before=1.0
)
