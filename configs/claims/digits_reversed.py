"""Claim: a transformer learns addition better when the sum is written ones first.

    python main.py --mode=claim --config=configs/claims/digits_reversed.py \\
        --workdir=runs/claims/digits_reversed --jobs=2

Lee et al. 2023, "Teaching Arithmetic to Small Transformers" (arXiv:2307.03381, section 3): writing the sum in reverse
makes each digit a function of one column and a carry, and improves accuracy and sample complexity.
Here: two numbers of one to three digits, no zeros in front, one sum a row, trained on the digits of the sum and its end
only; two layers, width 64. The two arms differ in the direction of the sum and in nothing else.

Held-out sums are fresh draws; many of them come up in training, alike for both arms. Both arms have the same search of
rates, judged on other held-out rows.

The control: reversed sums are learned, 95% of them exactly.

Expect: the paper's direction. The starting weights are by fan-in: with those of the preset reversed sums were 69 to 94%
exact and three seeds did not decide. Cost: four runs of the search and two a seed, each 2000 steps of 64 rows of 12
tokens, about 0.8 CPU minutes; six runs of the verdict took 9 minutes on two cores that did much else.
"""

from configs.claims import small


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(2000, log_every=50, every=200, rows=1024, save=500)
    config.model.init = "fan_in"
    config.data.update({"source": "task:arithmetic", "length": 12, "batch_size": 64})
    return {
        "statement": "Addition is learned better when the sum is written ones first than as we write it",
        "source": "Lee et al. 2023, arXiv:2307.03381, section 3",
        "published": "reversed sums improve accuracy and sample complexity (NanoGPT, 3 digits)",
        "family": "order and format of data",
        "check": "contrast",
        "base": config,
        "arms": {
            "reversed": {"data.name": "digits=3, reverse=true"},
            "plain": {"data.name": "digits=3"},
        },
        "better": "reversed",
        "worse": "plain",
        "tune": {"optimizer.learning_rate": (3e-3, 1e-2)},
        "effect": 0.05,
        "control": {"says": "reversed sums, share exact", "reads": ("exact", "reversed"), "least": 0.95},
        "looks": (3,),
        "hours": 1.0,
        "seeds": tuple(range(6)),
    }
