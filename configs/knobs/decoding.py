"""Knobs of generation. Names are written out, because these settings are checked before jax is imported."""

from configs.knobs import control, drafts, memory
from configs.knobs.kinds import Group, group, number, one_of, part, switch, text, texts, whole

SCORE_METHODS = ("analytic", "euler", "released")
CONFIDENT = ("max_prob", "margin", "entropy", "random", "left_to_right", "candidate", "drawn", "threshold", "factor")
CACHES = ("prefix", "dual", "free", "adaptive")
# An objective that is still to come may write text in any of these ways.
TOKEN_BY_TOKEN = "objective!=masked_diffusion|block_diffusion|score_entropy|any_subset|insertion|neodiff"
LEFT_TO_RIGHT = "next_token|distillation|multi_token|eagle|swiftkv|prompt_tokens|sorted|remaining|exits|router"
CANVAS = f"objective!={LEFT_TO_RIGHT}"
STEPS = f"{CANVAS}|any_subset|insertion"
FILLED = f"{STEPS}|neodiff"
DRAFTS = f"{CANVAS}|masked_diffusion|block_diffusion|score_entropy|insertion|neodiff"
TIMED = f"generate.diffusion.method!={'|'.join((*CONFIDENT, 'first_hitting', 'guided'))}"

generate = group("How text is drawn.")
generate.max_tokens = whole(200, "Tokens that are drawn.", least=1, smoke=8)
generate.temperature = number(0.8, "Divides the logits; 0 = greedy.", least=0)
generate.top_k = whole(0, "Only the k most probable tokens; 0 = off.", least=0, of=TOKEN_BY_TOKEN)
generate.top_p = number(
    1.0, "Only the fewest tokens that have this probability together.", least=1e-6, most=1, of=TOKEN_BY_TOKEN
)
generate.min_p = number(
    0.0, "Only tokens with this share of the largest probability.", least=0, most=1, of=TOKEN_BY_TOKEN
)
generate.edit_of = text(
    "",
    "The prompt as it was before it was edited: keys of what both have are kept, turned to their new places (PIE).",
    of=TOKEN_BY_TOKEN,
    before="",
)
generate.merges = whole(
    0,
    "--mode=generate: pairs of neighbouring tokens of the prompts that are merged, the most frequent first, so that "
    "prompts are read in fewer tokens (dynamic tokenization); 0 = none.",
    least=0,
    of=TOKEN_BY_TOKEN,
    before=0,
)
generate.merge_rows = one_of(
    "copy_mean",
    ("copy_mean", "zett"),
    "Rows of merged tokens: the mean of those that they are made of, or what a hypernetwork says (init.zett, on the "
    "run's text), trained before the prompts are read.",
    of="generate.merges=*",
    before="copy_mean",
)
generate.memory = part(
    "full", "models.mixers.memory:MEMORIES", "What attention keeps of the text.", of=TOKEN_BY_TOKEN, before="full"
)
generate.prefill = one_of(
    "dense",
    ("dense", "minference"),
    "What tokens of a prompt see of one another: everything, or what each head's pattern lets them.",
    of=TOKEN_BY_TOKEN,
    before="dense",
)
generate.drafter = part(
    "none", "models.decoding.drafts:DRAFTERS", "What is drafted for one pass.", of=TOKEN_BY_TOKEN, before="none"
)
generate.verifier = part(
    "same_draw", "models.decoding.verify:VERIFIERS", "Which drafts stay.", of=TOKEN_BY_TOKEN, before="same_draw"
)
generate.control = text(
    "",
    "What the logits go through, in order: models.decoding.control.CONTROLS, a comma list. What is not named of "
    "temperature, top_k, min_p and top_p follows.",
    of=TOKEN_BY_TOKEN,
    before="",
)
generate.draft = whole(
    4,
    "Tokens drafted in one call and checked in the next; the law does not change.",
    least=1,
    of=DRAFTS,
)
generate.stop = texts((), "Strings that end a sample.")
generate.chat = switch(
    False,
    "A prompt is what a user says: the chat template (data.template, else the tokenizer's own) stands around it.",
    of=TOKEN_BY_TOKEN,
    before=False,
)

generate.engine = engine = group("Many prompts over lanes.", of=TOKEN_BY_TOKEN)
engine.lanes = whole(8, "Rows that are under way together.", least=1, before=8)
engine.capacity = whole(
    0, "Tokens of a prompt and its text, at most; 0 = what the longest of the file needs.", least=0, before=0
)

