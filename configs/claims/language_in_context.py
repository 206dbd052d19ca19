"""Claim: attention learns regular languages in context better than mixers with a memory of fixed size.

    python main.py --mode=claim --config=configs/claims/language_in_context.py \\
        --workdir=runs/claims/language_in_context --jobs=2

Akyurek et al. 2024, "In-Context Language Learning: Architectures and Algorithms" (arXiv:2401.12973): of models trained
on strings of random automata, a new one in every sequence, Transformers outperform recurrent and linear-attention ones,
by heads that count n-grams. Here: automata of 4 states over 6 symbols, 2 of them legal in each state, eight strings of
15 symbols a row; the symbols of the second half of a row are scored. Three mixers in the same two layers of width 64,
equal steps; linear attention has a gate that forgets.

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
        "seeds": (0, 1, 2),
    }
