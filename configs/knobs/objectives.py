"""Knobs of objectives: an objective reads the group of its own name."""

from configs.knobs.kinds import group, number, one_of, part, switch, text, whole

DRAWS = "Evaluation: estimates a row; each costs a forward pass."

loss = group("Of every objective.")
loss.z_loss = number(0.0, "Weight of mean log(Z)^2.", least=0)

masked_diffusion = group("Masked diffusion.", of="objective=masked_diffusion")
masked_diffusion.schedule = part(
    "linear",
    "models.objectives.diffusion:CHOICES.schedule",
    "Rate of masks over time: linear, loglinear, cosine_md4, cosine_mdlm, poly (k=2), geometric.",
)
masked_diffusion.masking = part(
    "bernoulli",
    "models.objectives.diffusion:CHOICES.masking",
    "bernoulli (each token by the rate of its row) or fixed_count (k of n, weight n/k).",
)
masked_diffusion.times = part(
    "stratified",
    "models.objectives.diffusion:CHOICES.times",
    "bernoulli: iid, offset (one for all rows) or stratified, over the GLOBAL batch.",
)
masked_diffusion.t_min = number(
    1e-3,
    "bernoulli: times are drawn between t_min and t_max. The linear schedule masks at rate t.",
    least=0,
    most=1,
)
masked_diffusion.t_max = number(1.0, "The latest time.", least=1e-6, most=1)
masked_diffusion.steps = whole(0, "bernoulli: steps of the discrete-time loss; 0 = continuous time.", least=0)
masked_diffusion.draws = whole(4, "Evaluation: fixed-count estimates a row; each costs a forward pass.", least=1)

block_diffusion = group("Block diffusion.", of="objective=block_diffusion")
block_diffusion.block = whole(
    4,
    "Tokens a block; divides data.length. 1 is autoregressive, data.length is masked diffusion.",
    least=1,
)
block_diffusion.schedule = part(
    "linear",
    "models.objectives.diffusion:CHOICES.schedule",
    "As in masked_diffusion, for each block by itself.",
)
block_diffusion.masking = part("bernoulli", "models.objectives.diffusion:CHOICES.masking", "As in masked_diffusion.")
block_diffusion.times = part(
    "stratified", "models.objectives.diffusion:CHOICES.times", "Over all blocks of the GLOBAL batch."
)
block_diffusion.t_min = number(
    1e-3,
    "Clipped rates lower the variance: 0.45 to 0.95 at block 4, 0.3 to 0.8 at block 16 (LM1B).",
    least=0,
    most=1,
)
block_diffusion.t_max = number(1.0, "The latest time.", least=1e-6, most=1)
block_diffusion.weighting = part(
    "elbo",
    "models.objectives.diffusion:WEIGHTINGS",
    "Training: elbo, or ones for weight 1 at every masked token.",
)
block_diffusion.draws = whole(4, DRAWS, least=1)

score_entropy = group("Score entropy.", of="objective=score_entropy")
score_entropy.graph = part(
    "absorb",
    "models.objectives.score_entropy:CHOICES.graph",
    "absorb (tokens become masks) or uniform (tokens become any token; no mask).",
)
score_entropy.head = part(
    "score",
    "models.objectives.score_entropy:CHOICES.head",
    "What logits mean: score (SEDD), or probs of the clean token (uniform: UDLM).",
)
score_entropy.schedule = part(
    "loglinear",
    "models.objectives.score_entropy:CHOICES.schedule",
    "loglinear, cosine_mdlm or geometric: those whose noise is finite at t = 1.",
)
score_entropy.times = part("stratified", "models.objectives.score_entropy:CHOICES.times", "As in masked_diffusion.")
score_entropy.t_min = number(
    1e-3, "Training draws times between t_min and t_max; evaluation between 0 and 1.", least=0, most=1
)
score_entropy.t_max = number(1.0, "The latest time.", least=1e-6, most=1)
score_entropy.draws = whole(4, DRAWS, least=1)

any_subset = group("Any-subset autoregressive models.", of="objective=any_subset")
any_subset.rate_min = number(
    0.85, "Training: the share of targets is drawn from here to rate_max; the rest is prompt.", least=0, most=1
)
any_subset.rate_max = number(0.99, "The largest share of targets.", least=0, most=1)

insertion = group("Insertion. Reads a row as one string: data.isolate=False.", of="objective=insertion")
insertion.weighting = part(
    "length",
    "models.objectives.insertion:WEIGHTINGS",
    "length (L + 1 a row: the sampled law is exact), or constant (as published).",
)
insertion.draws = whole(4, DRAWS, least=1)

