"""Knobs of a run over time: optimizer, steps, evaluation, checkpoints, and what it starts from."""

from configs.knobs.kinds import group, number, one_of, part, switch, text, texts, whole

optimizer = group("How parameters are updated.")
optimizer.name = part(
    "adamw", "experiments.program.optimizers:OPTIMIZERS", "adamw, lion, muon, adafactor, schedule_free."
)
optimizer.learning_rate = number(1e-3, "Peak.", least=1e-12, most=100)
optimizer.schedule = part(
    "cosine",
    "experiments.program.optimizers:SCHEDULES",
    "cosine, linear, wsd (warm-up, stable, decay) or constant, after the warm-up.",
)
optimizer.warmup = number(
    0.05, "Share of the updates if below 1, else updates: update u of w has the share u / w.", least=0, smoke=1.0
)
optimizer.final = number(
    0.1,
    "Learning rate of the last update, as a share of the peak.",
    least=0,
    most=1,
    of="optimizer.schedule!=constant",
)
optimizer.decay_share = number(
    0.2, "The last share of the updates after the warm-up, which decays.", least=0, most=1, of="optimizer.schedule=wsd"
)
optimizer.counting = part(
    "updates",
    "experiments.program.optimizers:COUNTINGS",
    "updates: the first update has a rate above 0 and the last has `final`. steps: all of it one update later, so "
    "that the first has rate 0 and `final` is never reached, and schedule_free weighs its average by the rate of the "
    "next update.",
    before="steps",
)
optimizer.weight_decay = number(0.1, "Decoupled; multiplied by the learning rate.", least=0)
optimizer.decay_roles = texts(
    ("kernel", "embedding"), "Parameter roles that decay (models.parameters.ROLES); norms and biases do not."
)
optimizer.freeze = texts(
    (),
    "What is not trained, by role or by pattern of names (experiments/program/freezing.py); '!' in front: trained "
    "after all. ('*', '!adapter') trains LoRA alone.",
    before=(),
)
optimizer.b1 = number(
    0.9,
    "Decay of the first moment (muon: of what is left to AdamW).",
    least=0,
    most=0.9999,
    of="optimizer.name!=adafactor",
)
optimizer.b2 = number(
    0.95,
    "Decay of the second moment (muon: of what is left to AdamW).",
    least=0,
    most=0.99999,
    of="optimizer.name!=adafactor",
)
optimizer.eps = number(
    1e-8,
    "Added to the root of the second moment.",
    least=0,
    most=1,
    of="optimizer.name!=adafactor|lion",
)
optimizer.clip = number(1.0, "Global gradient norm; 0 = off.", least=0)
optimizer.ema = number(
    0.0, "Decay of an averaged copy of the parameters used for evaluation; 0 = off.", least=0, most=0.99999
)
optimizer.ema_debias = switch(
    True, "The initial parameters are no part of the average.", of="optimizer.ema=*", before=False
)
optimizer.rounding = part(
    "master",
    "experiments.program.precision:ROUNDINGS",
    "Of parameters narrower than float32. master: updates add to a float32 copy. stochastic: no copy, sums are rounded "
    "to one of two neighbours at random. nearest: moments, averages and accumulated gradients are as narrow as the "
    "parameters, and small steps are rounded away.",
    of="model.param_dtype!=float32|float64",
    before="nearest",
)

train = group("The loop.")
train.steps = whole(1000, "Updates of the whole run.", least=1, smoke=4)
train.accumulation = whole(1, "Microbatches a step; the global batch stays data.batch_size.", least=1)
train.log_every = whole(10, "Steps between lines of metrics.jsonl.", least=1, smoke=1)
train.profile_step = whole(-1, "First step of a profiler window; -1 = none.")
train.profile_steps = whole(3, "Steps of that window.", least=1)
train.wandb = text("", 'A Weights & Biases project; "" = not used.')

evaluation = group("Held-out likelihood.")
evaluation.every = whole(500, "Steps; also after the last step. 0 = only then.", least=0, smoke=2)
evaluation.rows = whole(
    320,
    "Held-out rows, the same ones whatever the batch or the devices; 0 = the whole split.",
    least=0,
    smoke=16,
    before=320,
)
evaluation.skip = whole(
    0,
    "Held-out rows before the first that is evaluated, e.g. as many as other runs are judged by.",
    least=0,
    small=16,
    before=0,
)
evaluation.batch_size = whole(0, "0 = data.batch_size / train.accumulation.", least=0, smoke=8)
evaluation.texts = texts(
    (),
    "--mode=evaluate: other texts, NAME=PATH each (or PATH), a file, folder or pattern; each document by itself, as "
    "many whole ones as eval.rows allow (0 = all). --mode=tokenize: parallel texts, as many documents in each.",
    before=(),
)
evaluation.morphemes = text(
    "", '--mode=tokenize: a file of morphemes, one a line, for the share of tokens that are one; "" = none.', before=""
)
evaluation.bytes = one_of(
    "canonical",
    ("canonical", "exact", "rows"),
    "--mode=evaluate: canonical counts each text's own encoding; exact adds the probability of the bytes, over all "
    "encodings that begin with them, and the mass on what is no encoding; rows the law of every byte of a few texts.",
    before="canonical",
)
evaluation.prompt = whole(
    0,
    "Tokens of a row that are read at once where generate.memory keeps a part; 0 = half of it.",
    least=0,
    small=8,
    before=0,
)
evaluation.memories = text(
    "",
    "--mode=evaluate: policies of generate.memory to compare at eval.budgets, a comma list or 'all'; \"\" = none.",
    before="",
)
evaluation.budgets = text(
    "16, 32, 64",
    "Tokens a layer that they keep, a comma list; below 1: shares of the prompt.",
    of="eval.memories=*",
    before="16, 32, 64",
)
evaluation.patterns = text(
    "",
    "--mode=evaluate: patterns of sparse prefill among which each head's best is searched on one held-out row, a comma "
    "list of KIND:FIRST:SECOND, or 'minference' for its own; \"\" = none.",
    before="",
)
evaluation.sample_prompt = text(
    "auto", 'One sample goes to the report at each evaluation; "auto" = behind a held-out line, "" = none.'
)
evaluation.sample_tokens = whole(200, "Tokens of that sample.", least=0, smoke=8)
evaluation.trace = whole(
    0,
    "With --mode=evaluate: the experts of so many held-out tokens go to WORKDIR/routing.npz; 0 = none.",
    least=0,
    of="model.channel=moe",
    before=0,
)

