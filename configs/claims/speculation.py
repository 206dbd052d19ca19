"""Claim: drafts from trees, tables and tries save calls of a model that writes code.

    python main.py --mode=claim --config=configs/claims/speculation.py --workdir=runs/claims/speculation

Sun et al. 2023 (SpecTr, arXiv:2310.15141): several drafts a node are verified together, 2.13 times faster than plain
decoding, 1.37 times than with one. Xiong et al. 2024 (DySpec, arXiv:2410.11744): trees that grow where acceptance is
likely beat fixed ones of as many nodes. Luo et al. 2024 (Token Recycling, arXiv:2408.08696): about 2 times, without a
draft model. Zhao et al. 2023 (Lookahead, arXiv:2312.12728): 2.06 to 3.92 times from a trie of prompts and outputs.
Zhang et al. 2023 (arXiv:2309.08168): a model's own first layers draft for it.

A model of four layers and one of a tenth of its FLOPs learn the default corpus, which is code; texts of 48 tokens
follow held-out prompts. Counted are tokens for each call of the model, which is what a drafter can change; times depend
on the machine and on what drafting costs (`--mode=evaluate`). Sampled settings draw at temperature 1.

Expect, as seen: 3.29 tokens a call from the trie, 2.29 from recycling, 1.01 from random drafts, for greedy texts of
models of 3.5 bits per byte, which repeat themselves much; among sampled trees nothing is decided with three seeds (kseq
3.07, token 2.63).
"""

from configs.claims import small

SAMPLED = {"temperature": 1.0, "max_tokens": 48}
GREEDY = {"temperature": 0.0, "max_tokens": 48}
TREE = {"drafter": "model_tree"}


def judged(arm, **bound):
    """The method of a contrast whose control is its worse arm, `arm` in words: drafts that work, or that cannot."""
    return {
        "effect": 0.2, "looks": (3,), "hours": 1.0, "control": {"says": arm, "reads": ("worse",), **bound},
    }  # fmt: skip


RANDOM = {
    "effect": 0.2, "looks": (3,), "hours": 1.0,
    "control": {"says": "tokens a call of random drafts", "reads": ("tokens_a_call", "random"), "most": 1.1},
}  # fmt: skip


def get_claim():
    """The claim, for the check `drafts`."""
    config = small(300, log_every=50, rows=16, width=96)
    config.model.num_layers = 4
    config.data.batch_size = 8
    return {
        "statement": "Drafts save calls of the model",
        "source": "Sun et al. 2023, arXiv:2310.15141; Xiong et al. 2024, arXiv:2410.11744; Luo et al. 2024, "
        "arXiv:2408.08696; Zhao et al. 2023, arXiv:2312.12728",
        "published": "1.37 times over one draft a node; 2 times; 2.06 to 3.92 times",
        "family": "decoding",
        "check": "drafts",
        "base": config,
        "draft": {"model.num_layers": 1, "model.width": 64},
        "settings": {
            "token": {**SAMPLED, "drafter": "model_draft", "verifier": "token", "model_draft": {"length": 3}},
            "kseq": {
                **SAMPLED, **TREE, "verifier": "kseq",
                "model_tree": {"builder": "template", "template": "4x1x1", "independent_draws": True},
            },
            "recursive": {
                **SAMPLED, **TREE, "verifier": "recursive", "model_tree": {"builder": "template", "template": "4x1x1"},
            },
            "fixed": {
                **SAMPLED, **TREE, "verifier": "recursive", "model_tree": {"builder": "template", "template": "2x2x1"},
            },
            "dyspec": {
                **SAMPLED, **TREE, "verifier": "recursive",
                "model_tree": {"builder": "dyspec", "size": 10, "levels": 5, "width": 3, "beam": 4},
            },
            "recycling": {**GREEDY, "drafter": "recycling"},
            "trie": {**GREEDY, "drafter": "trie"},
            "exit": {**GREEDY, "drafter": "exit"},
            "random": {**GREEDY, "drafter": "random"},
        },
        "contrasts": [
            {
                "statement": "k-SEQ over four drafts a node gives more tokens a call than one draft by the token rule",
                "published": "1.37 times as fast (PaLM-2)", "better": "kseq", "worse": "token",
                **judged("tokens a call of one draft a node", least=1.5),
            },
            {
                "statement": "Distinct children and recursive rejection give more tokens a call than k-SEQ",
                "published": "drawn without replacement, more is accepted (Sequoia)",
                "better": "recursive", "worse": "kseq", **judged("tokens a call of k-SEQ", least=1.5),
            },
            {
                "statement": "DySpec's trees give more tokens a call than fixed trees of as many nodes",
                "published": "more accepted tokens than Sequoia and SpecInfer at equal sizes",
                "better": "dyspec", "worse": "fixed", **judged("tokens a call of fixed trees", least=1.5),
            },
            {
                "statement": "Token Recycling gives more than one token a call on code",
                "published": "about 2 times as fast", "better": "recycling", "worse": "", **RANDOM,
            },
            {
                "statement": "A trie of prompt and outputs gives more than one token a call on code",
                "published": "2.06 to 3.92 times as fast", "better": "trie", "worse": "", **RANDOM,
            },
            {
                "statement": "A model's first two of four layers draft more than one token a call",
                "published": "up to 1.99 times as fast", "better": "exit", "worse": "", **RANDOM,
            },
            {
                "statement": "Token Recycling gives more tokens a call than random drafts",
                "published": "a control of this house", "better": "recycling", "worse": "random",
                **judged("tokens a call of random drafts", most=1.1),
            },
        ],
        "seeds": (0, 1, 2),
    }  # fmt: skip
