"""Claim: a memory of fixed size recalls by the order of what it reads, and reading twice makes up for the order.

    python main.py --mode=claim --config=configs/claims/just_read_twice.py \\
        --workdir=runs/claims/just_read_twice --jobs=2

Arora et al. 2024, "Just read twice: closing the recall gap for recurrent language models" (arXiv:2407.05483): whether
two sets meet takes a recurrent model less memory when the smaller set comes first, and repeating the context lifts
recurrent models by 11.0 +- 1.3 points over six in-context tasks. Here: one element and a set of 8 of 16 elements,
linear attention in two layers of width 32, rows of 24 tokens for every arm (noise fills the room), so equal compute.

Expect: the paper's order where the task is learned at all; a row has one bit to learn from. Seen: every arm is at
chance after these steps, 0.693 nats, and so is softmax attention of width 64 after 2000 steps of 256 rows: a claim for
a larger machine. Cost: nine runs of 8000 steps of 64 rows of 24 tokens; took 22 minutes with --jobs=1 on busy cores.
"""

from configs.claims import small

SETS = "universe=16, small=1, large=8, noise=1"


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(8000, log_every=100, every=1000, rows=2048, save=1000, width=128)
    config.model.update({"width": 32, "num_heads": 2, "mixer": "linear_attention"})
    config.data.update({"source": "task:disjointness", "name": SETS, "length": 24, "batch_size": 64})
    return {
        "statement": "Whether two sets meet, linear attention tells by their order, and from reading twice",
        "source": "Arora et al. 2024, arXiv:2407.05483",
        "published": "see pairs",
        "family": "mixers and memory",
        "check": "contrast",
        "base": config,
        "arms": {
            "small set first": {"data.name": f"{SETS}, order=small_first"},
            "large set first": {"data.name": f"{SETS}, order=large_first"},
            "large set first, twice": {"data.name": f"{SETS}, order=large_first, repeats=2"},
        },
        "pairs": [
            {
                "statement": "Linear attention tells better whether two sets meet when the smaller one comes first",
                "published": "less memory is needed when the smaller set comes first (theory and synthetic runs)",
                "better": "small set first",
                "worse": "large set first",
            },
            {
                "statement": "Linear attention tells better whether two sets meet when it reads them twice",
                "published": "+11.0 +- 1.3 points for 16 recurrent models over 6 in-context tasks",
                "better": "large set first, twice",
                "worse": "large set first",
            },
        ],
        "effect": 0.05,
        "control": {"says": "small set first, share right", "reads": ("exact", "small set first"), "least": 0.9},
        "looks": (3, 6),
        "hours": 1.0,
        "seeds": tuple(range(12)),
    }
