"""Claim: what a mixer recalls is bounded by its state.

    python main.py --mode=claim --config=configs/claims/recall.py --workdir=runs/claims/recall --jobs=2

Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv:2312.04927; 2024, "Based", arXiv:2402.18668):
pairs of keys and values, then the keys again. Models with a recurrent state need one that grows with the number of
pairs. Here: two layers of width 64; the first is attention over two tokens (in place of the papers' short convolution),
the second the mixer of the line, except for `attention` (both over everything), `window` (both over two tokens) and
`lact` (both LaCT with that window, chunk 8). `linear` and `gated_delta` have memories of two sizes: one head of width
64, or eight of 8, an eighth of the bytes. State bytes are those of a whole sequence; keys of attention over two tokens
are counted for all of them, since its cache keeps them. Three seeds, paired by seed, 95% intervals (Student t).

Expect: larger memories above smaller ones, everyone worse at more pairs, `window` at chance. `attention` has no layer
that only looks back one token and must find that by itself, which takes more steps than these (a pilot with 4 pairs of
8 values: loss 1.18 after 2000 steps, where attention over two tokens and a gated delta memory reached 0.001 after 800).
Seen: 500 steps are too few. With 4 pairs all but `window` answer about as well as a guess among the four values would.
Cost: 54 runs of 500 steps of 16 x 64 tokens; took 24 minutes on two busy CPU cores.
"""

from configs.claims import small

NEAR = {"model.attention.window": 2}
LINES = {
    "attention": {"model.mixer": "attention"},
    "window": {"model.mixer": "attention", **NEAR},
    "linear, 8 heads": {"model.mixer": "attention, linear_attention", "model.num_heads": 8, **NEAR},
    "linear, 1 head": {"model.mixer": "attention, linear_attention", "model.num_heads": 1, **NEAR},
    "gated_delta, 8 heads": {"model.mixer": "attention, gated_delta", "model.num_heads": 8, **NEAR},
    "gated_delta, 1 head": {"model.mixer": "attention, gated_delta", "model.num_heads": 1, **NEAR},
    "ttt_linear": {"model.mixer": "attention, ttt_linear", **NEAR},
    "ttt_mlp": {"model.mixer": "attention, ttt_mlp", **NEAR},
    "lact": {"model.mixer": "lact", "model.lact.chunk_size": 8, "model.lact.window": 2},
}
FEW, MANY = "4", "16"


def get_claim():
    """The claim, for the check `table`."""
    config = small(500, log_every=50, rows=512, width=128)
    config.model.update({"width": 64, "num_heads": 4, "init": "fan_in"})
    config.model.lact.rank = 8
    config.data.update({"source": "task:recall", "length": 64, "batch_size": 16})
    config.optimizer.update({"learning_rate": 3e-3, "schedule": "linear", "weight_decay": 0.0})

    def contrast(statement, published, better, worse):
        return {
            "statement": statement, "published": published, "measure": "accuracy", "better": better, "worse": worse,
        }  # fmt: skip

    grows = "recall grows with the size of the state"
    return {
        "source": "Arora et al. 2024, arXiv:2402.18668",
        "family": "mixers and memory",
        "check": "table",
        "statement": "What a mixer recalls is bounded by its state",
        "published": grows,
        "base": config,
        "lines": LINES,
        "points": {n: {"data.name": f"pairs={n}, queries=16, keys=32, values=16, noise=4"} for n in (FEW, MANY)},
        "axis": "pairs in a row",
        "contrasts": [
            contrast(
                "Linear attention recalls 16 pairs better with eight times the state",
                grows,
                ("linear, 1 head", MANY),
                ("linear, 8 heads", MANY),
            ),
            contrast(
                "A gated delta memory recalls 16 pairs better with eight times the state",
                grows,
                ("gated_delta, 1 head", MANY),
                ("gated_delta, 8 heads", MANY),
            ),
            contrast(
                "A gated delta memory of eight heads of 8 recalls 4 pairs better than 16",
                "recall falls with the number of pairs",
                ("gated_delta, 8 heads", FEW),
                ("gated_delta, 8 heads", MANY),
            ),
        ],
        "effect": 0.05,
        "control": {
            "says": "attention over 4 pairs, share right",
            "reads": ("accuracy", "attention", "4"),
            "least": 0.9,
        },
        "looks": (3, 6),
        "hours": 1.0,
        "seeds": tuple(range(12)),
    }
