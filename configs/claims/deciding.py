"""Claim: who decides the next token, on sources whose laws are known.

    python main.py --mode=claim --config=configs/claims/deciding.py --workdir=runs/claims/deciding

Fu et al. 2025 (R2R, arXiv:2505.21600): few tokens need a large model, and uncertainty tells many of them.
Fei et al. 2024 (Nudging, arXiv:2410.09300): they are those of low top probability. Krause et al. 2020 (GeDi,
arXiv:2009.06367): two class-conditional laws guide a third by Bayes' rule; the released code divides by the length.
Beurer-Kellner et al. 2023 (LMQL, arXiv:2212.06094): constraints as masks of tokens.

Every world is drawn from a seed and every number is a sum over all its texts or states: nothing is trained and nothing
is sampled. Routing: a source of six symbols that looks back at two, a large model that knows it, and a small one that
looks back at one and is the best of its kind; the large one decides 30 % of the places. How much the older symbol
matters depends on the newer one; in `routing_alike` it does not, so that uncertainty has nothing to tell. Guiding: two
chains of three symbols, all texts of four. Masking: a chain of two letters and an end, under a pattern.

Expect: of what an oracle gains beyond chance (0.08 bits a symbol) entropy finds half, and next to nothing (0.007 of
0.12) in worlds where nothing is to be told; masked texts are far from the law given the constraint. The
smallest effect and the number of worlds were set after 20 worlds had been seen. Cost: seconds.
"""


def get_claim():
    """The claim, for the check `worlds`."""

    def row(measure, better, worse, statement, published, control):
        return {
            "measure": measure, "better": better, "worse": worse, "statement": statement, "published": published,
            "control": control,
        }  # fmt: skip

    gap = {"says": "the large model has at least 0.1 bits a symbol fewer", "reads": ("gap",), "least": 0.1}
    apart = {"says": "the mixture is at least 0.02 away from the class", "reads": ("none",), "least": 0.02}
    cut = {"says": "the pattern rules out half of the texts at least", "reads": ("chain",), "least": 0.5}
    return {
        "statement": "What decides a token does what its formula says, and masks are not conditions",
        "source": "Fu et al. 2025, arXiv:2505.21600; Fei et al. 2024, arXiv:2410.09300; Krause et al. 2020, "
        "arXiv:2009.06367; Beurer-Kellner et al. 2023, arXiv:2212.06094",
        "published": "uncertain tokens are the ones that matter; constraints as masks",
        "family": "decoding",
        "check": "worlds",
        "contrasts": [
            row("routing", "entropy", "random", "Places of high entropy gain more from the large model than others",
                "a router on uncertainty finds the tokens that matter (R2R)", gap),
            row("routing", "top", "random", "Places of low top probability gain more from the large model than others",
                "that is where alignment shows (Nudging)", gap),
            row("routing", "oracle", "entropy", "Who knows the gain finds better places than entropy does",
                "trained routers are above entropy (R2R)", gap),
            row("routing_alike", "entropy", "random", "So does entropy where no symbol tells how much the past matters",
                "a control of this house: nothing is to be told", gap),
            row("guiding", "bayes", "released", "Bayes' rule is nearer to the class than the released form",
                "guides a model towards a class (GeDi)", apart),
            row("masking", "weighed", "mask", "Masked texts are not the law given the constraint; weighed ones are",
                "constraints as masks of tokens (LMQL)", cut),
        ],
        "effect": 0.02,
        "control": gap,
        "looks": (50,),
        "hours": 0.1,
        "seeds": tuple(range(100)),
    }  # fmt: skip