engine.queue = whole(
    64, "Texts that may wait for a lane of --mode=serve; more are asked to come again.", least=0, before=64
)
engine.pool = whole(
    0, "Slots of all rows of --mode=serve together, at least its capacity; 0 = lanes x capacity.", least=0, before=0
)
engine.scheduler = one_of(
    "first_come",
    ("first_come", "batches", "prepacking", "sarathi", "past_future", "aggressive", "conservative", "batchllm"),
    "Who is read and who writes in each step of --mode=serve: experiments.generation.serving.schedulers.",
    before="first_come",
)
engine.budget = whole(
    64,
    "Tokens of a step while prompts are read, a token of each row that writes first; more than lanes.",
    least=2,
    before=64,
    of="generate.engine.scheduler=sarathi|batchllm",
)
engine.prefix_blocks = whole(
    128,
    "Blocks of prompts that --mode=serve keeps for others that begin so: 32 tokens each, or the 512 of a piece where a "
    "model's state is not slots alone. 0 = none.",
    least=0,
    before=128,
)

generate.window = window = group("The last tokens alone.", of="generate.memory=window")
window.size = whole(1024, "Tokens that a query sees, itself included.", least=1, small=8, before=1024)

generate.minference = minference = group("Patterns of sparse prefill.", of="generate.prefill=minference")
minference.patterns = text(
    "vertical_slash:1000:6096",
    "KIND:FIRST:SECOND as in eval.patterns, of all heads; a comma list of a layer's heads, layers behind semicolons; "
    "or the patterns.json of eval.patterns.",
    before="vertical_slash:1000:6096",
)

for _name, _group in (*vars(memory).items(), *vars(control).items(), *vars(drafts).items()):
    if isinstance(_group, Group) and not _name.startswith("_"):
        setattr(generate, _name, _group)

generate.penalties = penalties = group("Of tokens that came.", of="generate.control=penalties")
penalties.repetition = number(
    1.0, "Divides positive logits of tokens of prompt and answer, multiplies others; 1 = off.", least=1e-3, before=1.0
)
penalties.presence = number(0.0, "Taken off logits of tokens of the answer.", before=0.0)
penalties.frequency = number(0.0, "Taken off logits of tokens of the answer, each time.", before=0.0)

generate.min_length = min_length = group("When the answer may end.", of="generate.control=min_length")
min_length.tokens = whole(0, "No end before so many tokens of the answer.", least=0, before=0)

generate.no_repeat_ngram = no_repeat = group("What is not written twice.", of="generate.control=no_repeat_ngram")
no_repeat.n = whole(0, "No n-gram of prompt and answer again; 0 = off.", least=0, most=8, before=0)

generate.dry = dry = group("Don't repeat yourself.", of="generate.control=dry")
dry.multiplier = number(0.0, "Of base^(repeated tokens - allowed), taken off logits; 0 = off.", least=0, before=0.0)
dry.base = number(1.75, "How fast it grows.", least=1, before=1.75)
dry.allowed = whole(2, "So many repeated tokens cost the multiplier, fewer nothing.", least=1, before=2)

generate.typical_p = typical_p = group("Tokens of typical surprise.", of="generate.control=typical_p")
typical_p.mass = number(
    1.0, "Only those nearest to the entropy, of this probability; 1 = off.", least=1e-6, most=1, before=1.0
)

generate.top_n_sigma = top_n_sigma = group("Logits near the largest.", of="generate.control=top_n_sigma")
top_n_sigma.n = number(0.0, "Within so many deviations of it; 0 = off.", least=0, before=0.0)

generate.mirostat = mirostat = group("Mirostat 2.", of="generate.control=mirostat")
mirostat.tau = number(0.0, "The surprise to be held, in bits; 0 = off.", least=0, before=0.0)
mirostat.rate = number(0.1, "How fast the bound follows.", least=0, most=1, before=0.1)

generate.logit_bias = logit_bias = group("Numbers added to logits.", of="generate.control=logit_bias")
logit_bias.ids = text("", 'Ids and numbers: "50:-2.5, 13:-inf".', before="")

