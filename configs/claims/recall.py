"""Claim: what a mixer recalls is bounded by its state: attention answers where memories of constant size are full.

    python main.py --mode=claim --config=configs/claims/recall.py --workdir=runs/claims/recall --jobs=2

Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv:2312.04927; 2024, "Based", arXiv:2402.18668):
pairs of keys and values, then the keys again. Attention solves it at any width; models with a recurrent state need one
that grows with the number of pairs. Here: two layers of width 64; the first is attention over 4 tokens (in place of the
papers' short convolution), the second the mixer of the line, except for `attention` (both over everything), `window`
(both over 4 tokens) and `lact` (both LaCT, window 4, chunk 8: attention is part of it). `linear` and `gated_delta` have
memories of two sizes: one head of width 64, or four of 16, a quarter of the bytes. State bytes are those of a whole
sequence, keys of attention over 4 tokens counted for all of them, since its cache keeps them.
Three seeds, paired by seed, 95% intervals (Student t).

Expect: attention first, window at chance, larger memories above smaller ones, everyone worse at more pairs. At this
many steps some may not have left the plateau of guessing among the values of the row. Cost: 54 runs of 500 steps of 32
rows; planned for 12 minutes on two CPU cores.
"""

from configs import transformer

LINES = {
    "attention": {"model.mixer": "attention"},
    "window": {"model.mixer": "attention", "model.attention.window": 4},
    "linear, 4 heads": {"model.mixer": "attention, linear_attention"},
    "linear, 1 head": {"model.mixer": "attention, linear_attention", "model.num_heads": 1},
    "gated_delta, 4 heads": {"model.mixer": "attention, gated_delta"},
    "gated_delta, 1 head": {"model.mixer": "attention, gated_delta", "model.num_heads": 1},
    "ttt_linear": {"model.mixer": "attention, ttt_linear"},
    "ttt_mlp": {"model.mixer": "attention, ttt_mlp"},
    "lact": {"model.mixer": "lact", "model.lact.chunk_size": 8, "model.lact.window": 4},
}
PAIRS = (4, 8)


def get_claim():
    """The claim, for the check `table`."""
    config = transformer.get_config("tiny")
    config.model.update({"width": 64, "num_heads": 4, "init": "fan_in"})
    config.model.lact.rank = 8
    config.data.update({"source": "task:recall", "length": 48, "batch_size": 32})
    config.optimizer.update({"learning_rate": 5e-3, "weight_decay": 0.0})
    config.train.update({"steps": 500, "log_every": 50})
    config.eval.update({"every": 0, "batches": 16, "sample_prompt": ""})
    config.checkpoint.every = 0
    hard, easy = (str(pairs) for pairs in (PAIRS[-1], PAIRS[0]))
    local = {
        name: values if name in ("attention", "lact") else {**values, "model.attention.window": 4}
        for name, values in LINES.items()
    }
    return {
        "source": "Arora et al. 2024, arXiv:2402.18668",
        "check": "table",
        "statement": "What a mixer recalls is bounded by its state",
        "published": "recall grows with the size of the state; attention solves it",
        "base": config,
        "lines": local,
        "points": {
            str(pairs): {"data.name": f"pairs={pairs}, queries=16, keys=16, values=8, noise=4"} for pairs in PAIRS
        },
        "axis": "pairs in a row",
        "contrasts": [
            {
                "statement": "Attention recalls 8 pairs better than a gated delta memory of 4 heads of 16",
                "published": "attention solves it at any width",
                "measure": "accuracy",
                "better": ("attention", hard),
                "worse": ("gated_delta, 4 heads", hard),
            },
            {
                "statement": "Linear attention recalls 8 pairs better with four times the state",
                "published": "recall grows with the size of the state",
                "measure": "accuracy",
                "better": ("linear, 1 head", hard),
                "worse": ("linear, 4 heads", hard),
            },
            {
                "statement": "Linear attention recalls 4 pairs better than 8 with the same state",
                "published": "recall falls with the number of pairs",
                "measure": "accuracy",
                "better": ("linear, 4 heads", easy),
                "worse": ("linear, 4 heads", hard),
            },
        ],
        "seeds": (0, 1, 2),
    }
