"""Claim: a window of recent tokens fails without the first ones, and a trained sink takes their place.

    python main.py --mode=claim --config=configs/claims/attention_sinks.py --workdir=runs/claims/attention_sinks

Xiao et al. 2023 (StreamingLLM, arXiv:2309.17453): perplexity of Llama-2-13B on PG19 with 1,024 tokens in the cache is
5,158 without the first tokens and 5.40 with four of them; a model that was trained with a sink needs no first tokens.

A small Transformer learns the bytes of code in rows of 128 tokens, once as it is and once with a learned score of a
virtual key in every head (`model.attention.sink_scores`). Rows of 384 tokens are then read token by token behind 64 of
them, with 48 tokens in the cache, of which 0, 1, 2 or 4 are the first ones; and with everything in the cache, which
turns keys further than any in training.

Expect, as seen: the full cache loses 0.41 bits per byte to the window beyond the trained length; first tokens are worth
nothing to models of 0.12 M parameters (3.002 bits with four and without), so that nothing can be said of a trained sink
but that it does no harm. The published effect is of models that learned to leave attention on their first tokens.
Cost: 6 runs of 400 steps and 30 readings; 38 minutes on two busy CPU cores.
"""

from configs.claims import small

BUDGET, LENGTH, PROMPT = 48, 384, 64


def get_claim():
    """The claim, for the check `memories`."""
    config = small(400, log_every=100, rows=16, width=64)
    keeps = lambda sinks: {"memory": "streaming", "streaming": {"budget": float(BUDGET), "sinks": sinks}}  # noqa: E731

    def row(better, worse, statement, published):
        return {
            "statement": statement, "published": published, "measure": "bits_per_byte", "better": better, "worse": worse
        }  # fmt: skip

    plain, trained = "plain", "trained sink"
    return {
        "source": "Xiao et al. 2023, arXiv:2309.17453",
        "family": "decoding",
        "check": "memories",
        "statement": "Windows need attention sinks",
        "published": "perplexity 5,158 without and 5.40 with four first tokens",
        "base": config,
        "arms": {plain: {}, trained: {"model.attention.sink_scores": True}},
        "lines": {
            "full": {"4": {"memory": "full"}},
            "streaming": {str(sinks): keeps(sinks) for sinks in (0, 1, 2, 4)},
        },
        "length": LENGTH,
        "prompt": PROMPT,
        "axis": f"first tokens among {BUDGET} in the cache",
        "contrasts": [
            row(
                (plain, "streaming", "4"), (plain, "streaming", "0"),
                "A window of 48 tokens loses fewer bits with the first four of the text among them",
                "perplexity 5.40 instead of 5,158",
            ),
            row(
                (plain, "streaming", "4"), (plain, "full", "4"),
                "Beyond the trained length four sinks and a window lose fewer bits than the full cache",
                "dense attention fails beyond the trained length",
            ),
            row(
                (trained, "streaming", "0"), (trained, "streaming", "4"),
                "With a trained sink no first tokens are needed",
                "a trained sink alone is as good as four first tokens",
            ),
        ],
        "effect": 0.02,
        "control": {
            "says": "bits per byte within a window with four sinks",
            "reads": ("bits_per_byte", plain, "streaming", "4"),
            "most": 4.0,
        },
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2, 3, 4, 5),
    }  # fmt: skip