neodiff = group("NeoDiff. Needs model.time_features: each token is told its own noise.", of="objective=neodiff")
neodiff.levels = whole(
    99, "K: intrinsic times 0..K; the vocabulary grows by K + 1 classes of the time predictor.", least=1
)
neodiff.smoothing = number(0.1, "Of the anchor's targets.", least=0, most=1)
neodiff.noise_factor = number(1.0, "Multiplies the noise.", least=0)
neodiff.conditioned = number(
    0.5,
    "Share of rows trained with an earlier prediction, where model.self_condition asks for it.",
    least=0,
    most=1,
)
neodiff.draws = whole(4, DRAWS, least=1)

distillation = group("Distillation from companions.teacher.", of="objective=distillation")
distillation.weight = number(
    0.5, "Share of the teacher's term; the rest is the text's own.", least=0, most=1, before=0.5
)
distillation.temperature = number(
    2.0, "Divides the logits of both models in the teacher's term.", least=0.01, most=1000, before=2.0
)

swiftkv = group("A rewired model learns from companions.teacher.", of="objective=swiftkv")
swiftkv.weight = number(1.0, "Share of the teacher's term; the rest is the text's own.", least=0, most=1, before=1.0)
swiftkv.temperature = number(
    2.0, "Divides the logits of both models in the teacher's term.", least=0.01, most=1000, before=2.0
)
swiftkv.hidden = number(1.0, "Of the squared distance of the streams before the last layer.", least=0, before=1.0)
swiftkv.released = switch(False, "Means over all tokens, scored or not, as the released code takes them.", before=False)

eagle = group("A head that predicts the features of a frozen model.", of="objective=eagle")
eagle.feature_weight = number(1.0, "Of the distance of features (smooth L1).", least=0, before=1.0)
eagle.token_weight = number(0.1, "Of the cross-entropy with the model's own law.", least=0, before=0.1)

remaining = group("A head that predicts how many tokens are left.", of="objective=remaining")
remaining.weight = number(1.0, "Of its loss, which trains the head alone.", least=0, before=1.0)

exits = group("Classifiers behind each layer that say where a token may leave.", of="objective=exits")
exits.weight = number(1.0, "Of their loss, which trains them alone.", least=0, before=1.0)
exits.layers_weight = number(
    0.3,
    "Of the next token's mean loss from the states of all layers, which trains the model.",
    least=0,
    before=0.3,
)

router = group("A classifier of the tokens that the teacher would write otherwise (R2R).", of="objective=router")
router.top = whole(8, "k: log-probabilities that it reads; 100 as published.", least=1, small=4, before=8)
router.hidden = whole(64, "F: of its hidden layer; 0 = it is linear.", least=0, small=4, before=64)
router.blocks = whole(
    0, "N: blocks behind the hidden layer, which is then linear; 6 of F=1024 as published.", least=0, before=0
)
router.recall = number(1.0, "r: weight of the tokens that differ beside those that do not.", least=0, before=1.0)
router.weight = number(1.0, "Of its loss, which trains it alone.", least=0, before=1.0)

multi_token = group("Prediction of several tokens.", of="objective=multi_token")
multi_token.tokens = whole(
    4,
    "Tokens ahead that are predicted; 1 is next_token. Each beyond the first adds D^2 parameters.",
    least=1,
    small=3,
    before=4,
)

prompt_tokens = group("Prompt tokens that guess what follows, on a frozen model.", of="objective=prompt_tokens")
prompt_tokens.tokens = whole(3, "Prompt tokens behind a place; each is D parameters.", least=1, before=3)
prompt_tokens.every = whole(8, "One place in every so many tokens of a row.", least=1, before=8)
prompt_tokens.decay = number(0.8, "Of the loss from one prompt token to the next.", least=0, most=1, before=0.8)
prompt_tokens.target = one_of(
    "law", ("law", "token"), "What they learn: the model's own law of the token, or the token itself.", before="law"
)

sorted = group("The first layers of a model are models, too.", of="objective=sorted")
sorted.exits = text(
    "1", "Layers after which a sub-model ends, a comma list; the whole model is one as well.", before="1"
)
sorted.weights = text(
    "", "Of the exits, and of the whole model: a comma list of numbers above 0; none = equal.", before=""
)
sorted.choice = one_of(
    "all", ("all", "random"), "All sub-models in one step, or one of them drawn by the weights.", before="all"
)
