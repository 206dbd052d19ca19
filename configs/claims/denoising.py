"""Claim: a small flow model drafts the denoising steps of a larger one, whose law the images keep.

    python main.py --mode=claim --config=configs/claims/denoising.py --workdir=runs/claims/denoising

Wang et al. 2024 (arXiv:2411.11925, CSpD): speculative sampling with densities in place of tables, 2.33 times as fast.
Their released code accepts by flattened exponents, so that what it draws is the draft's.

Two flow models learn scikit-learn's digits; every denoising step of the larger is a Gaussian, and so is what the
smaller one makes of it, of the same width: a draft stays with chance 2 Phi(-d / 2), means d widths apart. Four drafts a
round, one call of the larger model on five states. Distances are Kolmogorov-Smirnov's, of 8,000 images each, over 64
random directions.

Expect, as seen: 2.67 steps a call with 69 of 100 drafts staying, as the closed form says; drafted images 0.014 from the
larger model's, as two sets of these are, and those of the released rule 0.037, as the smaller model's own are.
Cost: half a CPU minute a seed.
"""


def get_claim():
    """The claim, for the check `denoising`."""
    row = lambda measure, statement, published, **more: {  # noqa: E731
        "statement": statement, "published": published, "measure": measure, **more
    }  # fmt: skip
    return {
        "statement": "Denoising steps can be drafted by a smaller model without a change of the law",
        "source": "Wang et al. 2024, arXiv:2411.11925",
        "published": "2.33 times as fast",
        "family": "decoding",
        "check": "denoising",
        "target": {"width": 192, "layers": 3, "steps": 2000},
        "draft": {"width": 48, "layers": 2, "steps": 2000},
        "denoise": 64,
        "last": 0.95,
        "drafts": 4,
        "images": 8000,
        "contrasts": [
            row("steps", "Drafted denoising goes more than one step a call of the larger model", "2.33 times as fast"),
            row("chance", "Drafts stay as often as their means' distances say", "2 Phi(-d / 2)", effect=0.01),
            row("law", "Drafted images are as far from the larger model's as two sets of these are",
                "the output distribution is unchanged", effect=0.005),
            row("released", "The released rule, which accepts nearly all, gives other images than the larger model",
                "called lossless", effect=0.005),
        ],
        "effect": 0.5,
        "control": {
            "says": "distance of the smaller model's own images", "reads": ("distance_draft",), "least": 0.025,
        },
        "looks": (3,),
        "hours": 0.5,
        "seeds": (1, 2, 3, 4, 5, 6),
    }  # fmt: skip
