"""Knobs of entries of `generate.control` that read more than logits: a group for each; docs/control.md."""

from configs.knobs.kinds import group, number, one_of, switch, text, whole

roles = group("Who the tokens of a prompt come from.", of="model.roles=*")
roles.marked = switch(
    False, "<|system|>, <|user|> and <|data|> begin segments of a prompt and are no tokens of it.", before=False
)

where = group("Answers that fulfil a predicate.", of="generate.control=where")
where.predicate = text("", "E.g. len(words(text)) < 20 and 'x' not in text; docs/control.md has the words.", before="")
where.stop = switch(False, "Ends the answer as soon as the predicate stays true.", before=False)

budget = group("Answers of about so many tokens.", of="generate.control=budget")
budget.tokens = whole(0, "Of the answer; 0 = off.", least=0, before=0)
budget.form = one_of(
    "predicted",
    ("predicted", "exact"),
    "By the head that objective=remaining trains, or by the table of a chain that is known.",
    before="predicted",
)
budget.path = text(
    "",
    "A .npy file: [rows, V], row b the chance to end within b more tokens behind each last token.",
    of="generate.budget.form=exact",
    before="",
)
budget.most = whole(256, "Rows that there is room for.", least=1, small=8, of="generate.budget.form=exact", before=256)

superposed = group("Several drafts in one stream of the model.", of="generate.control=superposed")
superposed.drafts = whole(0, "Texts that are kept; 0 = off.", least=0, small=2, before=0)
superposed.alpha = number(0.0, "Of the n-grams' log-probability; 0 = none.", least=0, most=1, before=0.0)
superposed.top = whole(16, "Tokens of the model's law that drafts go on with.", least=1, small=8, before=16)
superposed.weights = text("0.2, 0.3, 0.5", "Of the laws behind the last 1, 2, ... tokens.", before="0.2, 0.3, 0.5")
superposed.path = text("", "A text file whose n-grams count.", before="")
superposed.size = whole(4096, "Tokens of it that there is room for.", least=1, small=64, before=4096)

semantic = group("A verifier of the whole text, around a sample.", of="generate.control=semantic")
semantic.weight = number(0.0, "Power of E[verifier] of each token; 0 = off, 1 = as published.", least=0, before=0.0)
semantic.path = text("", "A .npz file: kernel [D], bias, of the mean embedding of the answer.", before="")
semantic.length = whole(8, "Tokens of the sample behind each token.", least=0, small=2, before=8)

skip = group("Fewer layers the later the token.", of="generate.control=skip")
skip.least = whole(0, "Layers of the last token; 0 = off.", least=0, before=0)
skip.warm_up = whole(1, "First layers that always run.", least=0, before=1)

early_exit = group("Tokens leave at the layer whose classifier says so.", of="generate.control=early_exit")
early_exit.threshold = number(
    2.0, "Chance of its class from which a classifier is heard; above 1 = off.", least=0, before=2.0
)
early_exit.stops = switch(True, "The class that ends an answer is heard, too.", before=True)

sets = group("Sets in a prompt, whose order does not count.", of="generate.control=sets")
sets.open = text("[[", "Begins a set.", before="[[")
sets.between = text("||", "Between its members.", before="||")
sets.close = text("]]", "Ends it.", before="]]")
sets.on = switch(False, "Whether this prompt has sets.", before=False)
