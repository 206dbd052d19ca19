"""Claim: growing a trained TokenFormer beats training the larger model from scratch at equal compute.

    python main.py --mode=claim --config=configs/claims/tokenformer_growth.py \\
        --workdir=runs/claims/tokenformer_growth --jobs=1

TokenFormer (Wang et al. 2024, arXiv:2410.23168, figure 1): grown in four steps by 30B tokens each, 1.4B parameters
reach OpenWebText perplexity 11.8, as a Transformer does with 300B tokens at twice to three times the cost.
Here: three sizes of two layers of width 64 on the standard library's source, 12, 24 and 48 parameter tokens a map
(0.025, 0.049 and 0.098 M parameters beside the embedding): the small one trains for 400 steps of 8 x 128 bytes, grows
and trains for 300 more, and again. Against it, with the FLOPs of all three: `large`, 48 tokens from scratch, and
`transformer`, of the same number of parameters. Every arm has the same search of rates, from scratch for 600 steps on
other held-out rows; what is grown takes the rate of its size. Paired by seed.

The control: the Transformer learns, 2.5 nats a byte or less, as in the claim on tiny TokenFormers.

Expect, as seen: grown, 2.10 nats a byte beside 2.26 of `large` from scratch, ahead with each of five seeds, by 0.06 to
0.28; behind the Transformer's 1.995 with each, by 0.01 to 0.22. Growth itself changes the held-out loss by rounding
only. Seen before with two sizes of width 128, one untuned rate and three seeds: -0.16 nats [-0.33, 0.02] and -0.01
[-0.22, 0.20], no verdict. Cost: eight runs of the search and five of each of five kinds, 400 to 1200 steps of 8 x 128
bytes; some 20 CPU minutes. (The recorded hours hold forty minutes in which the runs were paused.)
"""

from configs.claims import tokenformer_tiny

SIZES = {"small": 12, "middle": 24, "large": 48}  # n; a channel has 4 n


def get_claim():
    """The claim, for the check `growth`; its config and its two large arms are those of the claim on one size."""
    tiny = tokenformer_tiny.get_claim()
    grows = {name: {**tiny["arms"]["tokenformer"], **_tokens(n)} for name, n in SIZES.items()}
    return {
        "statement": "Grown from a smaller model, a TokenFormer is better at equal compute",
        "source": "Wang et al. 2024, arXiv:2410.23168, figure 1",
        "published": "1.4B: perplexity 11.8 at a third of the TPU hours",
        "family": "growth",
        "check": "growth",
        "score": "loss",
        "base": tiny["base"],
        "arms": {**grows, "transformer": tiny["arms"]["transformer"]},
        "chain": tuple(SIZES),
        "steps": (400, 300, 300),
        "rivals": {
            "large": (
                "Grown from a smaller model, a TokenFormer is better than itself trained from scratch at equal compute",
                "not given",
            ),
            "transformer": (
                "Grown from a smaller model, a TokenFormer is better than a Transformer of its size at equal compute",
                "1.4B: equal perplexity, 11.8, at a third of the TPU hours",
            ),
        },
        "tune": {"optimizer.learning_rate": (3e-3, 6e-3)},
        "effect": 0.05,
        "control": {"says": "the Transformer's nats a byte", "reads": ("losses", "transformer"), "most": 2.5},
        "looks": (5,),
        "hours": 1.0,
        "seeds": tuple(range(5)),
    }


def _tokens(n: int) -> dict:
    return {"model.pattention.tokens": n, "model.pattention.channel_tokens": 4 * n}