checkpoint = group("What is saved.")
checkpoint.every = whole(
    500, "Steps; also after the last step, and on SIGTERM or SIGINT. 0 = only then.", least=0, smoke=2
)
checkpoint.keep_last = whole(2, "Newest checkpoints that are kept.", least=1)
checkpoint.keep_every = whole(0, "Steps that are never deleted (multiples); 0 = none.", least=0)
checkpoint.keep_best = whole(0, "Checkpoints with the lowest held-out loss that are kept.", least=0)

init = group("What a run starts from, if not from random parameters.")
init.warm_start = text("", "A workdir whose newest parameters start this run (not its optimizer or step).")
init.transplant = text(
    "",
    "A workdir, or a pretrained model with its tokenizer, whose model starts this run, its embeddings moved to another "
    "tokenizer by a rule.",
    before="",
)
init.transplant_rule = one_of(
    "copy_mean",
    (
        "random", "mean", "copy_mean", "tokenadapt_local", "tokenadapt_global", "tokenadapt", "transmi_max",
        "transmi_min", "transmi_average", "zett",
    ),
    "Rows of pieces that are new: see docs/tokens.md, Transplants.",
    before="copy_mean",
)  # fmt: skip
init.zett = zett = group(
    "The hypernetwork that says the rows of a transplant, trained on the frozen model as the run starts.",
    of="init.transplant_rule=zett",
)
zett.steps = whole(400, "Updates with a tokenizer drawn at each.", least=0, smoke=2, before=400)
zett.identity_steps = whole(200, "Updates before, which reproduce the old rows.", least=0, smoke=2, before=200)
zett.learning_rate = number(1e-3, "Of Adam; falls by a cosine over `steps`.", least=0, before=1e-3)
zett.width = whole(
    0, "Of the hypernetwork, a multiple of its heads; 0 = that of its output.", least=0, small=8, before=0
)
zett.layers = whole(3, "Of its Transformer.", least=1, small=1, before=3)
zett.heads = whole(4, "Of its attention.", least=1, small=2, before=4)
zett.lexical = number(
    0.5, "Weight of the distance from the old rows of pieces that are one old id.", least=0, before=0.5
)
zett.noise = number(
    1e-5, "exp of the mean of log sigma, the noise on the shares by which pieces are chosen; 0 = none.", least=0,
    before=1e-5,
)  # fmt: skip
zett.spread = number(4.0, "Deviation of log sigma.", least=0, before=4.0)
zett.pieces = whole(
    0, "Pieces of a drawn tokenizer, at least 257; 0 = as many as the new one has.", least=0, small=300, before=0
)
zett.pool = whole(16, "Batches of text around which a tokenizer is drawn.", least=1, small=2, before=16)
init.grow_from = text("", "A workdir whose model starts this run with more parameter tokens, its function kept.")
init.pretrained = text(
    "", "A folder in Hugging Face form or a .gguf file whose weights start this run: docs/pretrained.md.", before=""
)
init.upcycle_from = text(
    "",
    "A workdir whose dense model starts this run as a mixture of experts, its function kept.",
    of="model.channel=moe",
    before="",
)
init.rewire_from = text(
    "",
    'A workdir whose Transformer starts this run, its later layers reading an early one; "teacher": that of '
    "companions.teacher.",
    of="model.kind=swiftkv",
    before="",
)
init.grow_optimizer = one_of(
    "reset", ("reset", "carry"), "reset (as published), or carry: old rows keep their moments."
)

companions = group("Trained models that an objective reads beside its own, and does not train.")
companions.teacher = group(
    "The model whose predictions are imitated; of a router, the large one.", of="objective=distillation|swiftkv|router"
)
companions.teacher.workdir = text(
    "", 'A workdir with a trained model of the same tokenizer, or "self": the model as this run starts.', before=""
)
companions.teacher.average = switch(
    False, "The averaged parameters of that run, which it must have kept (optimizer.ema).", before=False
)
