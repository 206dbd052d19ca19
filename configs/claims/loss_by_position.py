"""Claim: behind a window of attention the loss falls on where fast weights or another memory read the text, too.

    python main.py --mode=claim --config=configs/claims/loss_by_position.py \\
        --workdir=runs/claims/loss_by_position --jobs=1

Zhang et al. 2025, "Test-Time Training Done Right" (LaCT, arXiv:2505.23884), judge long context by the loss at each
position of rows of 32768 tokens: with window and fast weights it falls on, and ends below that of gated linear
attention and DeltaNet with the same window. Sun et al. 2024, "Learning to (Learn at Test Time)" (TTT,
arXiv:2407.04620): like a Transformer, TTT-Linear keeps reducing perplexity by conditioning on more tokens, Mamba cannot
after 16k.

Here: rows of 128 tokens, each with strings of a random automaton of its own (8 states, 8 symbols, 2 of them legal in a
state), so that all that was read tells what may follow, and a window of 16 tokens. Two layers of width 64. The first is
the same in every arm, attention to two tokens: whoever remembers can remember pairs. The second is attention to the
window, LaCT with the same window and chunks as long, TTT-Linear, the gated delta rule, or attention to all. Measured is
how much lower the loss is in the last eighth of the rows than in the second, whose windows are full. Every arm has the
same search of rates, on other held-out rows.

What counts can tell: who counts the pairs of the last 16 symbols has 1.91 and 1.87 nats a symbol in these eighths, who
counts all pairs so far 1.71 and 1.29 (100 rows, smoothed). The control: with attention to all the loss falls by 0.1.

Pilot, one seed, rows of 256, 300 steps of 8 rows at 1e-2, a window of 16: the loss fell by 0.151 with attention to all,
0.081 with TTT-Linear, 0.073 with LaCT, 0.047 with the gated delta rule, and 0.001 with the window alone.

Expect, as seen: from the second eighth to the last the loss falls by 0.236 nats with attention to all, 0.102 with
TTT-Linear, 0.076 with LaCT, 0.074 with the gated delta rule and 0.002 with the window alone; the last eighth ends at
1.48 nats, 1.75, 1.80, 1.81 and, with the window, 1.88. The search took 1e-2 for LaCT and 4e-3, the lower of its two
rates, for all others. Cost: two runs an arm of the search and one a seed, each 300 steps of 8 x 128 tokens; took 14
minutes with --jobs=1, the first half beside other work on two cores.
"""

from configs.claims import small

LENGTH, WINDOW, NEAR = 128, 16, {"attention": {"window": 2}}
SECOND = {  # arm: mixer of the second layer, what it sets, what is said of it, what was published
    "all": ("attention", {}, "attention to all that was read", "Transformers keep reducing perplexity with the text"),
    "LaCT": (
        "lact",
        {"model.lact.window": WINDOW, "model.lact.chunk_size": WINDOW},
        "the same window and fast weights (LaCT)",
        "curves of loss by position fall up to 32768 tokens, below those of gated linear attention and DeltaNet",
    ),
    "TTT-Linear": ("ttt_linear", {}, "TTT-Linear", "TTT-Linear keeps reducing perplexity with the text, Mamba cannot"),
    "gated delta": ("gated_delta", {}, "the gated delta rule", "not given for this measure"),
}


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(300, log_every=50, rows=1024)
    config.model.init = "fan_in"
    config.data.update({"source": "task:automata", "name": "states=8, symbols=8, degree=2, burn_in=0"})
    config.data.update({"length": LENGTH, "batch_size": 8})
    window = {"model.mixer": "attention,attention", "model.by_position": (NEAR, {"attention": {"window": WINDOW}})}
    arms, pairs = {"window": window}, []
    for arm, (mixer, values, said, published) in SECOND.items():
        arms[arm] = {"model.mixer": f"attention,{mixer}", "model.by_position": (NEAR, {}), **values}
        pairs.append({
            "statement": f"Behind {WINDOW} tokens the loss falls further with {said} than with that window alone",
            "published": published,
            "better": arm, "worse": "window", "score": "fall",
        })  # fmt: skip
    return {
        "statement": "Where only a window is seen the loss stops falling behind it; with a memory it falls on",
        "source": "Zhang et al. 2025, arXiv:2505.23884; Sun et al. 2024, arXiv:2407.04620",
        "published": "see pairs",
        "family": "mixers and memory",
        "check": "contrast",
        "score": "loss",
        "base": config,
        "arms": arms,
        "pairs": pairs,
        "tune": {"optimizer.learning_rate": (4e-3, 1e-2)},
        "effect": 0.03,
        "control": {"says": "nats that the loss falls with attention to all", "reads": ("fall", "all"), "least": 0.1},
        "looks": (3,),
        "hours": 0.5,
        "seeds": (0, 1, 2),
    }
