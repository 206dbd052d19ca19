"""Claim: a model that changes its tokenizer keeps what it knows, the better the more of its embeddings are told.

    python main.py --mode=claim --config=configs/claims/transplants.py --workdir=runs/claims/transplants --jobs=1

Sharma et al. 2025 (TokenAdapt, arXiv:2505.09738): perplexity at once is the lowest for their hybrid of a token's own
old pieces and near old tokens, below ReTok's mean of the pieces (Gu et al. 2024, arXiv:2410.04335), far below new
rows at random. Minixhofer et al. 2024 (ZeTT, arXiv:2405.07883): rows that a hypernetwork predicts, which learned on
the frozen model, are far ahead of heuristics at once. A Transformer of two layers of width 64 learns code for 400
steps with BPE of 512 ids, and goes over to unigram of 1,024 ids, whose rows (embedding and head are one) come from
the rule of an arm; it is read at once, and after 40 steps. The arm "scratch" begins those 40 steps as a new model.

Expect, as seen: at once 3.54 bits a byte by the hypernetwork (100 steps that reproduce old rows, 100 with the model's
loss: more computing than the 40 steps that follow, and nothing of it in the others' account), 3.80 by TokenAdapt,
3.95 by means of pieces, 5.85 with rows at random, where the model before had 2.60; after 40 steps 2.84
(hypernetwork), 2.85 (means), 3.37 (random), 3.55 (from scratch). Cost: 39 runs at most, of 40 or 400 steps, and as
many readings; 13 minutes beside other work on two cores for the three seeds of the first look.
"""

from configs.claims import small

RULES = {"random": "random", "mean": "mean", "copy": "copy_mean", "adapt": "tokenadapt"}


def get_claim():
    """The claim, for the check `transplants`."""
    config = small(400, log_every=50, rows=256)
    config.data.update({"tokenizer": "bpe", "vocab_size": 512, "batch_size": 8})
    config.optimizer.learning_rate = 4e-3

    def row(better, worse, statement, published):
        return {"statement": statement, "published": published, "better": better, "worse": worse}

    return {
        "source": (
            "Sharma et al. 2025, arXiv:2505.09738; Gu et al. 2024, arXiv:2410.04335; "
            "Minixhofer et al. 2024, arXiv:2405.07883"
        ),
        "family": "tokens",
        "check": "transplants",
        "statement": "A model that changes its tokenizer keeps what it knows",
        "published": "perplexity at once is the lowest for TokenAdapt's hybrid",
        "base": config,
        "change": {"data.tokenizer": "unigram", "data.vocab_size": 1024, "train.steps": 40},
        "arms": {
            **{name: {"init.transplant_rule": rule} for name, rule in RULES.items()},
            "hyper": {"init.transplant_rule": "zett", "init.zett.steps": 100, "init.zett.identity_steps": 100},
            "scratch": {"init.transplant": ""},
        },
        "contrasts": [
            row(
                "copy at once", "random at once",
                "At once, copied rows and means of old pieces lose fewer bits than rows at random",
                "far lower perplexity",
            ),
            row(
                "adapt at once", "copy at once",
                "At once, TokenAdapt's hybrid loses fewer bits than the mean of old pieces",
                "the lowest perplexity of all",
            ),
            row(
                "hyper at once", "adapt at once",
                "At once, a hypernetwork's rows lose fewer bits than TokenAdapt's hybrid",
                "zero-shot transfer with little loss, far ahead of heuristics (ZeTT)",
            ),
            row(
                "hyper", "copy", "After 40 steps a hypernetwork's rows are ahead of the mean of old pieces",
                "less training to close the gap (ZeTT)",
            ),
            row(
                "copy", "scratch",
                "After 40 steps a model that was moved loses fewer bits than one from scratch",
                "a fraction of the training",
            ),
            row("copy", "random", "After 40 steps the rule still matters", "not given"),
            row("copy", "before", "After 40 steps nothing is lost to the model before", "nearly the old performance"),
        ],
        "effect": 0.1,
        "control": {"says": "bits per byte before", "reads": ("bits_per_byte", "before"), "most": 3.7},
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2, 3, 4, 5),
    }  # fmt: skip