generate.constraint = constraint = group(
    "What the answer must be; one of the first three.", of="generate.control=constraint"
)
constraint.pattern = text("", "A regular expression that the whole answer matches.", before="")
constraint.schema = text("", "A JSON schema, as JSON; without references that come back to themselves.", before="")
constraint.choices = text("", 'Answers, "|" between them.', before="")
constraint.states = whole(1024, "The largest automaton: states.", least=2, small=64, before=1024)
constraint.classes = whole(256, "The largest automaton: kinds of tokens.", least=2, small=64, before=256)

generate.r2r = r2r = group("A larger run for uncertain tokens.", of="generate.control=r2r")
r2r.workdir = text("", "The workdir of the other run; it has the same tokenizer.", before="")
r2r.threshold = number(
    1000.0, "Uncertainty at which the other run writes; 1000 = off.", least=0, most=1000, before=1000.0
)
r2r.measure = one_of(
    "entropy",
    ("entropy", "aleatoric", "router"),
    "Of the law, of its ten largest logits, or by the classifier that objective=router trains: 0 to 1.",
    before="entropy",
)

generate.nudging = nudging = group("Words of a helper where the model is unsure.", of="generate.control=nudging")
nudging.workdir = text("", "The workdir of the helper; it has the same tokenizer.", before="")
nudging.threshold = number(0.0, "Largest probability below which it writes a word; 0 = off.", least=0, before=0.0)

generate.gedi = gedi = group("A class-conditional run as guide.", of="generate.control=gedi")
gedi.workdir = text("", "The workdir of the guide; it has the same tokenizer.", before="")
gedi.weight = number(0.0, "Of log P(wanted class); 0 = off, 1 = Bayes, 30 = as released.", least=0, before=0.0)
gedi.form = one_of("exact", ("exact", "released"), "Bayes, or divided by the length and filtered.", before="exact")
gedi.filter_p = number(0.8, "Guided probability that the filter takes at most.", least=0, most=1, before=0.8)
gedi.target_p = number(0.8, "P(wanted) from which no token is taken.", least=0, most=1, before=0.8)
gedi.wanted = text("", "The text that names the wanted class, at the start of a document.", before="")
gedi.other = text("", "The text that names the other class.", before="")

generate.cntp = cntp = group("More trials where the entropy is high.", of="generate.control=cntp")
cntp.most = whole(1, "Trials at the highest entropy; 1 = off.", least=1, before=1)
cntp.low = number(0.01, "Entropy in nats up to which there is one.", least=0, before=0.01)
cntp.high = number(1.5, "Entropy from which there are most.", least=0, before=1.5)
cntp.stops = text(".,\n?!:;)]}", "Characters that end a trial.", before=".,\n?!:;)]}")
cntp.places = whole(8, "Trials that there is room for.", least=1, small=4, before=8)
cntp.length = whole(16, "Tokens of a trial at most.", least=1, small=4, before=16)

generate.adadec = adadec = group("Looks ahead where the entropy is high.", of="generate.control=adadec")
adadec.threshold = number(1000.0, "Entropy in nats from which it does; 1000 = off.", least=0, most=1000, before=1000.0)
adadec.candidates = whole(3, "Tokens that are tried.", least=1, small=3, before=3)
adadec.length = whole(5, "Tokens behind each.", least=0, small=2, before=5)

generate.beam = beam = group("Beam search.", of="generate.control=beam")
beam.beams = whole(1, "Texts that are kept; 1 = off.", least=1, small=3, before=1)
beam.alpha = number(1.0, "The best score / length^alpha is written.", least=0, before=1.0)

generate.best_of_n = best_of_n = group("The likeliest of n texts.", of="generate.control=best_of_n")
best_of_n.n = whole(1, "Texts that are drawn; 1 = off.", least=1, small=3, before=1)
best_of_n.choose = one_of(
    "likeliest",
    ("likeliest", "majority"),
    "What is written: the likeliest, or the commonest answer.",
    before="likeliest",
)
best_of_n.behind = text(
    "", "An answer is what stands behind the last of this.", of="generate.best_of_n.choose=majority", before=""
)

generate.json = json = group("Answers that are JSON of any depth.", of="generate.control=json")
json.on = switch(False, "Whether this answer is; the host looks at the row between two rounds.", before=False)

