"""Claim: any-subset speculative decoding draws the law of sequential decoding in no more calls than tokens.

    python main.py --mode=claim --config=configs/claims/assd.py --workdir=runs/claims/assd --jobs=2

Guo and Ermon 2025, "Reviving Any-Subset Autoregressive Models with Principled Parallel Sampling and Speculative
Decoding" (arXiv:2504.20456): the joint law is kept exactly, and calls never exceed the tokens from drafts of two on.
Here: every round is walked on tables of 3 symbols and 4 tokens, whose conditionals fit a joint law or none, in three
orders, for drafts of 1 to 4. A draft of 1 costs 2 T - 1 calls. Then a model of two layers, width 64, writes texts, and
its calls are counted: the paper's XLNet of 110M takes 434.1 calls for the 486.0 of sequential decoding (drafts of 5).

Expect: the law to rounding; 0.71 calls a token with drafts of 3, 0.58 with drafts of 4. So few steps leave a model of
4.1 bits per byte, which hardly looks at its context, and drafts that are mostly right by its own lights: a better model
must save less. Cost: seconds for the law; three runs of 200 steps of 8 x 128 bytes.
"""

from configs.claims import small

PROMPTS = ("def ", "class ", "import ", "    return ", "# ", "if __name__ ==", '"""', "for i in range(")


def get_claim():
    """The claim, for the check `assd`."""
    config = small(200, log_every=20, rows=160)
    config.objective = "any_subset"
    config.data.batch_size = 8
    config.optimizer.learning_rate = 4e-3
    return {
        "statement": "Any-subset speculative decoding draws the sequential law in no more calls than tokens",
        "source": "Guo and Ermon 2025, arXiv:2504.20456",
        "published": "equal laws; at most as many calls as tokens",
        "family": "decoding",
        "check": "assd",
        "tables": {"symbols": 3, "length": 4, "count": 3},
        "orders": ((0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0)),
        "drafts": (1, 2, 3, 4),
        "base": config,
        "arms": [{}],
        "trained": {
            "statement": "A trained any-subset model that drafts for itself takes fewer calls than tokens",
            "published": "434.1 calls for 486.0 tokens (XLNet 110M, drafts of 5, WikiText with 95% masked)",
        },
        "tokens": 96,
        "prompts": PROMPTS,
        "seeds": (0, 1, 2),
    }
