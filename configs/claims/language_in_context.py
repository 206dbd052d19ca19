"""Claim: attention learns regular languages in context better than mixers with a memory of fixed size.

    python main.py --mode=claim --config=configs/claims/language_in_context.py \\
        --workdir=runs/claims/language_in_context --jobs=2

Akyurek et al. 2024, "In-Context Language Learning: Architectures and Algorithms" (arXiv:2401.12973): of models trained
on strings of random automata, a new one in every sequence, Transformers outperform recurrent and linear-attention ones,
by heads that count n-grams. Here: automata of 4 states over 6 symbols, 2 of them legal in each state, eight strings of
15 symbols a row; the symbols of the second half of a row are scored. Three mixers in the same two layers of width 64,
equal steps. Each has what finds the last symbols: attention a first layer that sees two tokens and a second that sees
all, which is what a head that counts pairs needs; the memories convolutions over four tokens in both layers. Linear
attention has a gate that forgets. Every arm has the same search of rates, on other held-out rows.

The control: attention counts more than single symbols, 1.1 nats or less. Counts of the symbols of a row so far give
1.39 nats (a guess among all six 1.79), counts of what followed the last symbol 0.98 (400 rows, smoothed), and who knows
the automaton has 0.69. What it takes: without windows and convolutions, and untuned, the arms ended at 1.37, 1.40 and
1.28. With them, and the same initial values as before (model.init=normal), the memories came to 0.95 to 1.04 within 800
steps and attention stood at 1.39 in all of three seeds; 5e-3 was the better rate of every arm, above 2.5e-3. By fan-in
attention is at 1.13 after 250 steps.

Expect: the paper's order, for models that could not find the last symbols by themselves; with convolutions in front
of the memories no difference is left. Seen before, with 400 steps: attention at 1.10 nats, above its level by 0.003.
Seen now, with 800: attention at 0.96 in each of six seeds, linear attention at 0.95, the gated delta rule at 0.96 to
1.21: its search, by one seed, took 2e-2, where some seeds go astray (at 5e-3 and 1e-2 it ended at 0.95), so that its
row stays open. The best possible is 0.69. Cost: nine runs of the search and three a seed, each 800 steps of 8 x 128
tokens; took 41 minutes on two cores that did much else.
"""

from configs.claims import small

NEAR_THEN_ALL = {"model.mixer": "attention,attention", "model.by_position": ({"attention": {"window": 2}}, {})}
RIVALS = {"linear_attention": "linear attention", "gated_delta": "the gated delta rule"}


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(800, log_every=100, rows=512)
    config.model.init = "fan_in"
    config.data.update({"source": "task:automata", "name": "states=4, symbols=6, degree=2", "length": 128})
    config.data.batch_size = 8
    memories = {name: {"model.mixer": name, f"model.{name}.conv": 4} for name in RIVALS}
    return {
        "statement": "Attention learns regular languages in context better than mixers with a memory of fixed size",
        "source": "Akyurek et al. 2024, arXiv:2401.12973",
        "published": "see pairs",
        "family": "mixers and memory",
        "check": "contrast",
        "score": "loss",
        "base": config,
        "arms": {"attention": NEAR_THEN_ALL, **memories},
        "pairs": [
            {
                "statement": f"Attention learns regular languages in context better than {said}",
                "published": "Transformers outperform recurrent and linear-attention models",
                "better": "attention",
                "worse": name,
            }
            for name, said in RIVALS.items()
        ],
        "tune": {"optimizer.learning_rate": (5e-3, 1e-2, 2e-2)},
        "effect": 0.05,
        "control": {"says": "attention, nats a symbol", "reads": ("loss", "attention"), "most": 1.1},
        "looks": (3,),
        "hours": 0.8,
        "seeds": tuple(range(6)),
    }
