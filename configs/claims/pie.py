"""Claim: after an insertion the old cache, its keys turned to their new places, is nearly as good as a new one (PIE).

    python main.py --mode=claim --config=configs/claims/pie.py --workdir=runs/claims/pie

He et al. 2024, arXiv:2407.03157: over 85% of the compute is saved at the quality of a full recompute.

Transformers of two and of four layers learn the bytes of code in rows of 128 tokens. Of 96 tokens of a held-out row, 8
in the middle are inserted into the cache of the other 88; the 32 that follow are scored: against reading all anew,
against keys that stay as they stood, and against never reading the insertion.

Expect, as seen: less than 0.001 bits per byte are lost, and 0.06 where kept keys are not turned; to models so small the
insertion itself is worth nothing 44 tokens later.
Cost: 6 runs of 400 steps.
"""

from configs.claims import small


def get_claim():
    """The claim, for the check `editing`."""
    config = small(400, log_every=100, rows=256, width=64)
    row = lambda arm, better, worse, statement, published: {  # noqa: E731
        "statement": statement, "published": published, "better": (arm, better), "worse": (arm, worse)
    }  # fmt: skip
    return {
        "source": "He et al. 2024, arXiv:2407.03157",
        "family": "decoding",
        "check": "editing",
        "statement": "Edits of a prompt need no full recompute",
        "published": "over 85% of the compute saved at nearly the same quality",
        "base": config,
        "arms": {"two layers": {}, "four layers": {"model.num_layers": 4}},
        "prompt": 96,
        "inserted": 8,
        "cheaper": {
            "statement": "Reading the inserted tokens alone saves more than 85% of the compute",
            "published": "over 85%",
        },
        "contrasts": [
            row("two layers", "pie", "full", "Two layers: as good as reading all anew", "nearly the same quality"),
            row("four layers", "pie", "full", "Four layers: as good as reading all anew", "nearly the same quality"),
            row(
                "four layers", "pie", "unturned", "Turning the kept keys to their new places is needed",
                "positions that conflict cost quality",
            ),
            row("four layers", "pie", "ignored", "Reading what was inserted is needed", "implied"),
        ],
        "effect": 0.02,
        "control": {
            "says": "bits per byte with everything read anew",
            "reads": ("bits_per_byte", "four layers", "full"),
            "most": 4.0,
        },
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }  # fmt: skip