generate.swi = swi = group("Thinks in embeddings while the entropy is falling.", of="generate.control=swi")
swi.steps = whole(0, "Tokens over which blends fade; 0 = off, max_tokens as released.", least=0, before=0)
swi.window = whole(512, "Steps that thinking in words lasts at least.", least=0, before=512)
swi.alpha = number(1.0, "Share of the expected embedding where soft thinking begins.", least=0, most=1, before=1.0)
swi.beta = number(0.7, "Share of the expected embedding where it ends.", least=0, most=1, before=0.7)
swi.begin = text("<think>", "Its first token is mixed in where soft thinking begins.", before="<think>")
swi.end = text(
    "</think>", "Its first token is mixed in where soft thinking ends; drawn, it is the last.", before="</think>"
)

generate.vectors = vectors = group("In-context vectors.", of="generate.control=vectors")
vectors.path = text("", "A .npy file of [layers, width].", before="")
vectors.strength = number(0.0, "How much of it; 0 = off.", before=0.0)
vectors.form = one_of("added", ("added", "released"), "Added, or turned at constant length.", before="added")

generate.insertion = insertion = group("When insertion ends.", of="objective=insertion")
insertion.stop = one_of(
    "sample",
    ("sample", "threshold", "never"),
    "sample (a coin of p_stop: the exact law), threshold (as published) or never.",
)
insertion.threshold = number(
    0.9, "Stops where p_stop is at least this.", least=0, most=1, of="generate.insertion.stop=threshold"
)

generate.diffusion = diffusion = group("Of diffusion objectives: fills max_tokens masks behind the prompt.", of=CANVAS)
diffusion.method = one_of(
    "",
    ("", "ancestral", "ancestral_two_step", "cached", "first_hitting", *CONFIDENT, *SCORE_METHODS, "guided"),
    '"" = the objective\'s own (ancestral; score_entropy: analytic), else entropy, drawn, ...',
)
diffusion.steps = whole(0, "Calls of the model for the whole text; 0 = one a token.", least=0, of=STEPS)
diffusion.block = whole(
    0,
    "Tokens filled before the next ones; 0 = all at once, or the blocks of block_diffusion.",
    least=0,
    of=FILLED,
)
diffusion.block_from = one_of(
    "row",
    ("row", "prompt"),
    'Where blocks are counted from: the first token of a row, or of the answer: "prompt" (LLaDA).',
    of=FILLED,
    before="row",
)
diffusion.grid = one_of(
    "linear",
    ("linear", "cosine"),
    "Times of the steps: linear, or cosine (few tokens first).",
    of=TIMED,
)
diffusion.remask = number(
    0.0,
    "Share of the largest rate at which tokens become masks again (ReMDM).",
    least=0,
    most=1,
    of=f"{TIMED}|{'|'.join(SCORE_METHODS)}",
)
diffusion.threshold = number(
    0.9, "Reveals every token at least so sure.", least=0, most=1, of="generate.diffusion.method=threshold"
)
diffusion.factor = number(
    1.0,
    "Reveals n tokens while (n + 1) (1 - confidence) is at most this.",
    least=0,
    of="generate.diffusion.method=factor",
)
diffusion.guidance = number(0.0, "Classifier-free; 0 = off. Doubles the calls.", least=0, of=FILLED)
diffusion.cache = one_of(
    "", ("", *CACHES), 'What is kept between calls: "" = nothing, prefix, dual, free (FreeCache), adaptive.', of=FILLED
)
diffusion.commit = switch(
    True,
    "One more call on each finished block, so that what is kept is not stale.",
    of="generate.diffusion.cache=free",
)
diffusion.refresh = whole(
    0,
    "Feeds everything every so many calls of a block; 0 = never.",
    least=0,
    of="generate.diffusion.cache=prefix|dual|free",
)
diffusion.adaptive = adaptive = group("dLLM-Cache; all at 1 is no cache.", of="generate.diffusion.cache=adaptive")
adaptive.prompt_every = whole(50, "Calls between two renewals of the prompt's features.", least=1)
adaptive.answer_every = whole(7, "Of the answer's.", least=1)
adaptive.share = number(0.25, "Of the answer's tokens that are renewed in every other call.", least=0, most=1)
diffusion.guide = text(
    "", "The workdir of an autoregressive run that judges drafts.", of="generate.diffusion.method=guided"
)
diffusion.rule = one_of(
    "match",
    ("match", "top_k", "threshold", "ratio", "sample", "always", "never"),
    "A draft stays by match, top_k, threshold, ratio, sample, always or never.",
    of="generate.diffusion.method=guided",
)
diffusion.suffix = text("", "Text behind the masks: infilling between the prompt and this.")
