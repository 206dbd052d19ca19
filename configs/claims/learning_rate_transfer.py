"""Claim: in mup the best learning rate of a narrow model is the best one of a wide model, too; in standard it is not.

    python main.py --mode=claim --config=configs/claims/learning_rate_transfer.py \\
        --workdir=runs/claims/learning_rate_transfer --jobs=1

Yang et al. 2022, "Tensor Programs V" (arXiv:2203.03466, figure 1): the optimum of the learning rate stays where it is
from width 128 to 8192 under maximal updates, and falls with the width in the standard parametrization. Here: two layers
of width 16 and, eight times as wide, 128, heads of 16, six rates a factor of 2 apart, 150 steps of 16 x 64 bytes of the
standard library's source. All begin with fan-in initial values, which both parametrizations have.

Base and wide models have the same search of rates, by one seed and on other held-out rows. A wide model is then trained
with the rate that was best for the base, and with the best of all other rates that the search found for itself: where
the first is ahead, the rate has carried over. Effects are in nats a byte. The controls: in standard the rate of the
base loses 0.1 nats, so that a rate which does not carry over is seen; and the base learns, to 2.8 nats.

Pilot, one seed without the search: in standard width 128 was best at 4e-3 (2.325 nats; 2.544 at 3.2e-2), in mup at
3.2e-2 (2.447; 2.482 at 6.4e-2); width 16 hardly told 1.6e-2, 3.2e-2 and 6.4e-2 apart (2.713, 2.710, 2.686).

Expect, as seen: the search takes 3.2e-2 for width 16. In mup that is best at width 128, too, 0.056 nats ahead of what
the search has next (1.28e-1; 6.4e-2, which the pilot had next, ended 0.06 nats above that by its one seed); in standard
it loses 0.31 nats to 4e-3, the lowest rate of the grid, so that it loses this or more. At its own best rate standard
ends lower than mup does, 2.30 against 2.49 nats: what mup saves here is the search, not nats. Cost: 18 runs of the
search and five a seed; took 9 minutes with --jobs=1 beside other work on two cores.
"""

from configs.claims import small

BASE, TIMES = 16, 8
RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 1.28e-1)
EFFECT = 0.05


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(150, log_every=25, rows=640)
    config.data.update({"length": 64, "batch_size": 16, "max_files": 400})
    config.model.init = "fan_in"
    wide = {"model.width": BASE * TIMES, "model.num_heads": TIMES}
    rules = {
        "mup": {**wide, "model.parametrization": "mup", "model.mup.base_width": BASE},
        "standard": {**wide, "model.parametrization": "standard"},
    }
    loses = "nats that the rate of the base loses in standard"
    moved = {"says": loses, "reads": ("ahead", "standard"), "least": 2 * EFFECT}
    learned = {"says": "the base, nats a byte", "reads": ("loss", "base"), "most": 2.8}
    best = f"At the best rate of width {BASE}"
    stays = f"The best rate of width {BASE} is the best of width {BASE * TIMES}, too: "
    return {
        "statement": "In mup the best learning rate of a narrow model is that of a wide one; in standard it is not",
        "source": "Yang et al. 2022, arXiv:2203.03466, figure 1",
        "published": "see pairs",
        "family": "scaling",
        "check": "contrast",
        "score": "loss",
        "base": config,
        "arms": {"base": {"model.width": BASE, "model.num_heads": 1}, **rules},
        "borrow": {lent(rule): (rule, "base") for rule in rules},
        "tune": {"optimizer.learning_rate": RATES},
        "reference": lent("standard"),
        "pairs": [
            {
                "statement": f"{stays}in mup ahead of any other one that a search finds",
                "published": "the optimum stays from width 128 to 8192",
                "better": lent("mup"), "worse": "mup", "control": moved,
            },
            {
                "statement": f"{stays}in standard ahead of any other one that a search finds",
                "published": "no: the optimum falls with the width",
                "better": lent("standard"), "worse": "standard", "control": learned,
            },
            {
                "statement": f"{best}, width {BASE * TIMES} ends lower in mup than in standard",
                "published": "figure 1: the loss falls with every width in mup",
                "better": lent("mup"), "worse": lent("standard"), "control": learned,
            },
        ],
        "effect": EFFECT,
        "control": moved,
        "looks": (3,),
        "hours": 0.5,
        "seeds": (0, 1, 2),
    }  # fmt: skip


def lent(rule: str) -> str:
    """The name of the wide arm of `rule` that takes the rate of the base."""
    return f"{rule}, rate of the base"
