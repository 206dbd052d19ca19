"""Claim: sums are learned better where digits are grouped from the right end of each number than from the left.

    python main.py --mode=claim --config=configs/claims/digits.py --workdir=runs/claims/digits --jobs=1

Singh and Strouse 2024 (arXiv:2402.14903): GPT-3.5 and GPT-4, whose tokens are up to three digits from the left, add far
better where commas make them groups from the right, most of all where the sum is longer than its numbers. Groups from
the right end at powers of a hundred in every number (claim `laws`); groups from the left stand for the same powers only
where lengths agree modulo the group's size, which `exact_alike` and `exact_apart` tell apart.

Here: numbers of one to three digits, a token for every string of one or two (the paper's: three), the sum as we write
it, two layers of width 64 that learn it from nothing. All arms read as many sums. The rate is one for all: of 1e-2 and
2e-2, tried for every arm with 900 steps by a seed of its own, 1e-2 ended lower for each; groups were not learned by
then (0.54 bits a symbol from the right, 0.60 from the left; 0.03 by single digits). With groups of three, numbers of
up to four digits, 2e-2 and 1,500 steps 30% of the sums from the right were exact: two are what is learned in a minute.

The control: sums of groups from the right are learned, nine in ten of them exactly.

Expect, as seen: 99.0% exact from the right (98.5 to 99.4), 84.0% from the left (73, 90, 89), 96.2% by single digits.
What the left side lacks is where lengths differ modulo two: 77.2% beside 99.2%; where they agree 95.5% beside 98.7%.
All three seeds say so, and differ so much in by how much that none of the rows is decided. Cost: nine runs of 1,500
steps of 128 sums, 7.4 CPU minutes, and six of 900 for the rates.
"""

from configs.claims import small

DIGITS, GROUP = 3, 2


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(1500, log_every=100, rows=1024)
    config.model.init = "fan_in"
    config.data.update({"source": "task:arithmetic", "length": 8, "batch_size": 128})
    config.optimizer.update({"name": "muon", "learning_rate": 1e-2})
    name = f"digits={DIGITS}, group={GROUP}"
    return {
        "statement": "Sums are learned better in groups of digits from the right than from the left",
        "source": "Singh and Strouse 2024, arXiv:2402.14903",
        "published": "right-to-left groups add far better (GPT-3.5, GPT-4, groups of three)",
        "family": "tokens",
        "check": "contrast",
        "base": config,
        "arms": {
            "right": {"data.name": name},
            "left": {"data.name": f"{name}, from_left=true"},
            "single": {"data.name": f"digits={DIGITS}", "data.length": 3 * DIGITS + 3},
        },
        "pairs": [
            {
                "statement": "Sums are learned better in groups of two digits from the right than from the left",
                "published": "far better, above all where lengths do not fit", "better": "right", "worse": "left",
            },
            {
                "statement": "So they are where the lengths of the numbers and the sum differ modulo two",
                "published": "most of the difference", "better": "right", "worse": "left", "score": "exact_apart",
            },
            {
                "statement": "And where these lengths agree", "published": "hardly any difference",
                "better": "right", "worse": "left", "score": "exact_alike",
            },
            {
                "statement": "Groups from the right are learned better than single digits",
                "published": "not compared", "better": "right", "worse": "single",
            },
            {
                "statement": "Groups from the left are learned better than single digits",
                "published": "not compared", "better": "left", "worse": "single",
            },
        ],
        "effect": 0.05,
        "control": {"says": "sums in groups from the right, share exact", "reads": ("exact", "right"), "least": 0.9},
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }  # fmt: skip
