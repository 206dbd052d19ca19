"""Claim: what a head needs of a prompt is told by the last queries, so that few columns of keys keep most attention.

    python main.py --mode=claim --config=configs/claims/sparse_prefill.py --workdir=runs/claims/sparse_prefill

Jiang et al. 2024 (MInference, arXiv:2407.02490): vertical lines and slashes, found on the last 64 queries of a prompt,
hold the accuracy of full attention and are ten times as fast at a million tokens.

A small Transformer learns the bytes of code in rows of 1,024, and reads held-out rows of 1,024 to 4,096. Each head sees
the 50 nearest keys and 120 columns, 30 of them the first ones: those that the last 64 queries found, the first 120, 30
first ones and others by lot, or the 120 that keep the most of the queries that are asked. These queries lie in the
second half of a row, before the last 64. The control is that columns can be told at all: the best ones must keep 0.02
more of the attention than those by lot. Seconds are of whole passes, dense and within the patterns, in turn.

Expect, as seen in a pilot of one seed with 60 to 240 columns: attention is spread widely (the 170 best keys of each
query keep 0.56 of it at 1,024 tokens), the best columns keep 0.13 more than columns by lot, those that are found 0.03
more, and the first tokens a little more than those. A check of the bits behind a prompt stood here before, and its
control failed: a model so small writes code as well behind a prompt whose tokens saw four others. Cost: 3 runs of 200
steps and 18 rows; about 5 minutes of a CPU core.
"""

from configs.claims import small


def get_claim():
    """The claim, for the check `patterns`."""
    config = small(200, log_every=50, rows=2, width=64)
    config.data.update({"length": 1024, "batch_size": 4})
    row = lambda measure, better, worse, statement, published, **more: {  # noqa: E731
        "statement": statement, "published": published, "measure": measure, "better": better, "worse": worse, **more,
    }  # fmt: skip
    fast = {"published": "1.6 times at 64 thousand tokens, 10 at a million", "effect": 0.2}
    return {
        "source": "Jiang et al. 2024, arXiv:2407.02490",
        "family": "decoding",
        "check": "patterns",
        "statement": "Prompts can be read within patterns that are found online",
        "published": "the accuracy of full attention, ten times as fast at a million tokens",
        "base": config,
        "arms": {"base": {}},
        "lengths": (1024, 2048, 4096),
        "columns": 120,
        "window": 50,
        "asked": 128,
        "axis": "tokens of the prompt",
        "contrasts": [
            row("mass", ("found", "4096"), ("random", "4096"), "Columns found online keep more attention than by lot",
                "implied"),
            row("mass", ("found", "4096"), ("first", "4096"),
                "Columns found online keep more attention than first tokens", "above A-shape of all heads"),
            row("mass", ("found", "4096"), ("best", "4096"),
                "Columns found online keep as much attention as the best", "implied"),
            row("seconds", ("sparse", "4096"), ("dense", "4096"), "4,096 tokens are read faster within patterns",
                **fast),
            row("seconds", ("sparse", "1024"), ("dense", "1024"), "1,024 tokens are read faster within patterns",
                **fast),
        ],
        "effect": 0.01,
        "control": {
            "says": "share of attention that the best columns keep beyond columns by lot",
            "reads": ("mass", "room", "4096"), "least": 0.02,
        },
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }  # fmt: skip
