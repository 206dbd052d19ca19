"""Knobs of what attention keeps while text is drawn: a group for each policy of `generate.memory`; docs/cache.md.

Their defaults are those of the rules (`models.mixers.memory.rules`), under which `replay` runs the same policies.
"""

from configs.knobs.kinds import Group, group, number, one_of, switch, text, whole

BUDGET = "Tokens that stay; below 1: a share of the prompt."
RECENT = "The last so many of them stay whatever they are worth; below 1: a share of the prompt."
SINKS = "The first so many of them do, too."
BYTES = "Of all layers' slots of a row together, in place of the budget; 0 = by the budget."


def _policy(name: str, says: str, budget: float | None = 64, recent: float | None = 32, sinks: int | None = 0) -> Group:
    made = group(says, of=f"generate.memory={name}")
    if budget is not None:
        made.budget = number(budget, BUDGET, least=0, small=8, before=float(budget))
    if recent is not None:
        made.recent = number(recent, RECENT, least=0, small=4, before=float(recent))
    if sinks is not None:
        made.sinks = whole(sinks, SINKS, least=0, before=sinks)
    made.bytes = whole(0, BYTES, least=0, before=0)
    return made


streaming = _policy("streaming", "The first tokens and the last ones, placed as they lie in the cache.", 64, None, 4)
streaming.evict = one_of(
    "after", ("after", "before"), "Whether what leaves does so before or after a pass.", before="after"
)

h2o = _policy("h2o", "Those that got the most attention.")
h2o.released = switch(False, "What leaves the recent tokens is out of sight for one pass.", before=False)

a2sf = _policy("a2sf", "Those that got the most attention of late.")
a2sf.alpha = number(0.9, "What is left of a token's attention after a step.", least=0, most=1, before=0.9)
a2sf.released = switch(False, "The prompt is scored, and nothing leaves after it.", before=False)

keyformer = _policy("keyformer", "Softmax of noisy logits at a rising temperature.")
keyformer.end = number(2.0, "The temperature after the last step.", least=1e-6, before=2.0)
keyformer.steps = whole(0, "Steps up to it; 0 = generate.max_tokens.", least=0, before=0)
keyformer.seed = whole(0, "Of the noise.", least=0, before=0)
keyformer.noise = switch(True, "Gumbel noise by key position; False: none.", before=True)
keyformer.frozen_keys = switch(False, "As released: what leaves the recent tokens never stays.", before=False)

scissorhands = _policy("scissorhands", "What few of the last queries vote against.")
scissorhands.window = whole(32, "Queries whose votes count.", least=1, most=4096, before=32)
scissorhands.drop = whole(1, "Tokens that leave at once.", least=1, before=1)

tova = _policy("tova", "What the newest query looked at, alike in all heads.", recent=0)

lot = _policy("random", "The control: each token draws how long it stays.")
lot.seed = whole(0, "Of the draws.", least=0, before=0)

snap = _policy("snap", "What the end of the prompt looked at, and all that is drawn.", 64, None, None)
pyramid = _policy("pyramid", "As snap, with budgets that fall with depth; the budget is their mean.", 64, None, None)
for _each in (snap, pyramid):
    _each.window = whole(16, "Queries at the end of the prompt; their tokens stay.", least=1, small=4, before=16)
    _each.kernel = whole(5, "Keys over which attention is pooled; odd.", least=1, before=5)
    _each.pooling = one_of("mean", ("mean", "max"), "Its mean over them, or its maximum.", before="mean")
pyramid.beta = whole(20, "The last layer has a share 1 / beta of the mean.", least=1, before=20)

prefix_kv = _policy("prefix_kv", "The best of each layer's prompt, then one place leaves a step.", None, None, 4)
elastic = _policy("elastic", "As prefix_kv, and what leaves a prompt is averaged into what stays.", None, None, 4)
for _each in (prefix_kv, elastic):
    _each.budget = number(
        0, "Tokens that stay of the longest text; below 1: a share of any text; 0 = by the ratio.", least=0, before=0.0
    )
    _each.ratio = number(
        0.5, "The share of a text that is forgotten, where neither budget nor bytes are given.", least=0, most=1,
        before=0.5,
    )  # fmt: skip
    _each.shares = text("", "That of each layer, a comma list, in its place.", before="")
    _each.distance = whole(
        -25, "The place that leaves a step; below 1: counted from the end of the prompt.", before=-25
    )
elastic.released = switch(False, "As the authors' code, which reads orders as ranks.", before=False)
elastic.values_only = switch(False, "Keys are not averaged.", before=False)

ems = _policy("ems", "Global and local attention; what leaves is merged into the most similar key.")
ems.window = whole(16, "Queries whose attention is local.", least=1, before=16)
ems.least = number(0.5, "Less similar keys are dropped; a cosine.", least=-1, most=1, before=0.5)

token_select = group(
    "Nothing leaves; a query reads the first, the last and those of the most votes.", of="generate.memory=token_select"
)
token_select.budget = number(
    64, "Tokens that are chosen; below 1: a share of the prompt.", least=0, small=4, before=64.0
)
token_select.initial = whole(4, "First tokens that are read.", least=0, before=4)
token_select.local = whole(16, "Last tokens that are read.", least=1, small=4, before=16)
token_select.smooth = whole(0, "Odd width of a max pool over votes; 0 = none.", least=0, before=0)
token_select.least = number(
    1.0, "A choice is used again while the query's cosine with its query is so large.", least=-1, most=1, before=1.0
)
token_select.released = switch(False, "Votes as the authors' kernel counts them.", before=False)
token_select.narrow = switch(False, "bfloat16 votes.", before=False)

quest = group("Nothing leaves; a query head reads the pages that may matter most.", of="generate.memory=quest")
quest.budget = number(
    64, "Tokens of the pages that are read; below 1: a share of the prompt.", least=0, small=8, before=64.0
)
quest.page = whole(16, "Tokens of a page.", least=1, small=4, before=16)
quest.least = whole(3, "Pages that are read at least.", least=1, before=3)
quest.dense = whole(0, "The first so many layers read everything.", least=0, before=0)
