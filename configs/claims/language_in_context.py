"""Claim: attention learns regular languages in context better than mixers with a memory of fixed size.

    python main.py --mode=claim --config=configs/claims/language_in_context.py \\
        --workdir=runs/claims/language_in_context --jobs=2

Akyurek et al. 2024, "In-Context Language Learning: Architectures and Algorithms" (arXiv:2401.12973): of models trained
on strings of random automata, a new one in every sequence, Transformers outperform recurrent and linear-attention ones,
by heads that count n-grams. Here: automata of 4 states over 6 symbols, 2 of them legal in each state, eight strings of
15 symbols a row; the symbols of the second half of a row are scored. Three mixers in the same two layers of width 64,
equal steps; linear attention has a gate that forgets.

The control: attention counts more than single symbols, 1.1 nats or less. Counts of the symbols of a row so far give
1.39 nats (a guess among all six 1.79), counts of what followed the last symbol 0.98 (400 rows, smoothed), and who knows
the automaton has 0.69. Seen: after these steps the arms stand at 1.37, 1.40 and 1.28, about where counts of single
symbols do, so that they test nothing of heads that count n-grams. What learns it, in pilots of 800 steps of 8 rows at a
rate of 5e-3, one seed each: attention that sees two tokens in its first layer and all in its second, 0.948; the gated
delta rule with convolutions over four tokens, 0.997. Attention, gated delta and linear attention of this kind at three
seeds, two rates tried for each, would take about 15 CPU minutes.

Expect: the paper's order. Cost: nine runs of 800 steps of 16 x 128 tokens; planned for 6 minutes with --jobs=2.
"""

from configs.claims import small

RIVALS = {"linear_attention": "linear attention", "gated_delta": "the gated delta rule"}


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(800, log_every=20, every=100, rows=512, save=400)
    config.data.update({"source": "task:automata", "name": "states=4, symbols=6, degree=2", "length": 128})
    return {
        "statement": "Attention learns regular languages in context better than mixers with a memory of fixed size",
        "source": "Akyurek et al. 2024, arXiv:2401.12973",
        "published": "see pairs",
        "family": "mixers and memory",
        "check": "contrast",
        "score": "loss",
        "base": config,
        "arms": {name: {"model.mixer": name} for name in ("attention", *RIVALS)},
        "pairs": [
            {
                "statement": f"Attention learns regular languages in context better than {said}",
                "published": "Transformers outperform recurrent and linear-attention models",
                "better": "attention",
                "worse": name,
            }
            for name, said in RIVALS.items()
        ],
        "effect": 0.05,
        "control": {"says": "attention, nats a symbol", "reads": ("loss", "attention"), "most": 1.1},
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }
