"""Claim: growing a trained TokenFormer beats training the larger model from scratch at equal compute.

    python main.py --mode=claim --config=configs/claims/tokenformer_growth.py \\
        --workdir=runs/claims/tokenformer_growth --jobs=2

TokenFormer (Wang et al. 2024, arXiv:2410.23168, figure 1): grown in four steps by 30B tokens each, 1.4B parameters
reach OpenWebText perplexity 11.8, as a Transformer does with 300B tokens at twice to three times the cost.
Here: two layers, width 128, the standard library's source. A small model (n = 48, half the size) trains for 600 steps,
grows to n = 96 and trains for 400 more. Against it, with the same FLOPs in all: `large`, the same n = 96 from scratch,
and `transformer` of the same number of parameters. Three seeds, paired by seed, 95% intervals (Student t).

The control: the Transformer learns, 2.5 nats a byte or less, as in the claim on tiny TokenFormers.

Expect: growth itself changes the held-out loss by rounding only. Which of the others wins is what the run says.
Cost: twelve runs of 400 to 1000 steps of 8 x 128 bytes; planned for 20 minutes on two CPU cores, so that a seed of all
arms is 13 CPU minutes; the 33 and 47 seeds that decisions within 0.05 nats need are 7 and 10 CPU hours.
"""

from configs import tokenformer, transformer
from configs.claims import tokenformer_tiny

TOKENS = {"small": 48, "large": 96}  # n; a channel has 4 n


def get_claim():
    """The claim, for the check `growth`."""
    base = transformer.get_config("tiny")
    base.data.batch_size = 8
    base.optimizer.learning_rate = 3e-3
    base.eval.update({"every": 100, "rows": 320, "sample_prompt": ""})
    base.checkpoint.every = 200
    grows = tokenformer_tiny.values(tokenformer.get_config("tiny"))
    return {
        "statement": "Grown from a smaller model, a TokenFormer is better at equal compute",
        "source": "Wang et al. 2024, arXiv:2410.23168, figure 1",
        "published": "1.4B: perplexity 11.8 at a third of the TPU hours",
        "family": "growth",
        "check": "growth",
        "base": base,
        "arms": {
            **{name: {**grows, **_tokens(n)} for name, n in TOKENS.items()},
            "transformer": tokenformer_tiny.values(base),
        },
        "chain": tuple(TOKENS),
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
        "steps": (600, 400),  # before growth and after it
        "effect": 0.05,
        "control": {"says": "the Transformer's nats a byte", "reads": ("losses", "transformer"), "most": 2.5},
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }


def _tokens(n: int) -> dict:
    return {"model.pattention.tokens": n, "model.pattention.channel_tokens": 4 * n}
