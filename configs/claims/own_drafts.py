"""Claim: a model drafts for itself with layers or with prompt tokens that learned to.

    python main.py --mode=claim --config=configs/claims/own_drafts.py --workdir=runs/claims/own_drafts

Kavehzadeh et al. 2024 (S2D, arXiv:2407.01955): the first layers draft better if they learn as a model of their own,
in the steps in which the whole model learns. Chen et al. 2024 (PPD, arXiv:2405.18628): three trained vectors behind a
token guess the tokens ahead, in the pass that verifies: 2.49 times as fast.

A model of four layers learns the default corpus, which is code. From each model two go on, one whose first two layers
learn as well (`sorted`) and one that learns as before (`longer`); and three prompt tokens learn beside it, held
(`prompts`; those of `unlearned` are as they were drawn). Greedy texts of 48 tokens follow held-out prompts. Counted are
tokens for each call of the whole model: a call of PPD reads 28 tokens, and the first layers' own calls are not counted.

Expect, as seen: first layers that learned as a model of their own give 3.97 tokens a call, others 2.31, but three seeds
lie far apart; the whole model loses 0.02 bits a byte by it. Prompt tokens give 1.69 a call, drafts from the text itself
2.20: 300 steps teach little. Cost: 15 runs of 1 to 300 steps; 12 minutes beside other work on two cores.
"""

from configs.claims import small
from configs.speculation import HEADS_ALONE

GREEDY = {"temperature": 0.0, "max_tokens": 48}
EXIT = {**GREEDY, "drafter": "exit"}
PPD = {**GREEDY, "drafter": "ppd"}
FIXED, DYNAMIC = "2x1x1", "dynamic:27:0.7,0.15/0.5,0.15/0.4,0.1"  # 27 tokens beside the root, at most
PROMPTS = {"objective": "prompt_tokens", "optimizer.freeze": HEADS_ALONE, "optimizer.learning_rate": 1e-2}


def get_claim():
    """The claim, for the check `drafts`."""
    config = small(300, log_every=50, rows=16, width=96)
    config.model.num_layers = 4
    config.data.batch_size = 8
    row = lambda better, worse, statement, published, **more: {  # noqa: E731
        "statement": statement, "published": published, "better": better, "worse": worse, **more
    }  # fmt: skip
    return {
        "statement": "Layers and prompt tokens that learned to draft save calls of their own model",
        "source": "Kavehzadeh et al. 2024, arXiv:2407.01955; Chen et al. 2024, arXiv:2405.18628",
        "published": "ahead of layers that did not; 2.49 times as fast",
        "family": "decoding",
        "check": "drafts",
        "base": config,
        "taught": {
            "sorted": {"objective": "sorted", "sorted.exits": "2", "train.steps": 150},
            "longer": {"train.steps": 150},
            "prompts": PROMPTS,
            "unlearned": {**PROMPTS, "train.steps": 1},
        },
        "settings": {
            "lookup": {**GREEDY, "drafter": "lookup"},
            "exit, sorted": {**EXIT, "of": "sorted"},
            "exit, longer": {**EXIT, "of": "longer"},
            "ppd": {**PPD, "ppd": {"tree": DYNAMIC}, "of": "prompts"},
            "ppd, fixed": {**PPD, "ppd": {"tree": FIXED}, "of": "prompts"},
            "ppd, unlearned": {**PPD, "ppd": {"tree": DYNAMIC}, "of": "unlearned"},
        },
        "contrasts": [
            row("exit, sorted", "exit, longer", "First layers that learned as a model of their own draft more a call",
                "S2D ahead of layers that did not, for three targets"),
            row("sorted", "longer", "A model whose first layers learn as well is as good as one that learns alone",
                "sorted fine-tuning keeps the whole model's quality", bits=True, effect=0.05),
            row("ppd", "", "Three trained prompt tokens give more than one token a call", "2.49 times as fast"),
            row("ppd", "ppd, unlearned", "Prompt tokens that learned give more a call than those as they were drawn",
                "a control of this house"),
            row("ppd", "ppd, fixed", "Trees by state give more a call than a fixed tree of as many tokens",
                "dynamic sparse trees ahead of static ones"),
        ],
        "effect": 0.2,
        "control": {
            "says": "tokens a call of drafts from the text itself", "reads": ("tokens_a_call", "lookup"), "least": 1.3,
        },
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }  # fmt: skip
