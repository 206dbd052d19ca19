"""Claim: at the same vocabulary BPE that goes on across blanks packs more bytes into a token, and ends lower.

    python main.py --mode=claim --config=configs/claims/supertokens.py --workdir=runs/claims/supertokens --jobs=1

Liu et al. 2025 (SuperBPE, arXiv:2503.13423): with the first merges within words and the rest across them 200,000 ids
encode text in up to 33% fewer tokens than BPE, and models of 8B are better by 4 points at equal training compute, and
as good in bits per byte. Here: 4,096 ids learned from the source of the standard library, four fifths of the merges
within words; two layers of width 64. A model of SuperBPE costs as many FLOPs as that of BPE, and reads more text; the
arm "as many bytes" reads as much text as BPE does, in rows of fewer tokens, for fewer FLOPs. Of 1,024 ids there was no
gain to test: 2.57 bytes a token beside 2.58 of BPE, 3.09 beside 3.01 of 2,048.

The control: BPE ends at least a tenth of a bit per byte below bytes at equal FLOPs.

Expect: as published. Seen: a token has 7 % more bytes, and BPE ends lower by a tenth of a bit at equal FLOPs and at as
many bytes: here a model of few steps learns less from rarer, longer tokens. Cost: 20 runs of some 200 steps of 8 rows,
9 CPU minutes.
"""

from configs.claims import small

V = 4096


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(200, log_every=50, rows=256)
    config.model.init = "fan_in"
    config.data.update({"tokenizer": "bpe", "vocab_size": V, "length": 64, "batch_size": 8})
    config.optimizer.name = "muon"
    superbpe = {"data.tokenizer": "superbpe"}
    return {
        "statement": "SuperBPE packs more bytes into a token than BPE of as many ids, and ends lower",
        "source": "Liu et al. 2025, arXiv:2503.13423",
        "published": "up to 33% fewer tokens, better on tasks and as good in bits per byte at equal compute",
        "family": "tokens",
        "check": "contrast",
        "score": "bits_per_byte",
        "base": config,
        "arms": {
            "bpe": {},
            "superbpe": superbpe,
            "as many bytes": superbpe | {"data.length": 60, "train.steps": 200},
            "bytes": {"data.tokenizer": "bytes", "data.vocab_size": 0, "data.length": 216},
        },
        "reference": "bytes",
        "equal_to": "bpe",
        "pairs": [
            {
                "statement": "A token of SuperBPE has more bytes than one of BPE", "published": "up to 49% more",
                "better": "superbpe", "worse": "bpe", "score": "bytes_per_token", "effect": 0.05,
            },
            {
                "statement": "At equal FLOPs SuperBPE ends lower than BPE", "published": "about equal in bits per byte",
                "better": "superbpe", "worse": "bpe",
            },
            {
                "statement": "With as many bytes read SuperBPE ends lower than BPE", "published": "not given",
                "better": "as many bytes", "worse": "bpe",
            },
        ],
        "tune": {"optimizer.learning_rate": (1e-2, 2e-2)},
        "effect": 0.05,
        "control": {"says": "bits per byte of BPE below bytes", "reads": ("ahead", "bpe"), "least": 0.1},
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }  # fmt: skip
