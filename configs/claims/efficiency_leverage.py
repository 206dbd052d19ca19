"""Claim: how much compute experts save follows from the share that is active and from how finely they are cut.

    python main.py --mode=claim --config=configs/claims/efficiency_leverage.py --workdir=runs/claims/efficiency_leverage

Tian et al. 2025 (Ling, arXiv:2507.17702): the leverage EL, the compute of a dense model over that of a mixture with the
same loss, is A^(a + d log C + gamma (log G)^2 + beta log G), A the share of the experts that is active and G how finely
they are cut; 17.5 B parameters of which 0.85 B are active equal a dense model of 6.1 B, over 7 times their compute.

Here: bytes of the standard library's source, two layers of width 64, rates that stay constant, so that an evaluation
along a run is one of a shorter run. A token has 192 hidden numbers in every arm, as the dense layer has: 2, 4 or 8
experts of width 96, 48 or 24, out of 4 to 32. The dense run is twice as long; where it first has a mixture's loss
is read between its evaluations. The law is fitted by seed, and tried on two shapes that a fit has not seen.

The control: eight experts, two a token, save compute at all.

Expect, as seen: a leverage of 1.17 of two of eight experts and of 1.50 of 4 of 16, in the direction of the paper, and
three seeds that lie too far apart for a verdict: 18 to 180 of them would decide. The fitted law is as far off on the
shapes that it has not seen as the mean of the others, 11%. After 300 steps, with a dense run of 750, two of eight had a
leverage of 1.04, and the control failed. Cost: 18 runs of 1200 steps of 16 x 64 bytes and 3 of 2400; 20 minutes beside
other work on two cores.
"""

from configs.claims import small

STEPS, LONGER, EVERY = 1200, 2400, 100
SHAPES = {  # E, K, h
    "2 of 4": (4, 2, 96),
    "2 of 8": (8, 2, 96),
    "2 of 16": (16, 2, 96),
    "4 of 16": (16, 4, 48),
    "4 of 32": (32, 4, 48),
    "8 of 32": (32, 8, 24),
}


def get_claim():
    """The claim, for the check `leverage`."""
    config = small(STEPS, log_every=100, every=EVERY, rows=160)
    config.data.length = 64
    config.model.init = "fan_in"
    config.optimizer.update({"learning_rate": 1e-2, "schedule": "constant"})
    arms = {"dense": {"model.channel": "swiglu", "model.swiglu.hidden": 192, "train.steps": LONGER}}
    for name, (experts, k, hidden) in SHAPES.items():
        arms[name] = {
            "model.channel": "moe", "model.moe.experts": experts, "model.moe.k": k, "model.moe.hidden": hidden
        }  # fmt: skip
    return {
        "source": "Tian et al. 2025, arXiv:2507.17702",
        "family": "experts",
        "check": "leverage",
        "statement": "The compute that experts save follows from activation ratio and granularity",
        "published": "EL over 7 at A 3.4%, G 12 and 1e22 FLOPs",
        "base": config,
        "arms": arms,
        "shapes": SHAPES,
        "unseen": ("4 of 16", "4 of 32"),
        "after": 600,
        "ends": {"activation": ("2 of 16", "2 of 4"), "granularity": ("8 of 32", "2 of 8")},
        "pairs": [
            {
                "statement": "Fewer active experts of more save more compute: two of 16 more than two of four",
                "published": "EL is a power of the activation ratio", "measure": "activation", "effect": 0.1,
            },
            {
                "statement": "Finer experts save more compute: eight of 32 more than two of eight",
                "published": "the best G is 8 to 12", "measure": "granularity", "effect": 0.1,
            },
            {
                "statement": "The law tells the leverage of a shape it has not seen better than the mean of the others",
                "published": "the law of small runs tells a 17.5 B model: 7", "measure": "unseen", "effect": 0.05,
            },
        ],
        "effect": 0.1,
        "control": {
            "says": "log of the leverage of two of eight experts", "reads": ("log_leverage", "2 of 8"), "least": 0.1,
        },
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }  # fmt: skip
