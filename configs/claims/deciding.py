"""Claim: a large model is best asked where a small one is unsure, and layers are best saved late in a text.

    python main.py --mode=claim --config=configs/claims/deciding.py --workdir=runs/claims/deciding

Fu et al. 2025 (R2R, arXiv:2505.21600): few tokens decide where a small model leaves a large one's way, and they can be
told. Fei et al. 2024 (Nudging, arXiv:2410.09300): they are those of low top probability.
Del Corro et al. 2023 (SkipDecode, arXiv:2307.02628): the number of layers can fall along a text at 2 to 5 times the
speed, in models that are trained for it; here the model is not.

A Transformer of four layers and one of a tenth of its FLOPs learn the bytes of code. On held-out rows each token's law
is that of the one who decides it: for 30 % of the tokens the large model, chosen by the small one's entropy, by its
largest probability, at random, or by what is gained (which nobody can know). SkipDecode falls from four layers to two
along each row, against as many layer calls spread evenly. The control is that the large model is better at all.

Expect: not run yet. Cost: 6 runs of 300 steps, and 24 readings of held-out rows.
"""

from configs.claims import small


def get_claim():
    """The claim, for the check `deciding`."""
    config = small(300, log_every=50, rows=32, width=96)
    config.model.num_layers = 4
    config.data.batch_size = 8

    def row(better, worse, statement, published):
        return {"statement": statement, "published": published, "better": better, "worse": worse}

    return {
        "statement": "A large model is best asked where a small one is unsure, layers are best saved late in a text",
        "source": "Fu et al. 2025, arXiv:2505.21600; Fei et al. 2024, arXiv:2410.09300; Del Corro et al. 2023, "
        "arXiv:2307.02628",
        "published": "few tokens need the large model; 2 to 5 times the speed",
        "family": "decoding",
        "check": "deciding",
        "base": config,
        "small": {"model.num_layers": 1, "model.width": 64},
        "share": 0.3,
        "least": 2,
        "contrasts": [
            row("entropy", "random", "Tokens of high entropy gain more from the large model than others",
                "the router's tokens, or by entropy, are the ones that matter (R2R)"),
            row("largest", "random", "Tokens of low top probability gain more from the large model than others",
                "these are where alignment shows (Nudging)"),
            row("best", "entropy", "An oracle gains more than entropy does at equal share",
                "trained routers are above entropy (R2R)"),
            row("falling", "level", "Layers that fall along a text lose fewer bits than as many calls spread evenly",
                "SkipDecode keeps the quality at 2 to 5 times the speed, trained for it"),
        ],
        "effect": 0.01,
        "control": {
            "says": "the large model has at least 0.05 bits a token fewer than the small one",
            "reads": ("gap",), "least": 0.05,
        },
        "looks": (2,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }  # fmt: skip
