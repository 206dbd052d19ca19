"""Knobs of drafts: a group for each drafter of `generate.drafter` that has any, and of typical acceptance."""

from configs.knobs.kinds import Group, group, number, one_of, switch, text, whole


def _by_level(name: str, drafter: Group) -> None:
    """Knobs of `generate.NAME`, a drafter of trees that are written level by level."""
    known, grown = f"generate.{name}.builder=template", f"generate.{name}.builder=eagle2|dyspec"
    shapes = "Its tree: recycling, medusa, widths by depth, or sequoia:NODES:LEVELS:CHANCES."
    drafter.template = text("3x2x1", shapes, of=known, before="3x2x1")
    drafter.size = whole(12, "Nodes below the last token.", least=1, small=6, of=grown, before=12)
    drafter.levels = whole(4, "Of the nodes.", least=1, small=2, of=grown, before=4)
    drafter.width = whole(3, "Children of a node, at most.", least=1, small=2, of=grown, before=3)
    drafter.beam = whole(3, "Nodes of a level that have children.", least=1, small=2, of=grown, before=3)
    alone = "Children of a node are drawn each by itself, as kseq needs them; else they differ."
    drafter.independent_draws = switch(False, alone, before=False)


lookup = group("Drafts from the text itself.", of="generate.drafter=lookup")
lookup.length = whole(8, "Drafts a round.", least=1, small=3, before=8)
lookup.ngram = whole(3, "The last so many tokens are looked for, then fewer.", least=1, before=3)

model_draft = group("Drafts of a smaller run.", of="generate.drafter=model_draft")
model_draft.workdir = text("", "The workdir of the smaller run; it has the same tokenizer.", before="")
model_draft.length = whole(
    4, "Drafts a round; 0 = what rounds that are timed before the texts say, up to 12.", least=0, small=2, before=4
)

random = group("Drafts drawn evenly: a control.", of="generate.drafter=random")
random.length = whole(4, "Drafts a round.", least=1, small=2, before=4)

exit = group("Drafts of the model's own first layers.", of="generate.drafter=exit")
exit.layers = whole(2, "Layers that draft.", least=1, small=1, before=2)
exit.length = whole(4, "Drafts a round.", least=1, small=2, before=4)
exit.threshold = number(
    0.0, "A draft ends before a token that is less likely than this at its likeliest; 0 = never.", least=0, most=1,
    before=0.0,
)  # fmt: skip

eagle = group("Drafts of the head that objective=eagle trains.", of="generate.drafter=eagle")
eagle.builder = one_of(
    "chain",
    ("chain", "template", "eagle2", "dyspec"),
    "One behind the other, a tree of known shape, the likeliest paths, or the slots that the walk reaches likeliest.",
    before="chain",
)
eagle.length = whole(4, "Drafts a round.", least=1, small=2, of="generate.eagle.builder=chain", before=4)
_by_level("eagle", eagle)

ppd = group("Drafts of prompt tokens that objective=prompt_tokens trains.", of="generate.drafter=ppd")
ppd.tree = text(
    "2x2x1",
    "Nodes and prompt tokens of a round: a tree as of the other drafters, or dynamic:LIMIT:CHANCES, the best within "
    "LIMIT tokens for the chances of each rank, depth by depth: 0.6,0.2/0.4,0.2/0.3,0.1.",
    smoke="2x1",
    before="2x2x1",
)

heads = group("Drafts of the model's own heads of tokens ahead.", of="generate.drafter=heads")
heads.template = text(
    "1x1x1",
    "Its tree, as deep as there are heads: widths by depth, medusa, or sequoia:NODES:LEVELS:CHANCES.",
    smoke="1x1",
    before="1x1x1",
)

recycling = group("Drafts from each token's latest successors.", of="generate.drafter=recycling")
recycling.template = text(
    "4x2x1",
    "Its tree: recycling (80 nodes, as published), medusa, widths by depth, or sequoia:NODES:LEVELS:CHANCES.",
    before="4x2x1",
)
recycling.shared = switch(False, "Rows that are under way together write into one matrix.", before=False)

trie = group("Drafts from a trie of prompts and outputs.", of="generate.drafter=trie")
trie.size = whole(16, "Nodes, the last token included.", least=2, small=6, before=16)
trie.branch = whole(8, "The deepest.", least=1, small=4, before=8)
trie.last = whole(2, "The last so many tokens are looked up, then fewer.", least=1, before=2)
trie.output_weight = number(1e-4, "Of counts in outputs beside those in the prompt.", least=0, most=1, before=1e-4)
trie.shared = switch(True, "One trie for all requests; else each has its own.", before=True)
trie.chain = switch(False, "The likeliest path alone: for mixers with a recurrence.", before=False)

model_tree = group("A tree of drafts of a smaller run.", of="generate.drafter=model_tree")
model_tree.workdir = text("", "The workdir of the smaller run; it has the same tokenizer.", before="")
model_tree.builder = one_of(
    "eagle2",
    ("template", "eagle2", "dyspec"),
    "A tree of known shape, the likeliest paths, or the slots that the walk reaches likeliest.",
    before="eagle2",
)
_by_level("model_tree", model_tree)

typical = group("Typical acceptance.", of="generate.verifier=typical")
typical.epsilon = number(0.3, "A draft stays above this, or above delta exp(-entropy).", least=0, most=1, before=0.3)
typical.delta = number(0.09, "Of the entropy's bound.", least=0, before=0.09)
