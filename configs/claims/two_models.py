"""Claim: of two trained models the small one can decide most tokens, if something tells which.

    python main.py --mode=claim --config=configs/claims/two_models.py --workdir=runs/claims/two_models

Fu et al. 2025 (R2R, arXiv:2505.21600): few tokens differ in a way that matters, and a small classifier over the small
model's state finds them. Fei et al. 2024 (Nudging, arXiv:2410.09300): they are those of low top probability.

A small and a large model learn the default corpus, which is code, byte by byte. A classifier of the small one then
learns, in fewer steps, where the two would write different bytes (`objective=router`, the model held). All
read the same held-out rows, and the large model has the law of 30 % of the bytes. Only what stands before a byte
decides, so that the bits are those of one law.

The control: the large model has at least 0.1 bits a byte fewer.

Expect, as seen: the router and nudges are ahead of as many bytes by lot, entropy is not (equal within 0.02 bits: bytes
of high entropy are often hard for both), and the router leaves fewer bytes that the large model would write otherwise
than entropy does. Every byte that the two would write otherwise is a label here; the authors ask a judge whether the
text says something else, so that their share of critical tokens is smaller. Three seeds left the row of entropy open;
three more were then added, and all rows are judged at the level of two looks. Cost: 18 runs of 150 to 500 steps, 8
minutes beside other work.
"""

from configs.claims import small
from configs.speculation import HEADS_ALONE


def get_claim():
    """The claim, for the check `pairs`."""
    config = small(500, log_every=100, rows=64, width=96)
    config.data.batch_size = 8

    def row(measure, better, worse, statement, published, **more):
        return {
            "measure": measure, "better": better, "worse": worse, "statement": statement, "published": published, **more
        }  # fmt: skip

    return {
        "statement": "A small model decides most bytes if something tells where the large one is needed",
        "source": "Fu et al. 2025, arXiv:2505.21600; Fei et al. 2024, arXiv:2410.09300",
        "published": "a trained router is ahead of uncertainty, and both of any choice of as many tokens",
        "family": "decoding",
        "check": "pairs",
        "base": config,
        "arms": {
            "small": {"model.width": 32, "model.num_layers": 1, "train.steps": 400}, "large": {"model.num_layers": 3},
        },
        "router": {
            "objective": "router", "optimizer.freeze": HEADS_ALONE, "train.steps": 150, "optimizer.learning_rate": 3e-3,
        },
        "share": 0.3,
        "contrasts": [
            row("bits", "entropy", "random", "Bytes of high entropy gain more from the large model than others",
                "a router on uncertainty finds the tokens that matter (R2R)"),
            row("bits", "nudging", "random as nudging", "So do words from where the small model is unsure",
                "that is where alignment shows (Nudging)"),
            row("bits", "router", "random", "So do bytes that a trained classifier chooses",
                "few tokens matter, and a classifier finds them (R2R)"),
            row("agreement", "router", "entropy", "The classifier leaves fewer bytes that the large model would write "
                "otherwise than entropy does", "trained routers are above entropy (R2R)", effect=0.01),
        ],
        "effect": 0.02,
        "control": {"says": "the large model has fewer bits a byte by", "reads": ("gap",), "least": 0.1},
        "looks": (3,),
        "hours": 0.4,
        "seeds": (0, 1, 2, 3, 4, 5),
    }  # fmt: skip
