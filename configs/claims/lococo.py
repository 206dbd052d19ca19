"""Claim: a trained convolution that merges into a cache of fixed size beats policies that drop tokens (LoCoCo).

    python main.py --mode=claim --config=configs/claims/lococo.py --workdir=runs/claims/lococo

Cai et al. 2024, arXiv:2406.05317: 3,482 tokens in 128 slots, up to 0.28 more of accuracy than dropping tokens.

Two small Transformers learn the bytes of code in rows of 128 tokens: one of attention, read with a cache of 64 tokens
by `streaming` and by `h2o`, and one of `lococo` with 32 slots and chunks of 32 tokens, which takes as many bytes (a
test says so). Both are read token by token behind 16 tokens. The control is attention that keeps everything.

Expect, as seen: nothing is decided at this size. Bits of runs of 250 steps differ by more between seeds (0.15) than
between any two ways to keep 64 of 128 places (0.01): 3.290 merged, 3.282 `streaming`, 3.286 `h2o` and everything.
Cost: 6 runs of 250 steps and 12 readings.
"""

from configs.claims import small

SLOTS, CHUNK = 32, 32


def get_claim():
    """The claim, for the check `memories`."""
    config = small(250, log_every=50, rows=32, width=64)
    keeps = lambda **more: {"budget": float(SLOTS + CHUNK), **more}  # noqa: E731
    sizes = {"model.lococo.slots": SLOTS, "model.lococo.chunk_size": CHUNK, "model.lococo.taps": 9}
    plain, merging, point = "attention", "lococo", str(SLOTS + CHUNK)

    def row(better, worse, statement, published):
        return {"statement": statement, "published": published, "measure": "bits_per_byte",
                "better": better, "worse": worse}  # fmt: skip

    return {
        "source": "Cai et al. 2024, arXiv:2406.05317",
        "family": "decoding",
        "check": "memories",
        "statement": "Merging what leaves a cache beats dropping it",
        "published": "up to 0.28 more accuracy at 3,482 tokens in 128 slots",
        "base": config,
        "arms": {plain: {}, merging: {"model.mixer": "lococo", **sizes}},
        "lines": {
            "full": {point: {"memory": "full"}},
            "streaming": {point: {"memory": "streaming", "streaming": keeps(sinks=4)}},
            "h2o": {point: {"memory": "h2o", "h2o": keeps(recent=32.0)}},
        },
        "reads": {merging: ("full",)},
        "prompt": 16,
        "axis": "tokens in the cache",
        "contrasts": [
            row(
                (merging, "full", point), (plain, "streaming", point),
                "At equal bytes a merged cache loses fewer bits than sinks and a window", "better on long texts",
            ),
            row(
                (merging, "full", point), (plain, "h2o", point),
                "At equal bytes a merged cache loses fewer bits than heavy hitters", "up to 0.28 more accuracy",
            ),
            row(
                (plain, "full", point), (merging, "full", point),
                "Attention that keeps everything loses fewer bits than a merged cache", "near the full cache",
            ),
        ],
        "effect": 0.02,
        "control": {
            "says": "bits per byte with everything in the cache",
            "reads": ("bits_per_byte", plain, "full", point),
            "most": 4.0,
        },
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }  # fmt: skip
