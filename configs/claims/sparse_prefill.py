"""Claim: what a head needs of a prompt is told by the last queries, so that few columns of keys lose next to nothing.

    python main.py --mode=claim --config=configs/claims/sparse_prefill.py --workdir=runs/claims/sparse_prefill

Jiang et al. 2024 (MInference, arXiv:2407.02490): vertical lines and slashes, found on the last 64 queries of a prompt,
hold the accuracy of full attention and are ten times as fast at a million tokens. Their pairs and speed
against the length of a prompt are rows of the bench (`--bench_filter=prefill/`).

A small Transformer learns the bytes of code in rows of 512. Of each held-out row 448 are read at once, within a
pattern of every head, and the rest token by token with the full cache that this left. `vertical_slash` reads 30, 60 or
120 columns, 30 of them the first ones, and the tiles of the 50 nearest distances; `a_shape` reads as many first tokens
and a window of 96, as wide as these tiles are on average. `near` has one first token and a window of 4: the control,
that what a prompt reads of itself matters at all.

Expect, as seen: the control fails. There is no difference, and none to be had: a model of 0.12 M parameters writes code
as well behind a prompt whose tokens saw four others as behind one that was read whole (3.171 and 3.169 bits a byte), so
that patterns which see more cannot lose anything. The published effect is of models that read at a distance. Cost: 3
runs of 300 steps and 24 readings; 3 minutes of one CPU core.
"""

from configs.claims import small


def get_claim():
    """The claim, for the check `memories`."""
    config = small(300, log_every=100, rows=16, width=64)
    config.data.update({"length": 512, "batch_size": 8})
    within = lambda text: {"prefill": "minference", "minference": {"patterns": text}}  # noqa: E731

    def row(better, worse, statement, published):
        return {
            "statement": statement, "published": published, "measure": "bits_per_byte", "better": ("code", *better),
            "worse": ("code", *worse),
        }  # fmt: skip

    return {
        "source": "Jiang et al. 2024, arXiv:2407.02490",
        "family": "decoding",
        "check": "memories",
        "statement": "Prompts can be read within patterns that are found online",
        "published": "the accuracy of full attention, ten times as fast at a million tokens",
        "base": config,
        "arms": {"code": {}},
        "lines": {
            "dense": {"120": {}},
            "vertical_slash": {str(n): within(f"vertical_slash:{n}:50") for n in (30, 60, 120)},
            "a_shape": {str(n): within(f"a_shape:{n}:96") for n in (30, 60, 120)},
            "near": {"1": within("a_shape:1:4")},
        },
        "length": 512,
        "prompt": 448,
        "axis": "columns, or first tokens, that are read",
        "contrasts": [
            row(("vertical_slash", "60"), ("dense", "120"), "60 columns and slashes lose no bits to all keys",
                "the accuracy of full attention"),
            row(("vertical_slash", "60"), ("a_shape", "60"), "Columns found online lose fewer bits than first tokens",
                "above A-shape of all heads"),
        ],
        "effect": 0.01,
        "control": {
            "says": "bits per byte within four tokens, which must lose 0.02 to the 3.17 of all keys",
            "reads": ("bits_per_byte", "code", "near", "1"), "least": 3.19,
        },
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }  # fmt: skip
